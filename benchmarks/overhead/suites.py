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
    "r3d_18": "r3d_18",
}
VOLUMES = ("r3d_18",)
"""Networks of torchvision's that take (B, 3, D, H, W)."""
CLASSES = 100
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EVERY = 4
SPARSE = "learned, every fourth"
"""The policy learns from one step in :data:`EVERY`."""
ARMS = ("plain", "plain again", "random", "learned", SPARSE, "paper")
FEW = ("plain", "plain again", "random", "learned")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Configuration:
    """One cell of a suite.

    Args:
        grid: Cells along each axis for all variants. By default that of the presets.
        seconds: Time for the repetitions. At least six are made.
        repetitions: Largest number of repetitions.
        launches: Also count the operations that the hooks launch, on a GPU the kernels of a step, and check there that
            a step waits for nothing and that masks can be part of a CUDA graph.
    """

    model: str
    size: int = 224
    batch: int = 16
    grid: int | None = None
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    arms: tuple[str, ...] = FEW
    seconds: float = 10.0
    repetitions: int = 30
    launches: bool = False

    def label(self) -> str:
        parts = [self.model, f"{self.size} px", f"batch {self.batch}", self.precision]
        parts += [f"grid {self.grid}"] if self.grid else []
        parts += ["channels_last"] if self.channels_last else []
        parts += ["compiled"] if self.compile else []
        return ", ".join(parts)


SUITES = ("quick", "cpu", "small", "compiled", "launches", "gpu", "scaling")
PEERS = "peers"
"""Suite that times augmentations alone, without training steps."""


def suite(name: str) -> list[Configuration]:
    """The declared configurations."""
    if name == "quick":
        return [Configuration("resnet10t", 64, 8, arms=ARMS, seconds=6, launches=True)]
    if name == "cpu":
        paper = (*FEW, "paper")
        return [  # the declared goals first, so that a deadline cuts the others
            Configuration("resnet18", arms=paper, seconds=240),
            Configuration("resnet50", arms=paper, seconds=400),
            Configuration("resnet10t", arms=paper, seconds=90),
            Configuration("convnext_tiny", seconds=120),
            Configuration("vit_small", seconds=90),
        ]
    if name == "compiled":
        return [Configuration("resnet18", compile=True, seconds=180)]
    if name == "small":  # as MedMNIST is trained
        return [Configuration("resnet18", 28, arms=(*FEW, SPARSE), seconds=60, repetitions=100, launches=True)]
    if name == "launches":
        arms = (*FEW, SPARSE)
        return [Configuration("tiny", 64, 2, arms=arms, seconds=20, repetitions=200, launches=True)]
    if name == "gpu":  # every question of the page once, in under eight minutes with building and compiling
        arms = (*FEW, SPARSE)
        return [
            Configuration("resnet50", batch=128, arms=ARMS, seconds=14, launches=True),
            Configuration("resnet50", batch=128, precision="bf16", arms=ARMS, seconds=12, launches=True),
            Configuration("resnet18", batch=64, precision="bf16", arms=arms, seconds=7, launches=True),
            Configuration("resnet18", 28, 128, arms=arms, seconds=7, launches=True),
            Configuration("tiny", 64, 2, arms=arms, seconds=5, launches=True),
            Configuration("r3d_18", 64, 8, arms=arms, seconds=8, launches=True),
            Configuration("vit_small", batch=128, precision="bf16", seconds=8),
            Configuration("resnet50", batch=128, precision="bf16", channels_last=True, seconds=6),
            Configuration("resnet50", batch=128, precision="fp16", seconds=6),
            Configuration("resnet50", batch=128, precision="bf16", compile=True, seconds=8),
            Configuration("resnet18", 28, 128, precision="bf16", compile=True, seconds=6),
        ]
    if name == "scaling":
        base = Configuration("resnet18", 96, 16, arms=("plain", "learned"), seconds=6)
        models = ("resnet10t", "resnet50", "convnext_tiny", "vit_small")
        return [
            *(replace(base, size=size) for size in (96, 28, 64, 128, 224, 320)),
            *(replace(base, batch=batch) for batch in (8, 32, 64, 128)),
            *(replace(base, grid=grid) for grid in (16, 32, 64)),
            *(replace(base, model=model) for model in models),
            *(replace(base, size=512), replace(base, batch=256)),  # the longest last
        ]
    raise ValueError(f"suite must be one of {SUITES}, got {name!r}")
