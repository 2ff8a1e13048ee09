"""Find the images in a data set's samples, as torchvision's v2 transforms do: beside labels, boxes and names."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..utils.trees import leaves_of

__all__ = ["apply_to_images"]


def apply_to_images(transform: Callable[[Tensor], Tensor], sample: Any, labels: tuple[Any, ...]) -> Any:
    """Transform the images of a sample and leave the rest unchanged.

    All ``tv_tensors.Image`` and ``tv_tensors.Video`` are images. If there are none, the first floating-point tensor
    with three or more axes is the image. This is torchvision's rule, too.

    Args:
        transform: A function from images to images.
        sample: A tensor, or a tuple, list or mapping.
        labels: The call's other arguments.

    Raises:
        TypeError: If the sample holds no images.
    """
    whole = (sample, *labels) if labels else sample
    leaves = list(leaves_of(whole))
    chosen = [leaf for leaf in leaves if type(leaf).__name__ in ("Image", "Video") and isinstance(leaf, Tensor)]
    if not chosen:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        chosen = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.ndim > 2][:1]
    if not chosen:
        got = [f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__ for x in leaves]
        raise TypeError(f"images must be floating-point tensors of three axes or more, got {got}: convert them first")
    # Arithmetic returns plain tensors. Later transforms need the subclass, to tell images from masks.
    return _replace(whole, {id(leaf): transform(leaf).as_subclass(type(leaf)) for leaf in chosen})


def _replace(value: Any, images: dict[int, Tensor]) -> Any:
    if isinstance(value, Mapping):
        return type(value)({name: _replace(item, images) for name, item in value.items()})  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_replace(item, images) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_replace(item, images) for item in value)
    return images.get(id(value), value)
