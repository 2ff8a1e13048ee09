"""A package of medmnistc's form: its registry of corruptions by set, and AlexNet's errors."""

import random
import sys
from types import ModuleType

import numpy as np


class Corruption:
    """As in the package: five or six severities, an RGB image of Pillow in, uint8 (H, W, 3) out."""

    def __init__(self, work):
        self.severity_params, self.work = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], work

    def apply(self, img, severity=-1, augmentation=False):
        assert img.mode == "RGB"
        assert img.size == (224, 224)
        changed = self.work(self, np.array(img).astype(float), self.severity_params[severity])
        return changed.clip(0, 255).astype(np.uint8)


CORRUPTIONS_DS = {
    "breastmnist": {
        "impulse_noise": Corruption(lambda own, x, c: np.where(own.rng.random(x.shape) < c, 255, x)),
        "brightness_up": Corruption(lambda own, x, c: x + 100 * c),
        "stain_deposit": Corruption(lambda own, x, c: x + 100 * c * random.random() + np.random.normal(size=x.shape)),  # noqa: NPY002
    }
}
ALEXNET = {"impulse_noise": 0.4, "brightness_up": 0.2, "stain_deposit": 0.3}


def install(monkeypatch):
    """Stand in for the package."""
    modules = {name: ModuleType(f"medmnistc{name}") for name in ("", ".corruptions", ".corruptions.registry",
                                                                 ".utils", ".utils.baselines")}  # fmt: skip
    modules[".corruptions.registry"].CORRUPTIONS_DS = CORRUPTIONS_DS
    modules[".utils.baselines"].BASELINES = {"breastmnist": {"clean_score": 0.1, "raw_scores": ALEXNET}}
    for module in modules.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
