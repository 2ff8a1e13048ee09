"""What the noise mask costs: time, memory and kernels of a training step, beside the authors' recipe.

    python benchmarks/overhead.py --suite cpu --threads 2 --deadline 1800
    python benchmarks/overhead.py --suite compiled --threads 2
    python benchmarks/overhead.py --suite scaling --threads 2 --deadline 540
    python benchmarks/overhead.py --suite launches --threads 1
    python benchmarks/overhead.py --suite gpu --output results
    python benchmarks/overhead.py --suite quick --models resnet18 --sizes 32 64 --batches 8

Every configuration builds all its arms (the plain step and its rivals) side by side and times them interleaved, in a
shuffled order within each repetition, so that a disturbance of the machine meets all of them alike. A cost is the
median over repetitions of the ratio to the plain step of the same repetition; its interval is that of the median from
order statistics (95 %, no distribution assumed). The arm "plain again" is the plain step once more: how far its
interval lies from 1 is what this machine cannot resolve. On a CPU, whose noise hides some per cent, the time that the
package's hooks take is read within each step as well, and compared with the rest of the same step: all but what the
classifier may lose by it (caches). Peak memory is the most that PyTorch's allocator holds at once for an arm, with its
model and optimizer; on a CPU it is counted from the profiler's record, and the same in every run.

Results are written after each configuration to OUTPUT/overhead-SUITE.json and as a table (.md), and at the end as a
plot (.png); ``--report FILE.json`` makes those two again without measuring. A configuration that fails is recorded with
its error, and the others go on.
"""

import argparse
import gc
import json
import math
import os
import platform
import random
import re
import sys
import tempfile
import time
import traceback
import unittest.mock
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import kornia
import timm
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from scipy.stats import quantile_test
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

import policy_noise
import policy_noise.functional as PF
from policy_noise.experiments.statistics import t_interval

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
GOALS = {
    ("resnet50", "time"): 1.03,
    ("resnet18", "time"): 1.05,
    ("resnet50", "memory"): 1.03,
    ("resnet18", "memory"): 1.03,
}


@dataclass(frozen=True)
class Configuration:
    """One cell of a suite.

    Args:
        grid: Cells along each axis, of all arms; by default the presets' own.
        seconds: Time to spend on the repetitions; at least six are made.
        repetitions: Most of them.
        profile: Also the split, the launched kernels and the checks, which belong to the model and not to its batch.
        launches: Also what the presets default and augment ask of the device, part by part, and the time that the parts
            of the former take on the host.
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


def suite(name: str) -> list[Configuration]:
    """The declared configurations."""
    if name == "quick":
        return [Configuration("resnet10t", 64, 8, arms=(*OURS, *RIVALS), seconds=6, profile=True)]
    if name == "cpu":
        few = ("plain", "plain again", "default", "augment")
        return [  # what was aimed at first, so that a deadline cuts the rest
            Configuration("resnet18", arms=(*OURS, *RIVALS), seconds=240, profile=True),
            Configuration("resnet50", seconds=400),
            Configuration("resnet10t", seconds=90),
            Configuration("convnext_tiny", arms=few, seconds=120),
            Configuration("vit_small", arms=few, seconds=90),
        ]
    if name == "compiled":
        arms = ("plain", "plain again", "default", "augment", "default, compiled mask")
        return [Configuration("resnet18", compile=True, arms=arms, seconds=180)]
    if name == "launches":
        arms = ("plain", "plain again", "default", SPARSE, "augment")
        return [Configuration("tiny", 64, 2, arms=arms, seconds=20, repetitions=200, launches=True)]
    if name == "gpu":
        few = ("plain", "default", "augment", SPARSE)
        compiled = (*OURS, SPARSE, "default, compiled mask", "default, policy as graphs")
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


# -- the authors' recipe -----------------------------------------------------------------------------------------------


class AuthorsPolicy(nn.Module):
    """The published policy at its published cost: a resnet10t on the full image, whose two heads run twice a step."""

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


# -- the arms ----------------------------------------------------------------------------------------------------------


@dataclass
class Arm:
    """A training step that can be repeated, and what was measured of it."""

    step: Callable[[], None]
    hook: policy_noise.ReinforceHook | None = None
    static: int = 0
    peak: int | None = None
    times: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)

    @property
    def period(self) -> int:
        """Steps after which all repeats."""
        return 1 if self.hook is None else self.hook.learner.update_every


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


def make_arm(name: str, configuration: Configuration, device: torch.device) -> Arm:
    """A model of its own, its optimizer and its step."""
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
        hook = policy_noise.attach(model, optimizer, preset="augment", mean=MEAN, std=STD)
    elif name.startswith("default"):
        settings: dict[str, Any] = {"mean": MEAN, "std": STD}
        if configuration.grid:
            settings["grid_size"] = configuration.grid
        if name == SPARSE:
            settings["update_every"] = EVERY
        hook = policy_noise.attach(model, optimizer, criterion, **settings)
        if name == "default, compiled mask":
            hook.mask.sample = torch.compile(hook.mask.sample)  # type: ignore[method-assign]
            hook.mask.compile()
        elif name == "default, policy as graphs":  # CUDA graphs, of its forward and of its backward
            hook.mask.policy.compile(mode="reduce-overhead")
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
        raise ValueError(f"unknown arm {name!r}")

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

    return Arm(step, hook)


# -- measuring ---------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def elapsed(step: Callable[[], None], times: int, device: torch.device) -> float:
    """Seconds a step, of some in a row."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / times


@contextmanager
def clocked_hooks() -> Iterator[list[float]]:
    """Add up the seconds that the package's hooks take, which is all that it does in a step, in a list of one."""
    spent = [0.0]
    call = policy_noise.hook._Functor.__call__

    def timed_call(functor: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = call(functor, *args, **kwargs)
        spent[0] += time.perf_counter() - start
        return result

    with unittest.mock.patch.object(policy_noise.hook._Functor, "__call__", timed_call):
        yield spent


def warm_up(arm: Arm, device: torch.device) -> None:
    """Build caches, state and compiled code; on a GPU note the memory of a step."""
    if device.type != "cuda":
        for _ in range(2):
            arm.step()
        return
    for _ in range(3):
        arm.step()
    synchronize(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        arm.step()
    synchronize(device)
    arm.peak = torch.cuda.max_memory_allocated() - before


def measure(configuration: Configuration, device: torch.device, until: float = math.inf) -> dict[str, Any]:
    """Time a configuration's arms interleaved; past ``until``, of :func:`time.perf_counter`, no repetition is begun."""
    arms: dict[str, Arm] = {}
    failures: dict[str, str] = {}
    for name in configuration.arms:
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        try:
            arm = make_arm(name, configuration, device)
            warm_up(arm, device)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"[:2000]
            gc.collect()
            continue
        if device.type == "cuda":
            gc.collect()
            arm.static = torch.cuda.memory_allocated() - before
        arms[name] = arm
    if "plain" not in arms:
        raise RuntimeError(f"the plain step failed: {failures}")
    # Short steps are timed several in a row: a clock read a step would wait for the device each time.
    pilot = {name: elapsed(arm.step, 1, device) for name, arm in arms.items()}
    target = 0.1 if device.type == "cuda" else 0.02
    times = max(1, math.ceil(target / min(pilot.values())))
    shuffled = random.Random(0)
    order = list(arms)
    start = time.perf_counter()
    with clocked_hooks() as spent:
        for repetition in range(configuration.repetitions):
            now = time.perf_counter()
            if (repetition >= 6 and now - start > configuration.seconds) or (repetition and now > until):
                break
            shuffled.shuffle(order)
            for name in order:
                arm = arms[name]
                steps = arm.period * math.ceil(times / arm.period)
                spent[0] = 0.0
                arm.times.append(elapsed(arm.step, steps, device))
                if arm.hook is not None and device.type == "cpu":  # a GPU works on after its hooks have returned
                    arm.inside.append(spent[0] / steps)
    record: dict[str, Any] = {
        "configuration": asdict(configuration),
        "label": configuration.label(),
        "steps_in_a_row": times,
        "failures": failures,
        "arms": {},
    }
    for name, arm in arms.items():
        if device.type == "cuda":
            memory: int | None = arm.static + arm.peak
        else:
            memory = peak_memory_on_cpu(name, configuration) if time.perf_counter() < until else None
        record["arms"][name] = {"seconds": arm.times, "peak_memory_bytes": memory}
        if arm.inside:
            record["arms"][name]["seconds_in_hooks"] = arm.inside
    if configuration.profile and "default" in arms and time.perf_counter() < until:
        record["kernels"] = {
            name: guarded(lambda arm=arms[name]: count_kernels(arm.step, device))
            for name in ("plain", "default", "paper", "authors")
            if name in arms and device.type == "cuda"
        }
        record["split"] = {
            preset: guarded(lambda preset=preset: time_parts(arms[preset], 15, device))
            for preset in ("default", "paper")
            if preset in arms
        }
        record["rendering"] = guarded(lambda: rendering(configuration, device))
        if device.type == "cuda":
            record["checks"] = {
                "a step of the default preset under torch.cuda.set_sync_debug_mode('error')": guarded(
                    lambda: check_no_synchronisation(arms["default"], configuration, device)
                ),
                "masks drawn and applied inside torch.cuda.graph": guarded(lambda: check_graph(configuration, device)),
            }
    if configuration.launches:
        record["launches"] = guarded(lambda: count_launches(arms["default"]))
        record["launches augment"] = guarded(lambda: count_launches(arms["augment"]))
        record["host"] = guarded(lambda: time_parts(arms["default"], 200, device))
    return record


def peak_memory_on_cpu(name: str, configuration: Configuration) -> int:
    """Most bytes that PyTorch's allocator holds at once for an arm, from its making to the end of its second step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = make_arm(name, configuration, torch.device("cpu")).step
        for _ in range(2):
            step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_bytes())["traceEvents"]
    # Each event tells of the total after it, which did not begin at nothing.
    changes = [event["args"] for event in sorted(events, key=lambda event: event["ts"]) if event["name"] == "[memory]"]
    totals = [change["Total Allocated"] for change in changes]
    return max(totals) - (totals[0] - changes[0]["Bytes"])


def guarded(function: Callable[[], Any]) -> Any:
    """A result, or the words of its failure."""
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:2000]


def count_kernels(step: Callable[[], None], device: torch.device) -> int:
    """Kernels, copies and fills that a step puts on the GPU."""
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        synchronize(device)
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    # Optimizers mark their range on the device too.
    return sum(not event.name.startswith("Optimizer.") for event in events)


# Called by these names in a step of the default preset; what one calls of the others counts as theirs.
PARTS = {
    "policy forward": lambda hook: (hook.mask.policy, "forward"),
    "sampling": lambda hook: (hook.mask, "sample"),
    "rendering": lambda hook: (hook.mask, "forward"),
    "loss of each sample": lambda hook: (policy_noise.hook, "per_sample_loss"),
    "observe": lambda hook: (hook.learner, "observe"),
    "policy backward": lambda hook: (hook.learner, "_flat_gradient"),
    "estimator and policy step": lambda hook: (hook.learner, "step"),
}


@contextmanager
def parts_within(hook: policy_noise.ReinforceHook, enter: Callable[[str], Any]) -> Iterator[None]:
    """Run each part of a step inside a context of its own."""
    with ExitStack() as stack:
        for part, find in PARTS.items():
            owner, name = find(hook)
            original = getattr(owner, name)

            def within(*args: Any, part: str = part, original: Callable[..., Any] = original, **kwargs: Any) -> Any:
                with enter(part):
                    return original(*args, **kwargs)

            stack.enter_context(unittest.mock.patch.object(owner, name, within))
        yield


class Launches(TorchDispatchMode):
    """Counts what a step asks of the device, by part, without views and bare allocations; one can be many kernels."""

    FREE = re.compile(
        r"detach_?|alias|t|lift_fresh|empty\w*|new_empty\w*|_?record_function\w*"
        r"|\w*(view|expand|select|slice|split|unbind|squeeze|transpose|permute|as_strided)\w*"
    )

    def __init__(self) -> None:
        super().__init__()
        self.part = "rest"
        self.counts: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if not self.FREE.fullmatch(name):
            self.counts[self.part, name.strip("_")] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        outer, self.part = self.part, part
        yield
        self.part = outer


def count_launches(arm: Arm) -> dict[str, int]:
    """What an arm's mask and policy ask of the device in a step, by part."""
    assert arm.hook is not None
    arm.step()
    launches = Launches()
    # On a GPU dropped samples are told of only when metrics are read.
    with (
        unittest.mock.patch.object(arm.hook.learner, "_warn_dropped"),
        parts_within(arm.hook, launches.within),
        launches,
    ):
        arm.step()
    counts = dict.fromkeys(PARTS, 0)
    for (part, _), count in launches.counts.items():
        if part in counts:
            counts[part] += count
    return {**counts, "all": sum(counts.values())}


def time_parts(arm: Arm, steps: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each part in a running step, of the hooks around them, and of all of it.

    Waits for the device where a part begins and ends.
    """
    assert arm.hook is not None
    rows: list[dict[str, float]] = []
    inner = [0.0]

    @contextmanager
    def clock(part: str) -> Iterator[None]:
        synchronize(device)
        start = time.perf_counter()
        inner.append(0.0)
        yield
        synchronize(device)
        spent = time.perf_counter() - start
        rows[-1][part] += spent - inner.pop()
        inner[-1] += spent

    with clocked_hooks() as whole, parts_within(arm.hook, clock):
        for _ in range(steps):
            rows.append(dict.fromkeys(PARTS, 0.0))
            whole[0] = 0.0
            arm.step()
            rows[-1] |= {"hooks and pairing": whole[0] - sum(rows[-1].values()), "all": whole[0]}
    return {part: median(row[part] for row in rows) for part in rows[0]}


def timed(function: Callable[[], Any]) -> float:
    """Median seconds of a call, of five at least; the timer waits for the GPU."""
    timer = Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=max(0.3, 5 * timer.timeit(1).median)).median


def rendering(configuration: Configuration, device: torch.device) -> dict[str, float]:
    """The rendering beside one elementwise multiply and beside the blurs that it replaces, in seconds."""
    images, _ = make_batch(configuration, device)
    size = images.shape[2:]
    mask = policy_noise.PolicyNoiseMask(mean=MEAN, std=STD).to(device)
    sample = mask.sample(images).detach()
    fine = torch.rand(configuration.batch, 1, 64, 64, device=device) if min(size) >= 64 else sample.action
    factor = torch.rand(configuration.batch, 1, *size, device=device)
    return {
        "elementwise multiply": timed(lambda: images * factor),
        "default: render, scale and apply": timed(lambda: mask(images, sample)),
        "paper: render and apply": timed(lambda: PF.noise_mask(images, fine, kernel_size=13, sigma=6.0)),
        "matrix products, mask alone": timed(lambda: PF.render_mask(fine, size, 13, 6.0)),
        "Kornia's separable blur, mask alone": timed(lambda: PF.render_mask(fine, size, 13, 6.0, method="kornia")),
        "dense blur, mask alone": timed(lambda: dense_blur(F.interpolate(fine, size, mode="nearest"))),
    }


@contextmanager
def sync_debug_mode(mode: str) -> Iterator[None]:
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_no_synchronisation(arm: Arm, configuration: Configuration, device: torch.device) -> str:
    if configuration.precision == "fp16":
        return "not checked: GradScaler itself waits for the device"
    with sync_debug_mode("error"):
        arm.step()
    return "passed"


def check_graph(configuration: Configuration, device: torch.device) -> str:
    images, _ = make_batch(configuration, device)
    mask = policy_noise.PolicyNoiseMask(mean=MEAN, std=STD).to(device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            mask(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masked = mask(images)
    graph.replay()
    first = masked.clone()
    graph.replay()
    if torch.equal(first, masked) or not bool(torch.isfinite(masked).all()):
        return "failed: two replays drew the same masks, or none that are finite"
    return "passed"


def measure_pipeline(device: torch.device, seconds: float = 3.0) -> dict[str, float]:
    """Images a second of an input pipeline alone: bytes from memory, normalised, flipped and masked on the device."""
    images = torch.randint(256, (2048, 3, 64, 64), dtype=torch.uint8)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=128, shuffle=True)
    normalize = nn.Sequential(
        kornia.enhance.Normalize(torch.tensor(MEAN), torch.tensor(STD)), kornia.augmentation.RandomHorizontalFlip()
    ).to(device)
    mask = policy_noise.PolicyNoiseMask(mean=MEAN, std=STD).to(device)
    erasing = kornia.augmentation.RandomErasing(p=0.25)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "without a mask": lambda x: x,
        "with the default mask": mask,
        "with Kornia's RandomErasing": erasing,
    }
    rates = {}
    with torch.no_grad():
        for name, augment in ways.items():
            for warm in (True, False):
                seen, start = 0, time.perf_counter()
                while time.perf_counter() - start < (0.5 if warm else seconds):
                    for (batch,) in loader:
                        augment(normalize(batch.to(device, non_blocking=True).float() / 255))
                        seen += len(batch)
                    synchronize(device)
                rates[name] = seen / (time.perf_counter() - start)
    return rates


# -- reporting ---------------------------------------------------------------------------------------------------------


def describe_machine(device: torch.device) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
        "cpu": cpu,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "kornia": kornia.__version__,
        "policy_noise": policy_noise.__version__,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolution": torch.backends.cudnn.allow_tf32,
        "load_at_start": os.getloadavg()[0],
    }


def ratio(record: dict[str, Any], arm: str, to: str) -> tuple[float, float, float] | None:
    """Median of the paired ratios of times, and its interval."""
    if arm not in record["arms"] or to not in record["arms"]:
        return None
    pairs = zip(record["arms"][arm]["seconds"], record["arms"][to]["seconds"], strict=True)
    return with_interval([mine / other for mine, other in pairs])


def ratio_by_hooks(record: dict[str, Any], arm: str) -> tuple[float, float, float] | None:
    """Median of the whole step over the rest of it, without what the package's hooks do, and its interval."""
    timed = record["arms"].get(arm, {})
    if "seconds_in_hooks" not in timed:
        return None
    pairs = zip(timed["seconds"], timed["seconds_in_hooks"], strict=True)
    return with_interval([whole / (whole - inside) for whole, inside in pairs])


def with_interval(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 6:  # of fewer no two are 95 % sure to have the median between them
        return median(values), math.nan, math.nan
    interval = quantile_test(values, q=1.0, p=0.5).confidence_interval(0.95)
    return median(values), float(interval.low), float(interval.high)


def memory_ratio(record: dict[str, Any], arm: str, to: str = "plain") -> float | None:
    values = [record["arms"].get(name, {}).get("peak_memory_bytes") for name in (arm, to)]
    return None if None in values else values[0] / values[1]


def to_markdown(results: dict[str, Any]) -> str:
    """The table of a results file."""
    machine = results["machine"]
    arms = [arm for record in results["configurations"] for arm in record.get("arms", {}).values()]
    clocked = any("seconds_in_hooks" in arm for arm in arms)
    lines = [
        f"# Overhead: the {results['suite']} suite",
        "",
        f"`{results['command']}`",
        "",
        f"{results['date']} · {machine['device']} · {machine['threads']} threads · torch {machine['torch']}, "
        f"timm {machine['timm']}, kornia {machine['kornia']} · load at the start {machine['load_at_start']:.2f}"
        + (f" · TF32 in convolutions {machine['tf32_convolution']}" if machine["cudnn"] else ""),
        "",
        "Ratios are medians over paired repetitions, with the 95 % interval of the median.",
        *(["The time in hooks is all that the package does in a step, beside the rest of the same step."] * clocked),
        "",
        "| configuration | arm | ms a step | x plain | interval | n | peak memory MB | x plain |"
        + " ms in hooks | x the rest | interval |" * clocked,
        "|---|---|---:|---:|---|---:|---:|---:|" + "---:|---:|---|" * clocked,
    ]
    notes: list[str] = []
    for record in results["configurations"]:
        if "error" in record:
            notes.append(f"- {record['label']}: {record['error'].splitlines()[-1]}")
            continue
        for name, arm in record["arms"].items():
            value = ratio(record, name, "plain")
            assert value is not None
            memory, share = arm["peak_memory_bytes"], memory_ratio(record, name)
            interval = "" if name == "plain" else in_words(value)
            lines.append(
                f"| {record['label']} | {name} | {1e3 * median(arm['seconds']):.2f} | {value[0]:.3f} | {interval} "
                f"| {len(arm['seconds'])} | {'' if memory is None else f'{memory / 2**20:.0f}'} "
                f"| {'' if share is None else f'{share:.3f}'} |" + by_hooks(record, name) * clocked
            )
        notes += [f"- {record['label']}, {name} failed: {words}" for name, words in record["failures"].items()]
        notes += goals(record)
        if "launches" in record:
            beside = {name: added(record, name) for name in record["arms"] if name != "plain"}
            notes.append(f"- {record['label']}, added to the plain step, ms: {listed(beside, 1e3)}")
        for key, title, unit in (
            ("kernels", "kernels a step", 1.0),
            ("launches", "operations of the default preset on the device", 1.0),
            ("launches augment", "operations of the preset augment on the device", 1.0),
            ("host", "host time of the default preset, ms", 1e3),
            ("rendering", "rendering, ms", 1e3),
        ):
            values = record.get(key)
            if values:
                notes.append(f"- {record['label']}, {title}: {listed(values, unit)}")
        for preset, values in record.get("split", {}).items():
            notes.append(f"- {record['label']}, {preset} preset, ms: {listed(values, 1e3)}")
        notes += [f"- {record['label']}, {name}: {words}" for name, words in record.get("checks", {}).items()]
    notes += the_rest(results) if clocked else []
    if results["suite"] == "scaling":
        notes.append(law(results))
    if results.get("pipeline"):
        notes.append(f"- input pipeline at 64 px, images/s: {listed(results['pipeline'], 1.0)}")
    return "\n".join([*lines, "", *notes, ""])


def the_rest(results: dict[str, Any]) -> list[str]:
    """How long the rest of a step takes beside the plain step, over all configurations: what hooks do not show."""
    ratios: dict[str, list[float]] = {}
    for record in results["configurations"]:
        for name, arm in record.get("arms", {}).items():
            if name == "plain again" or "seconds_in_hooks" in arm:
                inside = arm.get("seconds_in_hooks", [0.0] * len(arm["seconds"]))
                steps = zip(arm["seconds"], inside, record["arms"]["plain"]["seconds"], strict=True)
                ratios.setdefault(name, []).extend(math.log((whole - part) / plain) for whole, part, plain in steps)
    return [
        f"- the rest of a step beside the plain step, {name}: {math.exp(found.mean):.3f} "
        f"({math.exp(found.low):.3f} to {math.exp(found.high):.3f}; geometric mean of {len(values)} pairs)"
        for name, values in ratios.items()
        for found in [t_interval(values)]
    ]


def by_hooks(record: dict[str, Any], arm: str) -> str:
    """The table's last cells."""
    value = ratio_by_hooks(record, arm)
    if value is None:
        return " | | |"
    inside = 1e3 * median(record["arms"][arm]["seconds_in_hooks"])
    return f" {inside:.2f} | {value[0]:.4f} | {in_words(value, 4)} |"


def in_words(ratio_and_interval: tuple[float, float, float], digits: int = 3) -> str:
    """The interval of a ratio."""
    _, low, high = ratio_and_interval
    return "too few" if math.isnan(low) or math.isnan(high) else f"{low:.{digits}f} to {high:.{digits}f}"


def added(record: dict[str, Any], arm: str = "default") -> float:
    """Seconds that an arm adds to the plain step: in its hooks where they were clocked, else by paired differences."""
    if "seconds_in_hooks" in record["arms"][arm]:
        return median(record["arms"][arm]["seconds_in_hooks"])
    pairs = zip(record["arms"][arm]["seconds"], record["arms"]["plain"]["seconds"], strict=True)
    return median(mine - other for mine, other in pairs)


def law(results: dict[str, Any]) -> str:
    """The added time as a constant, a share of the pixels and one of the cells, by least squares of relative errors."""
    points = [
        (
            1e3 * added(record),
            one["batch"] * one["size"] ** 2 / 1e6,
            one["batch"] * (one["grid"] or results["default_grid"]) ** 2 / 1e3,
        )
        for record in results["configurations"]
        if "error" not in record and "default" in record["arms"] and (one := record["configuration"])
    ]
    measured = [point for point in points if point[0] > 0]  # nothing can be said relative to less
    if len({point[1:] for point in measured}) < 4:
        return "- too few configurations for a law of the cost"
    rows = [(1 / cost, pixels / cost, cells / cost) for cost, pixels, cells in measured]
    (constant, by_pixels, by_cells), _ = nnls(rows, [1.0] * len(rows))
    errors = [abs(constant * row[0] + by_pixels * row[1] + by_cells * row[2] - 1) for row in rows]
    return (
        "- O(B H W) plus O(B G^2) plus a constant, fitted to all classifiers alike: the default preset adds "
        f"{constant:.2f} ms, {by_pixels:.2f} ms for a million pixels and {by_cells:.2f} ms for a thousand cells "
        f"({len(measured)} of {len(points)} configurations, off by {100 * median(errors):.0f} % in the median and "
        f"{100 * max(errors):.0f} % at most)"
    )


def listed(values: Any, unit: float) -> str:
    if not isinstance(values, dict):
        return str(values)
    return ", ".join(
        f"{name} {value if isinstance(value, str) else f'{unit * value:.{0 if unit == 1 else 3}f}'}"
        for name, value in values.items()
    )


def goals(record: dict[str, Any]) -> list[str]:
    """What was aimed at, and what came out."""
    notes = []
    model = record["configuration"]["model"]
    if record["configuration"]["size"] != 224:
        return notes
    middle, low, _ = ratio_by_hooks(record, "default") or ratio(record, "default", "plain") or (None, math.nan, 0)
    found = {"time": None if math.isnan(low) else middle, "memory": memory_ratio(record, "default")}
    for kind, value in found.items():
        goal = GOALS.get((model, kind))
        if goal is not None and value is not None:
            verdict = "met" if value <= goal else "missed"
            notes.append(f"- {record['label']}, default preset, {kind}: {value:.3f} of at most {goal}: {verdict}")
    against = ratio(record, "paper", "authors")
    if against is not None:
        verdict = "met" if against[0] <= 0.75 else "missed"
        notes.append(
            f"- {record['label']}, paper preset against the authors' way: {against[0]:.3f} ({in_words(against)}) of at "
            f"most 0.75: {verdict}"
        )
    values = record.get("rendering")
    if isinstance(values, dict):
        times = values["default: render, scale and apply"] / values["elementwise multiply"]
        verdict = "met" if times <= 3 else "missed"
        notes.append(f"- {record['label']}, rendering: {times:.2f} multiplies of at most 3: {verdict}")
    return notes


def plot(results: dict[str, Any], path: Path) -> None:
    """Ratios with their intervals; for the scaling suite the added time on log axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = [record for record in results["configurations"] if "error" not in record]
    title = f"{results['machine']['device']}, {results['date'][:10]}"
    if results["suite"] == "scaling":
        figure, axes = plt.subplots(1, 4, figsize=(16, 4), sharey=True)
        base = Configuration(**{**records[0]["configuration"], "arms": ()})
        for axis, name in zip(axes, ("size", "batch", "grid", "model"), strict=True):
            points = []
            for record in records:
                own = replace(Configuration(**{**record["configuration"], "arms": ()}), seconds=base.seconds)
                if own != replace(base, **{name: getattr(own, name)}):
                    continue
                plain = median(record["arms"]["plain"]["seconds"])
                where = {"grid": own.grid or results["default_grid"], "model": 1e3 * plain}.get(
                    name, getattr(own, name)
                )
                points.append((where, 1e3 * plain, 1e3 * added(record)))
            axis.set(xscale="log", yscale="log", xlabel={"model": "plain step of the model, ms"}.get(name, name))
            if not points:
                continue
            points.sort()
            columns = list(zip(*points, strict=True))
            axis.plot(columns[0], columns[1], "o-", color="0.5", label="plain step")
            # What the machine did not resolve from nothing has no place on a logarithmic axis.
            resolved = [cost if cost > 0 else math.nan for cost in columns[2]]
            axis.plot(columns[0], resolved, "s:", color="C3", label="added by the default preset")
            axis.set_xticks(columns[0], [f"{value:.0f}" for value in columns[0]])
            axis.minorticks_off()
        axes[0].set_ylabel("ms a step")
        axes[0].legend()
    else:
        rows = [
            (f"{record['label']}: {name}", value)
            for record in records
            for name in record["arms"]
            if name != "plain" and (value := ratio(record, name, "plain"))
        ]
        figure, axis = plt.subplots(figsize=(9, 1 + 0.22 * len(rows)))
        for position, (_, (middle, low, high)) in enumerate(rows):
            axis.plot([low, high], [position] * 2, color="C0")
            axis.plot(middle, position, "o", color="C0")
        axis.axvline(1, color="0.5", linewidth=1)
        axis.set(xscale="log", xlabel="time of a step, x plain", yticks=range(len(rows)))
        axis.set_yticklabels([label for label, _ in rows], fontsize=7)
        axis.invert_yaxis()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def write(results: dict[str, Any], path: Path) -> None:
    """Replace the file as a whole, so that a cut leaves the last complete one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)


def report(results: dict[str, Any], path: Path) -> None:
    table = to_markdown(results)
    path.with_suffix(".md").write_text(table)
    if any("error" not in record for record in results["configurations"]):
        plot(results, path.with_suffix(".png"))
    print(table)


# -- command line ------------------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--device", help="by default cuda for the gpu suite, else cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), help="instead of the suite's")
    parser.add_argument("--sizes", nargs="+", type=int, help="image sides in pixels, instead of the suite's")
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes, instead of the suite's")
    parser.add_argument("--grids", nargs="+", type=int, help="grid sizes, instead of the presets'")
    parser.add_argument("--precisions", nargs="+", choices=sorted(PRECISIONS), help="instead of the suite's")
    parser.add_argument("--compile", action="store_true", help="compile the models")
    parser.add_argument("--seconds", type=float, help="a configuration's repetitions, instead of the suite's")
    parser.add_argument("--deadline", type=float, help="seconds after which nothing more is begun")
    parser.add_argument(
        "--report", type=Path, metavar="FILE.json", help="table and plot of a results file, and no more"
    )
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> list[Configuration]:
    """The suite's configurations with the command line's changes, the first of those that have become alike."""
    configurations = suite(options.suite)
    for name, values in (
        ("model", options.models),
        ("size", options.sizes),
        ("batch", options.batches),
        ("grid", options.grids),
        ("precision", options.precisions),
        ("compile", [True] if options.compile else None),
        ("seconds", [options.seconds] if options.seconds else None),
    ):
        if values:
            configurations = [replace(one, **{name: value}) for one in configurations for value in values]
    first: dict[str, Configuration] = {}
    for one in configurations:
        first.setdefault(one.label(), one)
    return list(first.values())


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.report:
        report(json.loads(options.report.read_text()), options.report)
        return
    command = " ".join(["python", "benchmarks/overhead.py", *(arguments or sys.argv[1:])])
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if options.suite == "gpu" else "cpu"))
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"overhead-{options.suite}.json"
    results = {
        "suite": options.suite,
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(device),
        "default_grid": policy_noise.PolicyNoiseMask().grid_size[0],
        "configurations": [],
    }
    start = time.perf_counter()
    until = start + (options.deadline or math.inf)
    if device.type == "cuda":  # workspaces that stay would be counted as the first arm's memory
        guarded(make_arm("default", Configuration("resnet10t", 64, 8), device).step)
    for configuration in chosen(options):
        if time.perf_counter() > until:
            record = {"label": configuration.label(), "configuration": asdict(configuration)}
            results["configurations"].append({**record, "error": f"left out after {options.deadline:.0f} s"})
            continue
        print(f"{time.perf_counter() - start:6.0f} s  {configuration.label()}", file=sys.stderr, flush=True)
        try:
            record = measure(configuration, device, until)
        except Exception:
            record = {"label": configuration.label(), "configuration": asdict(configuration)}
            record["error"] = traceback.format_exc()
        results["configurations"].append(record)
        write(results, path)
        path.with_suffix(".md").write_text(to_markdown(results))
        gc.collect()
        if device.type == "cuda":
            torch._dynamo.reset()
            torch.cuda.empty_cache()
    if options.suite not in ("compiled", "launches", "scaling") and time.perf_counter() < until:
        results["pipeline"] = guarded(lambda: measure_pipeline(device))
    results["seconds"] = time.perf_counter() - start
    write(results, path)
    report(results, path)


if __name__ == "__main__":
    main()
