"""Reading an image file as 8 bits: all Pillow modes, windows for deeper images, orientation, palettes, proportions."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..utils.files import PathLike

__all__ = [
    "FITS",
    "Header",
    "Reading",
    "TooDeep",
    "Window",
    "apply_window",
    "as_square",
    "count_unfinite",
    "pixels",
    "read_header",
    "read_image",
    "span",
]

Window = tuple[float, float] | Literal["auto"] | None
FITS = ("stretch", "crop", "pad")

# How each of Pillow's modes becomes grey or RGB. "window": more than 8 bits, which `convert` would clip to white.
# Alpha is dropped: a transparent pixel keeps the colour that the file gives it. "colour" goes through RGB first, since
# Pillow converts these modes to nothing else, or would weigh the palette's transparency in.
MODES = {
    **dict.fromkeys(("1", "L", "LA", "RGB", "RGBX", "YCbCr"), "direct"),
    **dict.fromkeys(("P", "PA", "RGBA", "CMYK", "HSV"), "colour"),
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N", "I", "F"), "window"),
}


class TooDeep(ValueError):
    """An image of more than 8 bits that would silently lose them. It is not a bad file, so it is never skipped."""


@dataclass(frozen=True)
class Reading:
    """How image files become pixels.

    Args:
        size: Side in pixels to which images are resized.
        in_chans: 1 for grey, 3 for RGB.
        window: For images of more than 8 bits, see :func:`read_image`.
        fit: What becomes of images that are not square, see :func:`as_square`.
        skip_bad_files: Leave out files that are missing or cannot be read, each named in a warning, instead of raising.
    """

    size: int
    in_chans: int = 1
    window: Window = None
    fit: str = "stretch"
    skip_bad_files: bool = False


@dataclass(frozen=True)
class Header:
    """Properties of an image, from the file's header.

    Args:
        size: Width and height in pixels, before the EXIF orientation is applied.
        deep: Whether it is grayscale with more than 8 bits.
        floats: Whether its values are floating point, so that some may not be finite.
        alpha: Whether it has transparency, which is dropped.
        frames: Number of frames or pages, of which only the first is read.
    """

    size: tuple[int, int]
    deep: bool = False
    floats: bool = False
    alpha: bool = False
    frames: int = 1


@contextmanager
def _opened(path: PathLike) -> Iterator[Any]:
    """Open a file for Pillow, as a file object: one opened by its path may be mapped into memory, and then a TIFF that
    lies on its side comes out scrambled (Pillow 11.3 to 13.0).
    """
    from PIL import Image

    with open(path, "rb") as file, Image.open(file) as opened:
        yield opened


def read_header(path: PathLike) -> Header:
    """Read a file's header without decoding its pixels.

    Raises:
        TooDeep: If it has more than 8 bits per channel and Pillow would keep only the upper 8.
        ValueError: If the mode is unknown.
        OSError: If it is not an image.
    """
    with _opened(path) as opened:
        deep = _how(opened, path) == "window"
        alpha = "A" in opened.mode or "transparency" in opened.info
        return Header(opened.size, deep, opened.mode == "F", alpha, getattr(opened, "n_frames", 1))


def _how(opened: Any, path: PathLike) -> str:
    """How an opened image becomes grey or RGB, see :data:`MODES`."""
    how = MODES.get(opened.mode)
    if how is None:
        raise ValueError(f"mode {opened.mode} is not read, only {', '.join(MODES)}")
    if how != "window":
        tags = getattr(opened, "tag_v2", {})
        if any(depth > 8 for depth in tags.get(258, ())) or _raw_depth(opened) > 8:
            raise TooDeep(
                f"{os.fspath(path)} has 16 bits a channel (mode {opened.mode}), of which only the upper 8 would be "
                "read: save it with 8, or as grey without alpha for --window"
            )
        if 2 in tags.get(339, ()):  # Pillow takes -128..127 for 0..255
            raise TooDeep(f"{os.fspath(path)} holds signed values (mode {opened.mode}): save them as 0..255")
    return how


def _raw_depth(opened: Any) -> int:
    """Bits per channel in the file, 16 or 8, judged from how Pillow will unpack it."""
    if not opened.tile:
        return 8
    parameters = opened.tile[0][3]
    raw, *more = parameters if isinstance(parameters, tuple) else (parameters,)
    maxval = more[0] if opened.format == "PPM" and more and isinstance(more[0], int) else 255
    deep = ";16" in str(raw) and not str(raw).startswith("BGR")  # BGR;16 is a bitmap of 16 bits a pixel
    return 16 if deep or maxval > 255 else 8


def count_unfinite(values: np.ndarray) -> int:
    """Number of values that are NaN or infinite."""
    return int(np.count_nonzero(~np.isfinite(values))) if values.dtype.kind == "f" else 0


def span(values: np.ndarray) -> str:
    """The range of values in words, with the number of those that are not finite."""
    bad = count_unfinite(values)
    finite = values[np.isfinite(values)] if bad else values
    said = f"{finite.min()} to {finite.max()}" if finite.size else "none finite"
    return said + (f", and {bad} that are NaN or infinite" if bad else "")


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """Map values to 0..255, linearly between the window's ends and clipped outside.

    Args:
        values: Numbers of any type. NaN becomes 0.
        window: Low and high, or ``"auto"`` for the minimum and maximum of the finite values.

    Returns:
        uint8 of the same shape.
    """
    wide = values.astype(np.float64)
    if window == "auto":
        finite = wide[np.isfinite(wide)]
        low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    else:
        assert window is not None
        low, high = window
    scaled = (wide - low) * (255 / (high - low if high > low else 1.0))
    return np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255).round().astype(np.uint8)


def as_square(images: np.ndarray, fit: str, *, axis: int = 0) -> np.ndarray:
    """Make images square: crop the middle, or pad with black. ``"stretch"`` leaves that to the resizing.

    Args:
        images: Height and width in the axes ``axis`` and ``axis + 1``.
        fit: One of :data:`FITS`.
        axis: 0 for one image, 1 for a batch.
    """
    high, wide = images.shape[axis : axis + 2]
    if fit == "stretch" or high == wide:
        return images
    if fit == "crop":
        side = min(high, wide)
        top, left = (high - side) // 2, (wide - side) // 2
        return images[(slice(None),) * axis + (slice(top, top + side), slice(left, left + side))]
    margins = [(0, 0)] * images.ndim
    for place, length in ((axis, high), (axis + 1, wide)):
        missing = max(high, wide) - length
        margins[place] = (missing // 2, missing - missing // 2)
    return np.pad(images, margins)


def _upright(opened: Any, how: str) -> Any:
    """The image after its EXIF orientation: Pillow's 8-bit image, or the values of a deeper one as an array."""
    from PIL import ImageOps

    tags = getattr(opened, "tag_v2", {})
    scale = opened.tile[0][3] if opened.format == "PPM" and opened.mode == "I" else None
    image = ImageOps.exif_transpose(opened)
    if how != "window":
        colours = tags.get(320, ())
        if opened.mode == "P" and colours and max(colours) <= 255:  # Pillow takes the upper byte of 16 bits: all black
            image.putpalette(bytes(colours), "RGB;L")
        return image.convert("RGB") if how == "colour" else image
    values = np.asarray(image)
    if isinstance(scale, tuple) and scale[1] != 65535:  # Pillow has stretched the values to 0..65535
        values = (values.astype(np.float64) * (scale[1] / 65535)).round().astype(np.int32)
    if opened.mode == "I" and opened.format == "TIFF" and 2 not in tags.get(339, ()):  # unsigned, which Pillow ignores
        values = values.view(np.uint32)
    return values


def pixels(path: PathLike) -> np.ndarray:
    """What a file shows, at its full depth: uint8 (H, W, 3), or the values of a grey image of more than 8 bits."""
    with _opened(path) as opened:
        image = _upright(opened, MODES.get(opened.mode, "colour"))
        return image if isinstance(image, np.ndarray) else np.asarray(image.convert("RGB"))


def read_image(path: PathLike, in_chans: int, window: Window = None) -> np.ndarray:
    """Decode a file and apply its EXIF orientation. Of several frames the first is used.

    Args:
        path: The file.
        in_chans: 1 for grey, 3 for RGB.
        window: For images of more than 8 bits; others are left as they are. Without one such an image is taken only
            if it is of integers that all lie in 0..255.

    Returns:
        uint8, (H, W) or (H, W, 3).

    Raises:
        TooDeep: If the image has more than 8 bits and there is no window, or they are those of colours.
        ValueError: If the mode is unknown.
    """
    from PIL import Image

    with _opened(path) as opened:
        image = _upright(opened, _how(opened, path))
        if isinstance(image, np.ndarray):
            if window is not None:
                grey = apply_window(image, window)
            elif image.dtype.kind != "f" and image.min() >= 0 and image.max() <= 255:
                grey = image.astype(np.uint8)
            else:
                raise TooDeep(
                    f"{os.fspath(path)} has more than 8 bits (mode {opened.mode}, values {span(image)}): pass "
                    "--window LOW HIGH, the values that become black and white, or --window auto for each file's own"
                )
            if getattr(opened, "tag_v2", {}).get(262) == 0:  # TIFF's WhiteIsZero, which Pillow leaves at these depths
                grey = 255 - grey
            image = Image.fromarray(grey)
        return np.asarray(image.convert("L" if in_chans == 1 else "RGB"))
