"""batchgeneratorsv2, the augmentations of nnU-Net."""

from typing import Any

import numpy as np
from torch import Tensor

from ..utils.misc import extra
from ._shading import MAX_SEED, SeededShading

with extra(__name__, "batchgeneratorsv2", "nnunet"):
    from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform

__all__ = ["RandomShadingTransform"]


class RandomShadingTransform(ImageOnlyTransform):
    """Random shading as one of batchgeneratorsv2's transforms.

    It masks ``image`` and nothing else. It draws from NumPy's global generator, as batchgeneratorsv2's own strengths
    do: nnU-Net seeds that one in every worker.

    Args:
        p: Probability that an image is masked; 1 by default, because ``RandomTransform`` around it decides.
        settings: Any other setting of :class:`policy_noise.RandomShading`. A ``grid_size`` that is one number is used
            along all axes.

    Shape:
        - image: (C, X, Y) or (C, X, Y, Z).
        - Output: the same shape and dtype.

    Example:
        >>> import torch
        >>> sorted(RandomShadingTransform()(image=torch.randn(1, 16, 16), segmentation=torch.zeros(1, 16, 16)))
        ['image', 'segmentation']
    """

    def __init__(self, p: float = 1.0, **settings: Any) -> None:
        super().__init__()
        self.shading = SeededShading(p=p, **settings)

    def get_parameters(self, **data_dict: Any) -> dict[str, int]:
        """Draw a seed."""
        return {"seed": int(np.random.randint(MAX_SEED))}  # noqa: NPY002

    def _apply_to_image(self, img: Tensor, **params: int) -> Tensor:
        return self.shading(img, params["seed"])
