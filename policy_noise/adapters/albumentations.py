"""Albumentations 2.0: an image-only transform on NumPy arrays, in ``Compose``."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..utils.misc import extra
from ._shading import MAX_SEED, SeededShading

with extra(__name__, "Albumentations", "albumentations"):
    from albumentations import ImageOnlyTransform

__all__ = ["RandomShading"]


class RandomShading(ImageOnlyTransform):
    """Random shading as one of Albumentations' transforms.

    Masks, boxes and key points are untouched. ``Compose(..., seed=...)`` seeds it, ``ReplayCompose`` repeats it. Images
    of one call share their mask; a volume gets a mask with three axes. Further images are masked where Albumentations
    knows of them: ``Compose(..., additional_targets={"image2": "image"})``.

    Args:
        p: Probability that a sample is masked.
        settings: Any other setting of :class:`policy_noise.RandomShading`. Bytes are read as [0, 1]: ``mean=0, std=1``
            makes zero black.

    Targets:
        image, images, volume, volumes; uint8 or floating point.

    Example:
        >>> shade = RandomShading(p=1.0, mean=0.0, std=1.0)
        >>> shade(image=np.zeros((24, 32, 3), np.uint8))["image"].shape
        (24, 32, 3)
    """

    def __init__(self, p: float = 0.5, **settings: Any) -> None:
        super().__init__(p=p)
        self.shading = SeededShading(p=1.0, **settings)

    def get_params(self) -> dict[str, Any]:
        """Draw a seed."""
        return {"seed": self.py_random.randrange(MAX_SEED)}

    def apply(self, img: NDArray[Any], *args: Any, seed: int = 0, **params: Any) -> NDArray[Any]:
        """Mask an image (H, W) or (H, W, C)."""
        return self._masked(img, seed, img.ndim == 2)

    def apply_to_volume(self, volume: NDArray[Any], *args: Any, seed: int = 0, **params: Any) -> NDArray[Any]:
        """Mask a volume (D, H, W) or (D, H, W, C)."""
        return self._masked(volume, seed, volume.ndim == 3)

    def _masked(self, image: NDArray[Any], seed: int, grey: bool) -> NDArray[Any]:
        channels_first = torch.from_numpy(np.ascontiguousarray(image[None] if grey else np.moveaxis(image, -1, 0)))
        shaded = self.shading(channels_first, seed).numpy()
        return shaded[0] if grey else np.moveaxis(shaded, 0, -1)

    def get_transform_init_args(self) -> dict[str, Any]:
        """The settings, so that the transform can be saved."""
        return {name: value for name, value in self.shading.settings.items() if name != "p"}
