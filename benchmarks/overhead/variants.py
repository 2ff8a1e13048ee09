"""The training steps that are compared: plain, the package's, the authors' code, and common augmentations."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import kornia
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import policy_noise
from benchmarks.overhead.suites import CLASSES, EVERY, MEAN, MODELS, PRECISIONS, SPARSE, STD, Configuration


class AuthorsPolicy(nn.Module):
    """The published policy at its published cost: a resnet10t on the full image, with two heads run twice per step."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.backbone = timm.create_model("resnet10t", num_classes=0)
        features = int(self.backbone.num_features)  # type: ignore[arg-type]

        def head() -> nn.Sequential:
            block = [nn.Linear(features, 512), nn.BatchNorm1d(512), nn.ReLU()]
            return nn.Sequential(*block, nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, grid**2))

        self.alpha, self.beta = head(), head()
        self.base_alpha: Tensor
        self.base_beta: Tensor
        self.register_buffer("base_alpha", torch.rand(grid**2))
        self.register_buffer("base_beta", torch.rand(grid**2))

    def forward(self, images: Tensor) -> torch.distributions.Beta:
        features = self.backbone(images)
        alpha = (0.9 * self.base_alpha + 0.1 * self.alpha(features).float()).exp()
        beta = (0.9 * self.base_beta + 0.1 * self.beta(features).float()).exp()
        with torch.no_grad():
            self.base_alpha = 0.99 * self.base_alpha + 0.01 * self.alpha(features).float().mean(0)
            self.base_beta = 0.99 * self.base_beta + 0.01 * self.beta(features).float().mean(0)
        return torch.distributions.Beta(alpha, beta, validate_args=False)


def dense_blur(mask: Tensor, kernel_size: int = 13, sigma: float = 6.0) -> Tensor:
    """A Gaussian blur as one dense two-dimensional convolution."""
    offsets = torch.arange(kernel_size, device=mask.device, dtype=mask.dtype) - kernel_size // 2
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = torch.outer(weights, weights) / weights.sum().square()
    padded = F.pad(mask, [kernel_size // 2] * 4, mode="reflect")
    return F.conv2d(padded, kernel[None, None])


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
    name = MODELS[configuration.model]
    extra = {"img_size": configuration.size} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=CLASSES, **extra).to(device)
    if configuration.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model.train()


def make_batch(configuration: Configuration, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (configuration.batch, 3, configuration.size, configuration.size)
    images = kornia.enhance.normalize(torch.rand(shape, generator=generator), torch.tensor(MEAN), torch.tensor(STD))
    images = images.to(device)
    if configuration.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.randint(CLASSES, (configuration.batch,), generator=generator).to(device)


def make_variant(name: str, configuration: Configuration, device: torch.device) -> Variant:
    """Make a variant with its own model, optimizer and step."""
    torch.manual_seed(0)
    images, targets = make_batch(configuration, device)
    model = make_model(configuration, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    criterion: nn.Module = nn.CrossEntropyLoss()
    if configuration.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    dtype = PRECISIONS[configuration.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def autocast() -> Any:
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)

    hook = None
    prepare: Callable[[], tuple[Tensor, Tensor]] = lambda: (images, targets)  # noqa: E731
    optimizers: list[torch.optim.Optimizer] = [optimizer]
    forward: Callable[[Tensor, Tensor], Tensor] = lambda x, y: criterion(model(x), y)  # noqa: E731
    grid = configuration.grid or min(64, configuration.size // 2)
    if name == "augment":
        hook = policy_noise.attach(model, optimizer, preset="random", mean=MEAN, std=STD)
    elif name.startswith("default"):
        settings: dict[str, Any] = {"mean": MEAN, "std": STD}
        if configuration.grid:
            settings["grid_size"] = configuration.grid
        if name == SPARSE:
            settings["update_every"] = EVERY
        hook = policy_noise.attach(model, optimizer, criterion, **settings)
        if name == "default, policy as graphs":  # CUDA graphs, of its forward and of its backward
            hook.augmentation.policy.compile(mode="reduce-overhead")
    elif name == "paper":
        hook = policy_noise.attach(model, optimizer, criterion, preset="paper", grid_size=grid)
    elif name == "authors":
        policy = AuthorsPolicy(grid).to(device)
        optimizers.append(torch.optim.SGD(policy.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4))
        run_policy = torch.compile(policy) if configuration.compile else policy

        def forward(x: Tensor, y: Tensor) -> Tensor:
            distribution = run_policy(x)
            action = distribution.sample()
            enlarged = F.interpolate(action.view(-1, 1, grid, grid), x.shape[2:], mode="nearest")
            loss = criterion(model(x * dense_blur(enlarged)), y)
            return (distribution.log_prob(action).exp().sum(1).log() * loss).mean()

    elif name == "timm RandomErasing":
        from timm.data.random_erasing import RandomErasing

        erase = RandomErasing(probability=0.25, mode="pixel", device=device.type)
        prepare = lambda: (erase(images), targets)  # noqa: E731
    elif name == "timm Mixup":
        from timm.data import Mixup
        from timm.loss import SoftTargetCrossEntropy

        mixup, criterion = Mixup(mixup_alpha=0.2, num_classes=CLASSES), SoftTargetCrossEntropy()
        prepare = lambda: mixup(images, targets)  # noqa: E731
    elif name == "kornia RandomErasing":
        erasing = kornia.augmentation.RandomErasing(p=0.25)
        prepare = lambda: (erasing(images), targets)  # noqa: E731
    elif not name.startswith("plain"):
        raise ValueError(f"unknown training step {name!r}")

    def step() -> None:
        x, y = prepare()
        for each in optimizers:
            each.zero_grad(set_to_none=True)
        with autocast():
            loss = forward(x, y)
        scaler.scale(loss).backward()
        for each in optimizers:
            scaler.step(each)
        scaler.update()

    return Variant(step, hook)
