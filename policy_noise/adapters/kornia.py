"""Kornia: one of its augmentations, alone and in ``AugmentationSequential``."""

import dataclasses
from typing import Any

from kornia.augmentation import IntensityAugmentationBase2D, IntensityAugmentationBase3D
from torch import Tensor

from ..augmentation import tensors_of
from ..masks import ShadingSample, random_shading
from ._shading import cells_of, draw

__all__ = ["RandomShading", "RandomShading3D"]


class _Shading:
    """What both share: masks are drawn as parameters, which Kornia stores and replays."""

    def __init__(self, p: float = 0.5, same_on_batch: bool = False, keepdim: bool = False, **settings: Any) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, keepdim=keepdim)  # type: ignore[call-arg]
        cells = cells_of(settings)
        if cells is not None:
            settings["grid_size"] = (cells,) * (3 if isinstance(self, IntensityAugmentationBase3D) else 2)
        self.shading = random_shading.RandomShading(p=1.0, **settings)

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw a mask for each image."""
        count = 1 if self.same_on_batch else batch_shape[0]  # type: ignore[attr-defined]
        sample = draw(self.shading, (count, *batch_shape[1:]), self.device)  # type: ignore[attr-defined]
        return {name: drawn.expand(batch_shape[0], *drawn.shape[1:]) for name, drawn in tensors_of(sample).items()}

    def compute_transformation(self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]) -> Tensor:
        """The identity: nothing moves."""
        return self.identity_matrix(input)  # type: ignore[attr-defined]

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Apply the drawn masks."""
        names = {field.name for field in dataclasses.fields(ShadingSample)} & params.keys()
        stored = {name: params[name].to(input.device) for name in names}
        return self.shading(input, ShadingSample(log_prob=None, **stored))


class RandomShading(_Shading, IntensityAugmentationBase2D):
    """Random shading as one of Kornia's augmentations of images.

    Masks are parameters of Kornia's: ``augmentation(images, params=augmentation._params)`` and
    ``AugmentationSequential`` repeat them. Boxes, masks and key points are untouched. It draws from torch's global
    generator, on the device that Kornia draws on.

    Args:
        p: Probability that an image is masked.
        same_on_batch: Use one mask for the whole batch.
        keepdim: Return a single image as it came, without a batch axis.
        settings: Any other setting of :class:`policy_noise.RandomShading`.

    Shape:
        - images: (B, C, H, W) or (C, H, W); floating point.
        - Output: the same; (1, C, H, W) for a single image without ``keepdim``.

    Example:
        >>> import torch
        >>> augmentation = RandomShading(p=1.0, mean=0.0, std=1.0)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> torch.equal(augmentation(images), augmentation(images, params=augmentation._params))
        True
    """


class RandomShading3D(_Shading, IntensityAugmentationBase3D):
    """:class:`RandomShading` for volumes (B, C, D, H, W), with a grid of three axes.

    Example:
        >>> import torch
        >>> RandomShading3D(p=1.0, mean=0.0, std=1.0)(torch.rand(2, 1, 8, 16, 16)).shape
        torch.Size([2, 1, 8, 16, 16])
    """
