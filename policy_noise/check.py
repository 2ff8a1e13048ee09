"""One look at a training loop before it runs for a week: what is masked, what is rewarded, and what it costs."""

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .augmentation import Sample
from .factory import attach
from .hooks._registry import hooks_on
from .losses._agreement import batch_argument
from .losses._batch import Structures
from .losses._isolation import random_states, restore
from .utils.compat import compiled_from, tree_flatten
from .utils.misc import tensors_in

if TYPE_CHECKING:
    from .hooks.hook import ReinforceHook

__all__ = ["Check", "check"]

Step = Callable[[nn.Module, Any, Any, Any], Tensor]
STEPS = 2
"""Steps of a run. The first one also warms up (and compares the losses), the last one is timed."""
SHOWN = 4
"""Per-image losses in the report."""


@dataclass(frozen=True)
class Check:
    """What :func:`check` saw. Its ``str`` is the report.

    Args:
        report: One line per finding.
        problems: What to change, the most important first. Empty if the loop is ready.
        losses: The per-image losses that the policy is rewarded by, (B,), in fp32. NaN for images without one. None if
            there are none.
        seconds: What the hook adds to a step. NaN if it is unknown.

    Example:
        >>> model, criterion = nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten()), nn.CrossEntropyLoss()
        >>> batch = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
        >>> found = check(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion, batch, black=0.0)
        >>> found.ready, found.losses.shape
        (True, torch.Size([4]))
    """

    report: str
    problems: tuple[str, ...]
    losses: Tensor | None
    seconds: float

    @property
    def ready(self) -> bool:
        """Whether there is nothing to change."""
        return not self.problems

    def __str__(self) -> str:
        last = "ready" if self.ready else f"change: {self.problems[0]}"
        return f"{self.report}\n{last}"

    __repr__ = __str__


@dataclass
class _Run:
    """What happened in a run of the loop on copies."""

    error: str | None = None
    told: bool = False  # whether the error says itself what to change
    seconds: float = float("nan")
    memory: int = 0
    loss: float = float("nan")
    images: str | None = None
    black: str = ""
    batch: str = "the criterion was not called"
    way: str = ""
    learns: bool = True
    seen: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check(
    model: nn.Module,
    optimizer: Any,
    criterion: nn.Module | None,
    batch: Any,
    *,
    step: Step | None = None,
    **settings: Any,
) -> Check:
    """Run a training step on copies, and tell what :func:`policy_noise.attach` would do in this loop.

    Model, optimizer, criterion, batch and random generators stay as they are. The loop runs with and without the hook,
    in fp32 and under autocast. Call it before ``attach``. Of a wrapped model (DDP, ``torch.compile``) the module inside
    is checked.

    Args:
        model: The module that the loop calls with images.
        optimizer: The loop's optimizer, or None.
        criterion: The loss module that the loop calls.
        batch: A batch as the loop gets it, on the model's device: ``(images, targets)``.
        step: How the loop computes its loss from the batch: a function of (model, criterion, batch, hook). By default
            ``criterion(model(images), targets)``. Without the hook, ``hook.observe`` returns its argument.
        **settings: The settings that you will give :func:`policy_noise.attach`.

    Returns:
        The findings. Printed, they are a report whose last line is "ready" or says what to change. Errors are findings
        too: none is raised.

    Example:
        >>> model, criterion = nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten()), nn.CrossEntropyLoss()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batch = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
        >>> print(check(model, optimizer, criterion, batch, black=0.0))  # doctest: +ELLIPSIS
        Sequential, SGD, CrossEntropyLoss
        ...
        ready
    """
    model = _inside(model)
    parts = (model, optimizer, criterion, batch)
    names = ", ".join(type(part).__name__ for part in parts[:3] if part is not None)
    if isinstance(model, nn.Module) and hooks_on(model):
        problem = "the model is hooked already: call policy_noise.detach(model), check, then attach"
        return Check(names, (problem,), None, float("nan"))
    device = next((p.device for p in model.parameters()), torch.device("cpu")) if isinstance(model, nn.Module) else None
    kind = "cpu" if device is None else device.type
    half = torch.float16 if kind == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16
    states = random_states(set() if device is None else {device})
    runs: dict[tuple[bool, Any], _Run] = {}
    try:
        for hooked, dtype in ((False, None), (True, None), (False, half), (True, half)):
            restore(states)
            runs[hooked, dtype] = _run(parts, step or _default_step, settings, hooked, kind, dtype)
    finally:
        restore(states)
    return _judge(names, runs, half)


def _inside(model: Any) -> Any:
    """The module inside of what cannot be copied well."""
    while True:
        is_ddp = isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel)
        inner = model.module if is_ddp else compiled_from(model)
        if inner is None:
            return model
        model = inner


class _Advice(Exception):
    """The step cannot run, and the message says what to pass."""


def _default_step(model: nn.Module, criterion: Any, batch: Any, hook: Any) -> Tensor:
    if isinstance(batch, Mapping) or not isinstance(batch, Sequence) or len(batch) < 2:
        raise _Advice("batch must be (images, targets), or pass step, a function of (model, criterion, batch, hook)")
    images, *targets = batch
    if criterion is None:
        raise _Advice(
            "there is no criterion to compute the loss: pass check(model, optimizer, nn.CrossEntropyLoss(), batch), or "
            "step=lambda model, criterion, batch, hook: ... with the loss as your loop computes it"
        )
    return criterion(model(images), *targets)


def _run(parts: Any, step: Step, settings: dict[str, Any], hooked: bool, kind: str, dtype: Any) -> _Run:
    """Run the loop on copies, and note what happens. An error ends the run."""
    run = _Run()
    hook = None
    with warnings.catch_warnings(record=True) as record, torch.enable_grad():
        warnings.simplefilter("always")
        try:
            model, optimizer, criterion, batch, settings = copy.deepcopy((*parts, settings))
            if hooked:
                before, after = _Arguments(model), None
                hook = attach(model, optimizer, criterion, **settings)
                after = _Arguments(model)
                _listen(hook, criterion, run)
            model.train()
            _steps((model, optimizer, criterion, batch), step, hook, run, kind, dtype)
        except Exception as error:
            run.told = isinstance(error, _Advice) or (hooked and hook is None)
            run.error = str(error) if run.told else f"{type(error).__name__}: {error}"
        if hook is not None:
            _describe(hook, before, after, run)
            hook.remove()
    own = [str(w.message).removeprefix("policy_noise: ") for w in record if str(w.message).startswith("policy_noise: ")]
    run.warnings = list(dict.fromkeys(own))
    return run


def _steps(parts: Any, step: Step, hook: "ReinforceHook | None", run: _Run, kind: str, dtype: Any) -> None:
    model, optimizer, criterion, batch = parts
    synchronize = torch.cuda.synchronize if kind == "cuda" else lambda: None
    for _ in range(STEPS):
        run.seen.clear()
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        synchronize()
        start = time.perf_counter()
        with nullcontext() if dtype is None else torch.autocast(kind, dtype):
            loss = step(model, criterion, batch, hook or _NoHook())
        if loss.numel() != 1:
            raise _Advice(
                f"the step's loss has shape {tuple(loss.shape)}, not one number: pass step=lambda model, criterion, "
                "batch, hook: criterion(model(batch[0]), batch[1]).mean(), or what your loop makes of the losses"
            )
        if optimizer is not None:
            optimizer.zero_grad()
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        elif hook is not None:
            hook.step()
        synchronize()
        run.seconds = time.perf_counter() - start
        run.loss = float(loss.detach())
        run.memory = torch.cuda.max_memory_allocated() if kind == "cuda" else 0


class _NoHook:
    """Stands for the hook in a plain run."""

    def apply(self, images: Tensor) -> Tensor:
        return images

    def observe(self, per_sample_loss: Tensor, **_: Any) -> Tensor:
        return per_sample_loss

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Arguments:
    """Keeps the tensors among the arguments of a model's last call, by the argument's name."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors: list[tuple[str, Tensor]] = []
        if isinstance(model, nn.Module):  # else attach refuses it
            model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = [*((f"argument {i}", value) for i, value in enumerate(args)), *kwargs.items()]
        self.tensors = [(name, tensor) for name, value in named for tensor in tensors_in(value)]


def _listen(hook: "ReinforceHook", criterion: Any, run: _Run) -> None:
    """Note what the hook tells the policy, and what the criterion is called with."""
    observe = hook.learner.observe

    def noted(sample: Sample, loss: Tensor, valid: Tensor | None = None) -> None:
        run.seen.append((loss.detach(), valid))
        observe(sample, loss, valid)

    def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves, spec = tree_flatten((args, kwargs))
        taken = batch_argument(Structures().candidates(leaves, spec, {})[0])
        run.batch = "the criterion's " + taken.removesuffix(", was taken for the batch")

    hook.learner.observe = noted  # type: ignore[method-assign]
    if isinstance(criterion, nn.Module):
        criterion.register_forward_pre_hook(called, with_kwargs=True)


def _describe(hook: "ReinforceHook", before: _Arguments, after: _Arguments | None, run: _Run) -> None:
    masked = []
    if after is not None:
        pairs = zip(before.tensors, after.tensors, strict=False)
        masked = [(name, tensor) for (name, tensor), (_, now) in pairs if tensor is not now]
    run.images = "; ".join(f"{name}, {_described(tensor)}" for name, tensor in masked)
    run.black = repr(hook).splitlines()[0].partition(", black ")[2]
    run.way = repr(hook).splitlines()[1].removeprefix("losses: ")
    run.learns = not hook.learner.frozen


def _described(tensor: Tensor) -> str:
    values = f"{float(tensor.min()):.3g} to {float(tensor.max()):.3g}" if tensor.numel() else "empty"
    return f"{' x '.join(map(str, tensor.shape))}, {str(tensor.dtype).removeprefix('torch.')}, {values}"


def _judge(names: str, runs: dict[tuple[bool, Any], _Run], half: Any) -> Check:
    """Put the runs side by side."""
    plain, hooked = runs[False, None], runs[True, None]
    half_plain, half_hooked = runs[False, half], runs[True, half]
    half_name = str(half).removeprefix("torch.")
    losses = _losses_of(hooked)
    rewarded = 0 if losses is None else int((~losses.isnan()).sum())
    problems = []
    if hooked.error and hooked.told:
        problems.append(hooked.error)
    elif plain.error:
        problems.append(f"the loop itself fails, also without policy_noise ({plain.error})")
    elif hooked.error:
        problems.append(hooked.error)
    elif not hooked.images:
        problems.append("no image was masked: the step must call the model as model(images), in training mode")
    elif hooked.learns and not rewarded:
        problems.append(
            "no image got a reward: the step must call the criterion that is passed, or call hook.observe(losses)"
        )
    if half_hooked.error and not half_plain.error and not hooked.error:
        problems.append(f"under {half_name} autocast: {half_hooked.error}")
    problems += [text for text in dict.fromkeys(hooked.warnings + half_hooked.warnings) if text not in problems]

    lines = [("images", f"the model's {hooked.images}" if hooked.images else "none was masked")]
    if hooked.images and hooked.black:
        lines.append(("black", hooked.black))
    if hooked.learns:
        lines.append(("batch", hooked.batch))
        lines.append(("losses", hooked.way))
    if losses is not None:
        known = losses[~losses.isnan()]
        first = ", ".join(f"{value:.4g}" for value in losses[:SHOWN].tolist())
        more = ", ..." if len(losses) > SHOWN else ""
        mean = f"mean {float(known.mean()):.4g}; the loop's loss is {hooked.loss:.4g}"
        lines.append(("rewards", f"{first}{more}; {mean}"))
        lines.append(("share", f"{rewarded} of {len(losses)} images have a reward"))
    for name, run, alone in (("fp32", hooked, plain), (half_name, half_hooked, half_plain)):
        fails = alone.error is not None and not run.told
        verdict = "accepted" if run.error is None else "the loop itself fails" if fails else run.error
        lines.append((name, verdict))
    seconds = hooked.seconds - plain.seconds
    if plain.error is None and hooked.error is None:
        memory = hooked.memory - plain.memory
        added = f", {memory / 2**20:.1f} MiB more memory" if hooked.memory else " (memory is measured on GPUs)"
        lines.append(("cost", f"{seconds:+.3f} s on a step of {plain.seconds:.3f} s{added}"))
    lines += [("note", text) for text in problems[1:]]
    report = "\n".join([names, *(f"  {name:<9} {text}" for name, text in lines)])
    return Check(report, tuple(problems), losses, seconds)


def _losses_of(run: _Run) -> Tensor | None:
    if not run.seen:
        return None
    parts = [loss if valid is None else loss.where(valid, torch.nan) for loss, valid in run.seen]
    return torch.cat(parts).cpu()
