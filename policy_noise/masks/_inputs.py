"""Find the images in a data set's samples, beside labels, boxes and names."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..utils.misc import keyed_leaves, leaves_of

__all__ = ["apply_to_images", "replace_leaves", "untyped_images"]

NAMES = {
    "image",
    "images",
    "img",
    "imgs",
    "pixel_values",
    "video",
    "videos",
    "volume",
    "volumes",
    "input",
    "inputs",
    "x",
}
"""Keys of a mapping that name its images, with or without a number behind them."""
REMEDY = (
    "name the key 'image', wrap each image in torchvision's tv_tensors.Image, or say which are images with a transform "
    "of policy_noise.adapters"
)


def apply_to_images(transform: Callable[[Tensor], Tensor], sample: Any, labels: tuple[Any, ...]) -> Any:
    """Transform the images of a sample and leave the rest unchanged.

    All ``tv_tensors.Image`` and ``tv_tensors.Video`` are images. If there are none, the floating-point tensors of three
    or more axes are asked: in a mapping, those whose key says so, such as ``"image"`` or ``"pixel_values"``; elsewhere
    the first, as in ``(image, target)``.

    Args:
        transform: A function from images to images.
        sample: A tensor, or a tuple, list or mapping.
        labels: The call's other arguments.

    Raises:
        TypeError: If the sample holds no images, or it is not clear which they are.
    """
    whole = (sample, *labels) if labels else sample
    leaves = list(leaves_of(whole))
    chosen = [i for i, x in enumerate(leaves) if type(x).__name__ in ("Image", "Video") and isinstance(x, Tensor)]
    if not chosen:
        chosen = untyped_images(whole, _is_image)
    if not chosen:
        got = [f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__ for x in leaves]
        raise TypeError(f"images must be floating-point tensors of three axes or more, got {got}: convert them first")
    # Arithmetic returns plain tensors. Later transforms need the subclass, to tell images from masks.
    return replace_leaves(whole, {i: transform(leaves[i]).as_subclass(type(leaves[i])) for i in chosen})


def _is_image(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 2


def untyped_images(whole: Any, is_image: Callable[[Any], bool]) -> list[int]:
    """Find the images among the tensors of a sample, by the keys of its mappings or by their place.

    Args:
        whole: The sample.
        is_image: Whether a leaf can be an image.

    Returns:
        Their numbers among the leaves. (Two leaves may be the same tensor, as an autoencoder's image and target.)

    Raises:
        TypeError: If it is not clear which they are.
    """
    candidates = [(key, i) for i, (key, leaf) in enumerate(keyed_leaves(whole)) if is_image(leaf)]
    if not candidates:
        return []
    named = [i for key, i in candidates if isinstance(key, str) and _unnumbered(key) in NAMES]
    in_order = [i for key, i in candidates if key is None]
    if (named and in_order) or not (named or in_order):
        keys = [key for key, _ in candidates if key is not None]
        raise TypeError(f"which tensors are images is not clear from the keys {keys}: {REMEDY}")
    if isinstance(whole, list) and len(whole) > 1 and len(in_order) == len(whole):
        raise TypeError(
            f"a list of {len(whole)} tensors may hold images only, or an image and its target: for the second pass a "
            f"tuple, else {REMEDY}"
        )
    return named or in_order[:1]


def _unnumbered(key: str) -> str:
    """A key without the number of one of several images: ``image`` for ``image2`` and ``Image_2``."""
    return key.lower().rstrip("0123456789").rstrip("_-")


def replace_leaves(whole: Any, replacements: Mapping[int, Any]) -> Any:
    """Replace leaves of nested mappings, lists and tuples, given by their numbers."""
    numbers = itertools.count()

    def replaced(value: Any) -> Any:
        if isinstance(value, Mapping):
            return type(value)({name: replaced(item) for name, item in value.items()})  # type: ignore[call-arg]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(replaced, value))
        if isinstance(value, list | tuple):
            return type(value)(map(replaced, value))
        return replacements.get(next(numbers), value)

    return replaced(whole)
