"""MONAI: ``RandShading`` and ``RandShadingd``, in ``Compose``."""

from collections.abc import Hashable, Mapping
from typing import Any

from ..utils.misc import extra
from ._shading import MAX_SEED, SeededShading

with extra(__name__, "MONAI", "monai"):
    from monai.config import KeysCollection, NdarrayOrTensor
    from monai.transforms import MapTransform, RandomizableTransform
    from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

__all__ = ["RandShading", "RandShadingd"]


class RandShading(RandomizableTransform):
    """Random shading as one of MONAI's transforms. ``set_random_state`` seeds it.

    Args:
        prob: Probability that an image is masked.
        settings: Any other setting of :class:`policy_noise.RandomShading`. A ``grid_size`` that is one number is used
            along all axes of an image.

    Shape:
        - img: (C, H, W) or (C, D, H, W).
        - Output: the same type, shape, dtype and meta data. Integers are rounded.

    Example:
        >>> import torch
        >>> RandShading(prob=1.0, grid_size=2).set_random_state(0)(torch.rand(1, 16, 16, 16)).shape
        torch.Size([1, 16, 16, 16])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, prob: float = 0.5, **settings: Any) -> None:
        super().__init__(prob)
        self.shading = SeededShading(p=1.0, **settings)
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw whether to mask, and a mask."""
        super().randomize(None)
        self._seed = int(self.R.randint(MAX_SEED))

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Mask an image, or with ``randomize=False`` repeat the last mask."""
        if randomize:
            self.randomize()
        return self.masked(img, self._seed) if self._do_transform else img

    def masked(self, img: NdarrayOrTensor, seed: int) -> NdarrayOrTensor:
        """Apply the mask of a seed."""
        plain = convert_to_tensor(img, track_meta=False)
        return convert_to_dst_type(self.shading(plain, seed), dst=img, dtype=img.dtype)[0]


class RandShadingd(RandomizableTransform, MapTransform):
    """:class:`RandShading` for dictionaries.

    Args:
        keys: Keys of the images.
        prob: Probability that a sample is masked.
        shared: Give all keys one mask, as RandBiasFieldd does. With False each key has its own.
        allow_missing_keys: Skip keys that a sample lacks.
        settings: Any other setting of :class:`policy_noise.RandomShading`.

    Example:
        >>> import torch
        >>> transform = RandShadingd(keys=["t1", "t2"], prob=1.0, shared=False)
        >>> sorted(transform({"t1": torch.rand(1, 16, 16, 16), "t2": torch.rand(1, 16, 16, 16), "age": 40}))
        ['age', 't1', 't2']
    """

    backend = RandShading.backend

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        shared: bool = True,
        allow_missing_keys: bool = False,
        **settings: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.shared = shared
        self.shading = RandShading(prob=1.0, **settings)
        self._seeds: list[int] = []

    def randomize(self, data: Any = None) -> None:
        """Draw whether to mask, and a mask for each key."""
        super().randomize(None)
        seeds = self.R.randint(MAX_SEED, size=len(self.keys))
        self._seeds = [int(seeds[0 if self.shared else number]) for number in range(len(self.keys))]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Mask the images of a sample."""
        sample = dict(data)
        self.randomize()
        if self._do_transform:
            seeds = dict(zip(self.keys, self._seeds, strict=True))
            for key in self.key_iterator(sample):
                sample[key] = self.shading.masked(sample[key], seeds[key])
        return sample
