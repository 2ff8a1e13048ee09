"""The variants of the training step by name, and the declared configurations."""

from dataclasses import dataclass, replace

import torch

MODELS = {
    "resnet10t": "resnet10t",
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "convnext_tiny": "convnext_tiny",
    "vit_small": "vit_small_patch16_224",
    "tiny": "test_resnet",
}
CLASSES = 100
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS = ("plain", "plain again", "default", "augment", "paper", "authors")
RIVALS = ("timm RandomErasing", "timm Mixup", "kornia RandomErasing")
EVERY = 4
SPARSE = "default, every fourth"
"""The policy learns from one step in :data:`EVERY`."""
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Configuration:
    """One cell of a suite.

    Args:
        grid: Cells along each axis for all variants. By default that of the presets.
        seconds: Time for the repetitions. At least six are made.
        repetitions: Largest number of repetitions.
        profile: Also measure the parts, the launched kernels and the checks, which depend on the model, not the batch.
        launches: Also count the operations that the presets default and augment launch on the device, by part, and
            time the parts of the former on the host.
    """

    model: str
    size: int = 224
    batch: int = 16
    grid: int | None = None
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    arms: tuple[str, ...] = OURS
    seconds: float = 10.0
    repetitions: int = 30
    profile: bool = False
    launches: bool = False

    def label(self) -> str:
        parts = [self.model, f"{self.size} px", f"batch {self.batch}", self.precision]
        parts += [f"grid {self.grid}"] if self.grid else []
        parts += ["channels_last"] if self.channels_last else []
        parts += ["compiled"] if self.compile else []
        return ", ".join(parts)


SUITES = ("quick", "cpu", "compiled", "launches", "gpu", "scaling")
PEERS = "peers"
"""Suite that times augmentations alone, without training steps."""


def suite(name: str) -> list[Configuration]:
    """The declared configurations."""
    if name == "quick":
        return [Configuration("resnet10t", 64, 8, arms=(*OURS, *RIVALS), seconds=6, profile=True)]
    if name == "cpu":
        few = ("plain", "plain again", "default", "augment")
        return [  # the declared goals first, so that a deadline cuts the others
            Configuration("resnet18", arms=(*OURS, *RIVALS), seconds=240, profile=True),
            Configuration("resnet50", seconds=400),
            Configuration("resnet10t", seconds=90),
            Configuration("convnext_tiny", arms=few, seconds=120),
            Configuration("vit_small", arms=few, seconds=90),
        ]
    if name == "compiled":
        arms = ("plain", "plain again", "default", "augment")
        return [Configuration("resnet18", compile=True, arms=arms, seconds=180)]
    if name == "launches":
        arms = ("plain", "plain again", "default", SPARSE, "augment")
        return [Configuration("tiny", 64, 2, arms=arms, seconds=20, repetitions=200, launches=True)]
    if name == "gpu":
        few = ("plain", "default", "augment", SPARSE)
        compiled = (*OURS, SPARSE, "default, policy as graphs")
        return [
            Configuration("resnet50", batch=64, precision="bf16", seconds=8, profile=True),
            Configuration("resnet18", batch=256, precision="bf16", seconds=8, profile=True),
            Configuration("resnet50", batch=128, precision="fp32", seconds=14, profile=True),
            Configuration("resnet18", batch=256, precision="fp32", seconds=12),
            Configuration("resnet50", batch=128, precision="bf16", arms=(*OURS, *RIVALS), seconds=12),
            Configuration("resnet18", batch=64, precision="bf16", arms=compiled, seconds=7),
            Configuration("vit_small", batch=128, precision="bf16", seconds=8),
            Configuration("resnet50", batch=128, precision="bf16", channels_last=True, arms=few, seconds=5),
            Configuration("resnet18", batch=256, precision="bf16", channels_last=True, arms=few, seconds=4),
            Configuration("resnet50", batch=128, precision="fp16", arms=few, seconds=5),
            Configuration("resnet18", batch=256, precision="fp16", arms=few, seconds=4),
            Configuration("resnet50", batch=64, precision="fp32", arms=few, seconds=6),
            Configuration("resnet18", batch=64, precision="fp32", arms=few, seconds=4),
            Configuration("vit_small", batch=64, precision="fp32", arms=few, seconds=5),
            Configuration("convnext_tiny", batch=128, precision="bf16", channels_last=True, arms=few, seconds=5),
            Configuration("resnet50", batch=128, precision="bf16", compile=True, arms=few, seconds=6),
        ]
    if name == "scaling":
        base = Configuration("resnet18", 96, 16, arms=("plain", "default"), seconds=6)
        return [
            *(replace(base, size=size) for size in (96, 28, 64, 128, 224, 320)),
            *(replace(base, batch=batch) for batch in (8, 32, 64, 128)),
            *(replace(base, grid=grid) for grid in (16, 32, 64)),
            *(replace(base, model=model) for model in MODELS if model not in ("resnet18", "tiny")),
            *(replace(base, size=512), replace(base, batch=256)),  # the longest last
        ]
    raise ValueError(f"suite must be one of {SUITES}, got {name!r}")
