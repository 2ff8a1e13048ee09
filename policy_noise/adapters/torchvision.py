"""torchvision: one of its v2 transforms, in ``v2.Compose``."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..augmentation import tensors_of
from ..masks import ShadingSample, random_shading
from ..masks._inputs import replace_leaves, untyped_images
from ..utils.misc import leaves_of
from ._shading import draw, shade

__all__ = ["RandomShading"]

MODES = ("L", "RGB", "F")


def _is_plain_image(value: Any) -> bool:
    """Whether a value is a tensor without a type of torchvision's that can be an image."""
    if not (isinstance(value, Tensor) and F.is_pure_tensor(value) and value.ndim > 2):
        return False
    return value.is_floating_point() or value.dtype == torch.uint8


class RandomShading(v2.Transform):
    """Random shading as one of torchvision's v2 transforms.

    All ``Image``, ``Video`` and PIL images of a sample get one mask, labels, boxes, masks and key points none. Without
    any of these types, plain tensors of three or more axes are asked: in a mapping those whose key says so, such as
    ``"image"``, elsewhere the first; a list of nothing else is a list of images. Frames of a video share their mask;
    images of a batch have one each. It draws from torch's global generator. Like torchvision's transforms it does not
    follow ``eval()``.

    Args:
        p: Probability that an image is masked.
        settings: Any other setting of :class:`policy_noise.RandomShading`. Bytes are read as [0, 1]: ``mean=0, std=1``
            makes zero black.

    Shape:
        - images: (C, H, W) or (B, C, H, W); a ``Video`` (T, C, H, W) or (B, T, C, H, W); PIL images of mode L, RGB or
          F. Floating point or uint8.
        - Output: the same type, shape and dtype. Bytes are rounded, and clipped to 0 and 255.

    Raises:
        TypeError: If a sample holds no image, or a PIL image of another mode.
        ValueError: If images of one call differ in batch size, or with ``per_channel`` in their channels.

    Example:
        >>> transform = v2.Compose([RandomShading(mean=0.0, std=1.0), v2.ToImage()])
        >>> transform(PIL.Image.new("RGB", (32, 24))).shape
        torch.Size([3, 24, 32])
    """

    _transformed_types = (tv_tensors.Image, tv_tensors.Video, PIL.Image.Image)

    def __init__(self, p: float = 0.5, **settings: Any) -> None:
        super().__init__()
        self.shading = random_shading.RandomShading(p, **settings)

    def forward(self, *inputs: Any) -> Any:
        """Mask the images of a sample."""
        sample = inputs if len(inputs) > 1 else inputs[0]
        leaves = list(leaves_of(sample))
        if any(isinstance(leaf, tv_tensors.Image | tv_tensors.Video | PIL.Image.Image) for leaf in leaves):
            return super().forward(sample)
        # torchvision sees no keys. So what is an image is decided here, and marked for it.
        only_images = isinstance(sample, list) and len(sample) > 1 and all(map(_is_plain_image, sample))
        images = range(len(leaves)) if only_images else untyped_images(sample, _is_plain_image)
        result = super().forward(replace_leaves(sample, {i: tv_tensors.Image(leaves[i]) for i in images}))
        shaded = list(leaves_of(result))
        return replace_leaves(result, {i: shaded[i].as_subclass(Tensor) for i in images})

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw: a mask for each image of a batch, and for each video."""
        if not flat_inputs:
            raise TypeError("the sample holds no image: neither an Image, a Video or a PIL image nor a plain tensor")
        shapes = [_shape_without_frames(image) for image in flat_inputs]
        axes = self.shading.spatial_dims + 1
        counts = {
            "batch sizes": {math.prod(shape[:-axes]) for shape in shapes},
            "numbers of channels": {shape[-axes] for shape in shapes if self.shading.per_channel},
        }
        for name, found in counts.items():
            if len(found) > 1:
                each = " for each channel (per_channel=True)" if name == "numbers of channels" else ""
                raise ValueError(
                    f"images of one call share their masks{each}, so they cannot differ in {name}, got "
                    f"{[tuple(shape) for shape in shapes]}: pass them in calls of their own"
                )
        return {"sample": draw(self.shading, shapes[0], getattr(flat_inputs[0], "device", None))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Mask one image, video or batch."""
        sample: ShadingSample = params["sample"]
        if isinstance(inpt, PIL.Image.Image):
            if inpt.mode not in MODES:
                raise TypeError(f"PIL images must have mode L, RGB or F, got {inpt.mode!r}: convert it first")
            return F.to_pil_image(shade(self.shading, F.pil_to_tensor(inpt), sample), mode=inpt.mode)
        images = inpt.as_subclass(Tensor)
        single = images.ndim == self.shading.spatial_dims + 1
        if not single:
            images = images.flatten(0, -self.shading.spatial_dims - 2)
            sample = _repeated(sample, len(images))
        return tv_tensors.wrap(shade(self.shading, images, sample).view(inpt.shape), like=inpt)


def _shape_without_frames(image: Any) -> Sequence[int]:
    if isinstance(image, PIL.Image.Image):
        return F.get_dimensions(image)
    return (*image.shape[:-4], *image.shape[-3:]) if isinstance(image, tv_tensors.Video) else image.shape


def _repeated(sample: ShadingSample, count: int) -> ShadingSample:
    """A sample with each mask several times in a row, for the frames of videos."""
    times = count // max(1, len(sample.action))
    if times == 1:
        return sample
    return dataclasses.replace(
        sample, **{name: tensor.repeat_interleave(times, 0) for name, tensor in tensors_of(sample).items()}
    )
