"""TorchIO 1.x: an intensity transform, in ``Compose``."""

from typing import Any

import torch

from ..utils.misc import extra
from ._shading import MAX_SEED, SeededShading

with extra(__name__, "TorchIO 1", "torchio"):
    from torchio import IntensityTransform, Subject
    from torchio.transforms.augmentation import RandomTransform

__all__ = ["RandomShading", "Shading"]


class RandomShading(RandomTransform, IntensityTransform):
    """Random shading as one of TorchIO's transforms.

    It masks a subject's scalar images, never its label maps. torch's global generator seeds it. The subject's history
    records a :class:`Shading`, which repeats the masks.

    Args:
        p: Probability that a subject is masked.
        shared: Give all images one mask. With False each has its own.
        include: Names of the only images to mask, as in TorchIO.
        exclude: Names of images not to mask, as in TorchIO.
        settings: Any other setting of :class:`policy_noise.RandomShading`. A ``grid_size`` that is one number is used
            along all axes.

    Shape:
        - images: (C, W, H, D). Axes of one pixel get one cell.
        - Output: the same shape and dtype. Integers are rounded.

    Example:
        >>> from torchio import ScalarImage
        >>> subject = Subject(t1=ScalarImage(tensor=torch.rand(1, 16, 16, 16)))
        >>> RandomShading(p=1.0, mean=0.0, std=1.0)(subject).t1.shape
        (1, 16, 16, 16)
    """

    def __init__(
        self, p: float = 0.5, shared: bool = True, include: Any = None, exclude: Any = None, **settings: Any
    ) -> None:
        super().__init__(p=p, include=include, exclude=exclude)
        self.shared = shared
        self.settings = settings
        SeededShading(**settings)  # checks them

    def apply_transform(self, subject: Subject) -> Subject:
        """Draw, and apply a :class:`Shading`."""
        names = list(self.get_images_dict(subject))
        seeds = torch.randint(MAX_SEED, (max(1, len(names)),)).tolist()
        chosen = {name: seeds[0 if self.shared else number] for number, name in enumerate(names)}
        return Shading(chosen, self.settings, **self._get_base_args())(subject)


class Shading(IntensityTransform):
    """The masks of given seeds.

    Args:
        seeds: The seed of each image, by its name.
        settings: Of :class:`policy_noise.RandomShading`.
        base: Arguments of TorchIO's transforms.
    """

    def __init__(self, seeds: dict[str, int], settings: dict[str, Any] | None = None, **base: Any) -> None:
        super().__init__(**base)
        self.seeds = seeds
        self.settings = dict(settings or {})
        self.args_names = ["seeds", "settings"]
        self.shading = SeededShading(**{**self.settings, "p": 1.0})

    def apply_transform(self, subject: Subject) -> Subject:
        """Mask the images that have a seed."""
        for name, image in self.get_images_dict(subject).items():
            if name in self.seeds:
                image.set_data(self.shading(image.data, self.seeds[name]))
        return subject
