"""The hook: masks a model's inputs, listens to its criterion and steps the policy with the user's optimizer.

The sampled mask and the reward are both detached, so the policy's graph and the classifier's are disjoint. That is why
nothing of the user's loop changes: loss, scaler, clipping, reducer and parameter groups stay as they are.
"""

import copy
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .hooks.pairing import Match, PairingQueue, Pending, tensors_of
from .learner import PolicyLearner, check_loss, is_distributed
from .mask import PolicyNoiseMask
from .rewards import is_hookable, per_sample_loss, plain_tensor

__all__ = ["ReinforceHook", "stepping_optimizer"]

STATE_KEY = "policy_noise"
"""Key under which the policy travels in the optimizer's state dict."""

WRAPPED_OPTIMIZER = ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer", "base")
"""Where wrappers keep the optimizer that they step: accelerate and DeepSpeed, Lightning, SAM, timm's Lookahead,
schedule-free."""

OutputLoss = Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor]


def _inert(*args: Any, **kwargs: Any) -> None:
    """What a copy of a hook is: copies of a model (EMA, pickles) are not part of the training."""


class _Functor:
    """A hook function that does not follow its model into copies and pickles.

    A closure would be shared with the copy, and a bound method would clone the whole policy.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        # Around a module that is compiled from outside this is a graph break. Importing Dynamo takes seconds: where it
        # is not loaded nothing has been compiled yet, and what is compiled later breaks its graph here as well.
        self.function = torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _inert

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _get_inert, ()


def _get_inert() -> Callable[..., None]:
    return _inert


class ReinforceHook:
    """Train a mask's policy inside an existing training loop.

    With ``model`` its image input is masked whenever it runs in training mode with gradients on; with ``criterion``
    every loss that it computes is taken apart into one loss a sample. Without them call :meth:`apply` and
    :meth:`observe` yourself. The policy has an optimizer of its own, stepped after each ``optimizer.step()``.

    Args:
        mask: The mask to train.
        optimizer: The loop's optimizer. Wrappers (accelerate, Lightning, SAM, Lookahead, schedule-free) are looked
            through for the one whose ``step()`` really runs.
        model: Module whose input is masked: the outermost one that the loop calls (DDP and compiled wrappers, not the
            module inside).
        criterion: Loss module that the loop calls with the model's output.
        output_loss: Instead of ``criterion``, for models that compute their loss inside: a function of the model's
            output, its positional arguments and its keyword arguments that gives one loss for each image, (B,).
        estimator: ``"score_function"``, or ``"paper"`` for the published surrogate, with which ``criterion`` returns
            the loss scaled as the paper's objective scales it (with ``output_loss`` it is the output's ``"loss"``).
        reward: ``"cooperative"`` (the paper's: a low loss is good) or ``"adversarial"``.
        baseline: ``"leave_one_out"``, ``"batch"``, ``"moving_average"`` or ``"none"``.
        normalize_advantage: Divide advantages by their standard deviation.
        entropy_coef: Weight of an entropy bonus.
        baseline_momentum: Momentum of the moving average of the loss.
        optimizer_name: The policy's optimizer, ``"adamw"`` or ``"sgd"`` (momentum 0.9).
        lr: Its peak learning rate, following the shape of the user's schedule.
        lr_ratio: Instead of ``lr``: the user's current learning rate times this (paper: a tenth).
        follow_schedule: With ``lr``: False leaves the rate to a scheduler of yours on ``hook.policy_optimizer``.
        weight_decay: Of the policy's optimizer.
        frozen: Draw masks and learn nothing: the control, or a plain augmentation, which needs no losses. Losses that
            are observed are reported in the metrics.
        update_every: Learn from one step in this many, beginning with the first. In the others masks are drawn and no
            more, and the metrics stay those of the last learned step.
        input_name: Which of the model's inputs is masked: a position, or a name, either a keyword's or a key in a
            mapping that the model takes. By default the first floating-point tensor with the mask's number of axes.
        generator: Source of randomness for the masks; by default the device's global one, and with several processes
            one that differs on each rank and follows ``torch.manual_seed`` of the first.
        max_pending: Masked forwards that may wait for their loss before :class:`policy_noise.PairingError` is raised.
        state_in_optimizer: Let the policy travel in ``optimizer.state_dict()``, so that existing checkpointing code
            resumes it. With False use :meth:`state_dict` and :meth:`load_state_dict`.

    Note:
        A mask's loss counts only if it comes before the next step: forwards that run ahead of a step (prefetching) are
        masked and not learned from. Ranks are taken to be data parallel: tensor-parallel ranks, which must see equal
        inputs, would get different masks.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a value is out of its range.
        RuntimeError: If one of model, criterion and optimizer is hooked already.

    Example:
        >>> model, criterion = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), nn.CrossEntropyLoss()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> hook = ReinforceHook(PolicyNoiseMask(), optimizer, model=model, criterion=criterion)
        >>> loss = criterion(model(torch.randn(8, 3, 32, 32)), torch.randint(5, (8,)))
        >>> optimizer.zero_grad(); loss.backward(); optimizer.step()
        >>> hook.metrics["samples_seen"]
        8
        >>> hook.remove()
    """

    def __init__(
        self,
        mask: PolicyNoiseMask,
        optimizer: torch.optim.Optimizer,
        *,
        model: nn.Module | None = None,
        criterion: nn.Module | None = None,
        output_loss: OutputLoss | None = None,
        input_name: int | str | None = None,
        generator: torch.Generator | None = None,
        max_pending: int = 8,
        state_in_optimizer: bool = True,
        **learner: Any,
    ) -> None:
        stepping = stepping_optimizer(optimizer)
        _check_arguments(mask, stepping, model, criterion, output_loss, max_pending)
        self.mask = mask
        self.learner = PolicyLearner(mask, **learner)
        self.generator = generator
        self._seed = torch.initial_seed()
        self._steps = 0
        self._draws = 0
        self._drawn = False
        self._output_loss = output_loss
        self._input_name = input_name
        self._queue = PairingQueue(max_pending)
        self._paused = 0
        self._masked = False
        self._size: tuple[int, ...] | None = None
        self._checked_range = False
        self._handles: list[RemovableHandle] = [
            stepping.register_step_post_hook(_Functor(self._after_step)),
        ]
        if state_in_optimizer:
            # Wrappers pass state_dict() on to the inner optimizer, or (SAM) inherit it as it is.
            inherits = isinstance(optimizer, torch.optim.Optimizer) and (
                type(optimizer).state_dict is torch.optim.Optimizer.state_dict
            )
            saved = optimizer if inherits else stepping
            self._handles += [
                saved.register_state_dict_post_hook(_Functor(self._save_into)),
                saved.register_load_state_dict_pre_hook(_Functor(self._load_from)),
            ]
        if model is not None:
            self._handles += [
                model.register_forward_pre_hook(_Functor(self._before_forward), with_kwargs=True),
                model.register_forward_hook(_Functor(self._after_forward), with_kwargs=True),
            ]
        if criterion is not None:
            self._handles.append(criterion.register_forward_hook(_Functor(self._after_criterion), with_kwargs=True))
        self._equal = is_distributed()
        if self._equal:
            self._equalize()

    # -- for loops that mask and observe by hand -----------------------------------------------------------------------

    def apply(self, images: Tensor) -> Tensor:
        """Mask a batch and remember the masks until their loss is observed.

        Outside training (gradients off, ``hook.mask.eval()``, :meth:`paused`) it gives the images back as they are.

        Raises:
            PairingError: If too many masked batches already wait for their loss.
        """
        if self._paused or not torch.is_grad_enabled() or not self.mask.training:
            return images
        if torch._C._current_graph_task_id() != -1:
            return self._replay(images)
        if self.learner.frozen:
            self._queue.make_room()
        else:
            self._queue.check_room()
        if images.is_floating_point() and images.device != self.learner.parameters[0].device:
            self.learner.to(images.device)
        with _own_graph(), torch.set_grad_enabled(self._learning and not self.learner.frozen):
            # A subclass (MONAI's MetaTensor) would go on through the policy into its gradients and its checkpoint.
            sample = self.mask.sample(plain_tensor(images), self._generator_for(images.device))
        masked = self.mask(images, sample)
        self._check_range(images)
        self._size = tuple(images.shape[2:])
        self._queue.push(sample)
        self._masked = self._drawn = True
        return masked

    def observe(self, per_sample_loss: Tensor) -> Tensor:
        """Tell the policy what its masks cost: the loss of each image of a masked batch.

        The batch is found by the loss's autograd graph where it leads to the hooked model's output, else it is the
        oldest one that waits.

        Args:
            per_sample_loss: One loss for each image, with or without gradient.

        Shape:
            - per_sample_loss: (B,).

        Returns:
            The loss to train on: the same, or with the paper's estimator the scaled one. While :meth:`paused` always
            the same, unobserved.

        Raises:
            RuntimeError: If no masked batch waits for a loss.
            ValueError: If there is not one loss for each image.
        """
        if not isinstance(per_sample_loss, Tensor):
            raise TypeError(f"per_sample_loss must be a tensor of shape (B,), got {type(per_sample_loss).__name__}")
        if self._paused:
            return per_sample_loss
        if self._queue and per_sample_loss.ndim != 1:
            check_loss(self._queue.newest.sample, per_sample_loss)
        matches = self._queue.find([per_sample_loss])
        if not matches:
            raise RuntimeError(
                "observe was called but no masked batch waits for this loss: mask one first (hook.apply(images), or a "
                "forward of the hooked model in training mode with gradients on), and observe it once, before the step"
            )
        for match in matches:
            if match.index is None:
                check_loss(match.pending.sample, per_sample_loss)
            factor = self._observe(match.pending, partial(_losses_of, match, lambda: per_sample_loss.detach()))
        return per_sample_loss if factor is None else per_sample_loss * factor

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Neither mask nor observe inside this block."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def remove(self) -> None:
        """Take all hooks off. The model is then the heated model, and the policy is let go."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._queue.clear()

    # -- reporting and state -------------------------------------------------------------------------------------------

    @property
    def policy_optimizer(self) -> torch.optim.Optimizer:
        """The policy's own optimizer."""
        return self.learner.optimizer

    @property
    def metrics(self) -> dict[str, float]:
        """Diagnostics of the last step.

        ``reward``, ``baseline``, ``advantage_std``, ``entropy`` (nats an image), ``mask_mean`` and ``mask_std`` (after
        blur and scaling), ``policy_grad_norm``, ``samples_seen`` and ``samples_dropped`` (non-finite, all told).
        Reading them waits for the device; a step does not.
        """
        return self.learner.metrics(self._size)

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs; safe for ``torch.load(weights_only=True)``."""
        return {
            **self.learner.state_dict(),
            "generator": None if self.generator is None else self.generator.get_state(),
            "seed": self._seed,
            "steps": self._steps,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`. Nothing is changed if it does not fit.

        Raises:
            ValueError: If the state belongs to something else.
        """
        self.learner.check_state_dict(state_dict)
        missing = {"generator", "seed", "steps"} - state_dict.keys()
        if missing:
            raise ValueError(f"state_dict is not a hook's: it lacks {sorted(missing)}")
        if self.generator is not None and state_dict["generator"] is not None:
            self.generator.set_state(state_dict["generator"].cpu())
        self.learner.load_state_dict(state_dict)
        self._queue.clear()
        self._seed, self._steps, self._draws = state_dict["seed"], state_dict["steps"], 0
        self._drawn = False

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._masked = False
        # The hooked module's own mode decides: eval() on the user's model never reaches a mask that is not its child.
        if self._paused or not module.training or not torch.is_grad_enabled():
            return None
        path = self._find_input(args, kwargs)
        args, kwargs = _replace((args, kwargs), path, self.apply)
        return args, kwargs

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return None
        if self._output_loss is None or not self._masked:
            self._queue.mark(output, masked=self._masked)
            return None
        output_loss = self._output_loss
        with torch.no_grad():
            factor = self._observe(self._queue.newest, lambda: output_loss(output, args, kwargs))
        return None if factor is None else _replace(output, ("loss",), lambda value: value * factor)

    def _after_criterion(self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Any) -> Any:
        if self._paused or not torch.is_grad_enabled() or not self._queue:
            return None
        factor = None
        for match in self._queue.find([*tensors_of(args), *tensors_of(kwargs)]):
            factor = self._observe(
                match.pending, partial(_losses_of, match, lambda: per_sample_loss(criterion, *args, **kwargs))
            )
        return None if factor is None else loss * factor

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return  # a fused optimizer under GradScaler was called and skipped the step itself
        user_lr = float(optimizer.param_groups[0]["lr"])
        if self._learning:
            self.learner.step(user_lr)
        else:
            self.learner.skip(user_lr)
        self._steps += 1
        self._draws = 0
        self._drawn = False
        # A policy that has moved invalidates the graphs of masks drawn before.
        self._queue.invalidate()

    def _save_into(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, STATE_KEY: self.state_dict()}

    def _load_from(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict = dict(state_dict)
        if STATE_KEY in state_dict:
            self.load_state_dict(state_dict.pop(STATE_KEY))
        else:
            warnings.warn(
                "the optimizer's state was saved without a policy: the classifier resumes, and the policy starts anew",
                stacklevel=4,
            )
        return state_dict

    def _observe(self, pending: Pending, loss: Callable[[], Tensor]) -> Tensor | None:
        """Give a batch its loss, which is not even computed in windows that nothing is learned from."""
        factor = self.learner.observe(pending.sample, loss()) if self._learning else None
        self._queue.pop(pending)
        return factor

    @property
    def _learning(self) -> bool:
        """Whether this window is one that the policy learns from; it is the same on all ranks."""
        return self._steps % self.learner.update_every == 0

    # -- details -------------------------------------------------------------------------------------------------------

    def _replay(self, images: Tensor) -> Tensor:
        """Mask again in a backward: activation checkpointing recomputes the hooked model, its random state restored."""
        if self.generator is not None or is_distributed() or not self._drawn:
            raise RuntimeError(
                "the hooked model itself runs under torch.utils.checkpoint, which cannot replay its masks here: "
                "checkpoint the blocks inside the model, or use use_reentrant=False without a generator of your own"
            )
        with _own_graph(), torch.no_grad():
            return self.mask(images, self.mask.sample(plain_tensor(images)))

    def _equalize(self) -> None:
        """Start all ranks with the first one's policy and seed. One broadcast, when the hook is made."""
        content: list[Any] = [self.mask.state_dict(), self._seed]
        dist.broadcast_object_list(content)
        self.mask.load_state_dict(content[0])
        self._seed = content[1]

    def _generator_for(self, device: torch.device) -> torch.Generator | None:
        if not is_distributed():
            return self.generator
        if not self._equal:
            raise RuntimeError(
                "the hook was made before torch.distributed.init_process_group, so that each rank has a policy of its "
                "own: attach after it"
            )
        if self.generator is not None:
            return self.generator
        # Loops seed all ranks alike as often as not, and equal seeds would give equal masks on all of them. Seeding
        # each draw by its place leaves two numbers to save, so that any rank's checkpoint resumes all ranks.
        seed = self._seed
        for part in (dist.get_rank(), self._steps, self._draws):
            seed = (seed * 6364136223846793005 + part + 1442695040888963407) % 2**64
        self._draws += 1
        return torch.Generator(device).manual_seed(seed >> 1)

    def _find_input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Where the images are in (args, kwargs): a path of keys."""
        named: list[tuple[tuple[Any, ...], Any]] = []
        for path, value in [*(((0, i), v) for i, v in enumerate(args)), *(((1, k), v) for k, v in kwargs.items())]:
            named.append((path, value))
            if isinstance(value, Mapping):
                named += [((*path, key), item) for key, item in value.items()]
        if self._input_name is not None:
            for path, _ in named:
                if path[-1] == self._input_name and (
                    len(path) > 2 or isinstance(self._input_name, int) == (not path[0])
                ):
                    return path
            raise TypeError(
                f"input_name is {self._input_name!r}, but the model was called with {len(args)} positional arguments "
                f"and the names {sorted(str(path[-1]) for path, _ in named if not isinstance(path[-1], int))}"
            )
        axes = len(self.mask.grid_size) + 2
        for path, value in named:
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == axes:
                return path
        got = [f"{tuple(v.shape)} {v.dtype}" if isinstance(v, Tensor) else type(v).__name__ for _, v in named]
        raise TypeError(
            f"the model was called without images: no floating-point tensor of {axes} axes among {got}; normalise "
            "images before the model, or say which input they are with input_name"
        )

    def _check_range(self, images: Tensor) -> None:
        """Warn once, on the first batch, where the images contradict the normalisation that says where black is."""
        if self._checked_range or self.mask.black is None:
            return
        self._checked_range = True
        darkest = images.detach().amin(dim=(0, *range(2, images.ndim))).float()
        black = self.mask.black.flatten()
        # Normalised images in [0, 1] start at black and end within about 5 standard deviations of it.
        if bool((darkest < black - 0.1 * black.abs() - 0.1).any()) or bool((darkest > black + 1.5).all()):
            warnings.warn(
                f"the images' smallest values {_rounded(darkest)} don't fit the black level {_rounded(black)} that "
                "mean and std (for timm models those of pretrained_cfg) give: pass mean=... and std=... as your "
                "transforms use them, or mean=None, std=None to take each image's smallest value as black",
                stacklevel=4,
            )


def _own_graph() -> AbstractContextManager[Any]:
    """Keep the policy's saved tensors away from checkpointing and offloading that surround the hooked model."""
    surrounding = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # since torch 2.5
    if surrounding is not None and surrounding(False) is None:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_same, _same)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _replace(container: Any, path: tuple[Any, ...], function: Callable[[Any], Any]) -> Any:
    """A copy of nested tuples and mappings in which the item at a path went through a function."""
    if not path:
        return function(container)
    item = _replace(container[path[0]], path[1:], function)
    if isinstance(container, Mapping):
        container = copy.copy(container)
        container[path[0]] = item  # type: ignore[index]
        return container
    return (*container[: path[0]], item, *container[path[0] + 1 :])


def stepping_optimizer(optimizer: Any) -> Any:
    """The optimizer whose ``step()`` really runs, inside wrappers that are known to step another one."""
    for name in WRAPPED_OPTIMIZER:
        inner = getattr(optimizer, name, None)
        if isinstance(inner, torch.optim.Optimizer) and inner is not optimizer:
            return stepping_optimizer(inner)
    return optimizer


def _losses_of(match: Match, losses: Callable[[], Tensor]) -> Tensor:
    return match.gather(losses())[0]


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 2) for value in values]


def _check_arguments(mask: Any, optimizer: Any, model: Any, criterion: Any, output_loss: Any, max_pending: int) -> None:
    if not isinstance(mask, PolicyNoiseMask):
        raise TypeError(f"mask must be a PolicyNoiseMask, got {type(mask).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer or a known wrapper of one, got {type(optimizer).__name__}: "
            "pass the optimizer whose step() really runs"
        )
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if criterion is not None and not isinstance(criterion, nn.Module):
        raise TypeError(
            f"criterion must be a torch.nn.Module, got {type(criterion).__name__}; for a function leave criterion out "
            "and call hook.observe(loss) with its loss of shape (B,)"
        )
    if criterion is not None and not is_hookable(criterion):
        raise TypeError(
            f"criterion {type(criterion).__name__} overrides __call__, so that forward hooks never fire: leave "
            "criterion out and call hook.observe(policy_noise.rewards.per_sample_loss(criterion, output, target))"
        )
    if output_loss is not None and (model is None or criterion is not None):
        raise TypeError("output_loss takes the place of criterion and needs model: pass it with a model alone")
    if max_pending < 1 or not math.isfinite(max_pending):
        raise ValueError(f"max_pending must be at least 1, got {max_pending!r}")
    modules = ("_forward_pre_hooks", "_forward_hooks")
    registries: list[tuple[str, Any, tuple[str, ...]]] = [("optimizer", optimizer, ("_optimizer_step_post_hooks",))]
    registries += [
        (name, part, modules) for name, part in (("model", model), ("criterion", criterion)) if part is not None
    ]
    for name, hooked, attributes in registries:
        if any(isinstance(hook, _Functor) for attribute in attributes for hook in getattr(hooked, attribute).values()):
            raise RuntimeError(f"{name} is hooked already: call remove() on its ReinforceHook first")
