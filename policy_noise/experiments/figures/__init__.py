"""The experiments' pictures, drawn by matplotlib without a display."""

from .diagnostics import training_diagnostics
from .differences import forest, rows_of_images
from .histograms import class_histogram, intensity_histogram
from .scores import calibration_curve, confusion_matrix, few_shot_curves, mistakes_gallery
from .style import COLOURS

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
