"""One image file as 8 bits: every Pillow mode, the window of deeper images, orientation."""

import os
from typing import Literal

import numpy as np

__all__ = ["NeedsWindow", "Window", "apply_window", "read_image"]

PathLike = str | os.PathLike[str]
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


class NeedsWindow(ValueError):
    """An image of more than 8 bits was read without a window. Not a bad file: it is never skipped."""


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """Map grey values to 0..255, linearly between the window's ends and clipped outside.

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
    """Decode a file, turned as its EXIF orientation says; of several frames the first.

    Args:
        path: The file.
        in_chans: 1 for grey, 3 for RGB.
        window: For images of more than 8 bits; others are left as they are. Without one such an image is taken only
            if it is of integers that all lie in 0..255.

    Returns:
        uint8, (H, W) or (H, W, 3).

    Raises:
        NeedsWindow: If the image has more than 8 bits and there is no window.
        ValueError: If the mode is unknown.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        how = MODES.get(opened.mode)
        if how is None:
            raise ValueError(f"mode {opened.mode} is not read, only {', '.join(MODES)}")
        image = ImageOps.exif_transpose(opened)
        if how == "window":
            values = np.asarray(image)
            low, high = values.min(), values.max()
            if window is not None:
                grey = apply_window(values, window)
            elif image.mode != "F" and low >= 0 and high <= 255:
                grey = values.astype(np.uint8)
            else:
                raise NeedsWindow(
                    f"{os.fspath(path)} has more than 8 bits (mode {opened.mode}, values {low} to {high}): pass "
                    "--window LOW HIGH, the values that become black and white, or --window auto for each file's own"
                )
            if getattr(opened, "tag_v2", {}).get(262) == 0:  # TIFF's WhiteIsZero, which Pillow leaves at these depths
                grey = 255 - grey
            image = Image.fromarray(grey)
        elif how == "colour":
            image = image.convert("RGB")
        return np.asarray(image.convert("L" if in_chans == 1 else "RGB"))
