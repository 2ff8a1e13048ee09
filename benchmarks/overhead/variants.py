"""The training steps that are compared: plain, and with the package's masks."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn

import policy_noise
from benchmarks.overhead.suites import CLASSES, EVERY, MEAN, MODELS, PRECISIONS, SPARSE, STD, VOLUMES, Configuration


@dataclass
class Variant:
    """A variant of the training step, and its measurements."""

    step: Callable[[], None]
    hook: policy_noise.ReinforceHook | None = None
    static: int = 0
    peak: int | None = None
    times: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)

    @property
    def period(self) -> int:
        """The number of steps after which the pattern of steps repeats."""
        return 1 if self.hook is None else self.hook.learner.update_every

    def close(self) -> None:
        """Remove the hook, which would keep the model alive and react to other variants' steps."""
        if self.hook is not None:
            self.hook.remove()


def make_model(configuration: Configuration, device: torch.device) -> nn.Module:
    if configuration.model in VOLUMES:
        from torchvision.models import get_model

        return get_model(MODELS[configuration.model], num_classes=CLASSES).to(device).train()
    name = MODELS[configuration.model]
    extra = {"img_size": configuration.size} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=CLASSES, **extra).to(device)
    if configuration.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model.train()


def make_batch(configuration: Configuration, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    axes = 3 if configuration.model in VOLUMES else 2
    images = torch.rand(configuration.batch, 3, *[configuration.size] * axes, generator=generator)
    mean, std = (torch.tensor(values).view(3, *[1] * axes) for values in (MEAN, STD))
    images = ((images - mean) / std).to(device)
    if configuration.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.randint(CLASSES, (configuration.batch,), generator=generator).to(device)


def make_variant(name: str, configuration: Configuration, device: torch.device) -> Variant:
    """Make a variant with its own model, optimizer and step."""
    torch.manual_seed(0)
    images, targets = make_batch(configuration, device)
    model = make_model(configuration, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()
    if configuration.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    dtype = PRECISIONS[configuration.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def autocast() -> Any:
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)

    hook = None
    settings: dict[str, Any] = {"mean": MEAN, "std": STD}
    if name == "random":
        hook = policy_noise.attach(model, optimizer, preset="random", **settings)
    elif name in ("learned", SPARSE):
        if configuration.grid:
            settings["grid_size"] = configuration.grid
        if name == SPARSE:
            settings["update_every"] = EVERY
        hook = policy_noise.attach(model, optimizer, criterion, preset="learned", **settings)
    elif name == "paper":
        grid = configuration.grid or min(64, configuration.size // 2)
        hook = policy_noise.attach(model, optimizer, criterion, preset="paper", grid_size=grid)
    elif name not in ("plain", "plain again"):
        raise ValueError(f"unknown training step {name!r}")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = criterion(model(images), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return Variant(step, hook)
