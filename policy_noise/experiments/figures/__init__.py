"""The experiments' pictures, drawn by matplotlib without a display."""

from .data import class_histogram, intensity_histogram
from .differences import forest, rows_of_images
from .scores import calibration_curve, confusion_matrix, few_shot_curves, mistakes_gallery
from .style import COLOURS
from .training import training_diagnostics

__all__ = [
    "COLOURS",
    "calibration_curve",
    "class_histogram",
    "confusion_matrix",
    "few_shot_curves",
    "forest",
    "intensity_histogram",
    "mistakes_gallery",
    "rows_of_images",
    "training_diagnostics",
]
