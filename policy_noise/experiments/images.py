"""Reading an image file as 8 bits: all Pillow modes, windows for deeper images, orientation."""

import os
import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..utils.files import PathLike

__all__ = ["Header", "TooDeep", "Window", "apply_window", "read_header", "read_image"]

Window = tuple[float, float] | Literal["auto"] | None

# How each of Pillow's modes becomes grey or RGB. "window": more than 8 bits, which `convert` would clip to white.
# Alpha is dropped: a transparent pixel keeps the colour that the file gives it. "colour" goes through RGB first, since
# Pillow converts these modes to nothing else, or would weigh the palette's transparency in.
MODES = {
    "1": "direct",
    "L": "direct",
    "LA": "direct",
    "RGB": "direct",
    "RGBX": "direct",
    "YCbCr": "direct",
    "P": "colour",
    "PA": "colour",
    "RGBA": "colour",
    "CMYK": "colour",
    "HSV": "colour",
    "I;16": "window",
    "I;16L": "window",
    "I;16B": "window",
    "I;16N": "window",
    "I": "window",
    "F": "window",
}


class TooDeep(ValueError):
    """An image of more than 8 bits that would silently lose them. It is not a bad file, so it is never skipped."""


@dataclass(frozen=True)
class Header:
    """Properties of an image, from the file's header.

    Args:
        deep: Whether it is grayscale with more than 8 bits.
        alpha: Whether it has transparency, which is dropped.
    """

    deep: bool
    alpha: bool


def read_header(path: PathLike) -> Header:
    """Read a file's header without decoding its pixels.

    Raises:
        TooDeep: If it has more than 8 bits per channel and Pillow would keep only the upper 8.
        ValueError: If the mode is unknown.
        OSError: If it is not an image.
    """
    from PIL import Image

    with open(path, "rb") as file:
        if _is_plain_png(file.read(256)):  # the usual case, and much faster than Pillow
            return Header(deep=False, alpha=False)
    with Image.open(path) as opened:
        how = _how(opened, path)
        alpha = "A" in opened.mode or "transparency" in opened.info
        return Header(how == "window", alpha)


def _is_plain_png(head: bytes) -> bool:
    """Whether a file starts as a PNG of usual size, grayscale or RGB with up to 8 bits and no transparency."""
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        return False
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    before, pixels, _ = head.partition(b"IDAT")
    return depth <= 8 and colour in (0, 2) and 0 < width * height <= 1 << 26 and bool(pixels) and b"tRNS" not in before


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
    return 16 if ";16" in str(raw) or maxval > 255 else 8


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
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        how = _how(opened, path)
        maxval = 65535
        if how == "window" and opened.format == "PPM" and isinstance(opened.tile[0][3], tuple):
            maxval = opened.tile[0][3][1]
        image = ImageOps.exif_transpose(opened)
        if how == "window":
            values = np.asarray(image)
            if maxval != 65535:  # Pillow has stretched the values to 0..65535
                values = (values.astype(np.float64) * (maxval / 65535)).round().astype(np.int32)
            low, high = values.min(), values.max()
            if window is not None:
                grey = apply_window(values, window)
            elif image.mode != "F" and low >= 0 and high <= 255:
                grey = values.astype(np.uint8)
            else:
                raise TooDeep(
                    f"{os.fspath(path)} has more than 8 bits (mode {opened.mode}, values {low} to {high}): pass "
                    "--window LOW HIGH, the values that become black and white, or --window auto for each file's own"
                )
            if getattr(opened, "tag_v2", {}).get(262) == 0:  # TIFF's WhiteIsZero, which Pillow leaves at these depths
                grey = 255 - grey
            image = Image.fromarray(grey)
        elif how == "colour":
            image = image.convert("RGB")
        return np.asarray(image.convert("L" if in_chans == 1 else "RGB"))
