"""The hook: masks a model's inputs, observes its losses and steps the policy after the user's optimizer.

The sampled mask and the reward are both detached, so the policy's graph and the classifier's are disjoint. Therefore
the user's loop does not change: loss, scaler, clipping, reducer and parameter groups stay as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..augmentation import StochasticAugmentation
from ..learning import PolicyLearner
from ..losses import LossSplitter, SampleLosses
from ..utils.compat import is_in_backward
from ..utils.distributed import is_distributed
from . import registry
from .arguments import check_arguments
from .copies import Functor
from .inputs import find_images, replace
from .optimizers import stepping_optimizer
from .pairing import Match, PairingQueue, tensors_of
from .schedule import ScheduledStrength, StrengthSchedule
from .streams import Draws
from .trainer import PolicyTrainer
from .watch import Watch

__all__ = ["ReinforceHook"]

OutputLoss = Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor]


class ReinforceHook(PolicyTrainer):
    """Train an augmentation's policy inside an existing training loop.

    With ``model``, its images are transformed whenever it runs in training mode with gradients on. With ``criterion``,
    each call of it gives one loss per image. Without them, call :meth:`apply` and :meth:`observe` yourself. The policy
    has its own optimizer, which steps after each ``optimizer.step()``.

    Args:
        augmentation: What to train: a :class:`policy_noise.PolicyNoiseMask` or any
            :class:`policy_noise.StochasticAugmentation`.
        optimizer: The loop's optimizer, or a wrapper that holds a torch optimizer. None for loops without a torch
            optimizer: call :meth:`step` after each of their steps.
        model: The module whose images are transformed. Pass the one that the loop calls (the DDP or compiled wrapper,
            not the module inside).
        criterion: The loss module that the loop calls with the model's output. Several hooked models may share it.
        output_loss: Instead of ``criterion``, for models that compute their loss inside: a function of the model's
            output, its positional arguments and its keyword arguments that returns one loss per image, (B,).
        loss_method: ``"auto"``, or ``"leave_one_out"`` for criteria that couple samples; see
            :class:`policy_noise.losses.LossSplitter`.
        input_name: Which of the model's inputs holds the images: a position, the name of a keyword, or a key of a
            mapping that the model takes. By default the first floating-point tensor with the right number of axes.
        generator: Source of randomness for the draws. By default the hook has its own streams, derived from
            ``torch.initial_seed()`` and the rank, and leaves the loop's generators as they are.
        max_pending: How many masked forward passes may wait for their losses; see :class:`policy_noise.PairingError`.
        state_in_optimizer: Save the policy in ``optimizer.state_dict()``, so that existing checkpointing code resumes
            it. With False, use :meth:`state_dict` and :meth:`load_state_dict`.
        strength_schedule: The share of the augmentation's ``strength`` at each step; see
            :class:`policy_noise.StrengthSchedule`.
        compile: Compile a mask's own work with :func:`torch.compile`. Policy, scores and rendering become a few fused
            kernels, for batches of any size; another image size compiles again. The draws stay outside and keep their
            generators. If compiling fails, the hook warns once and runs uncompiled.
        **learner: How the policy learns; see :class:`policy_noise.learning.PolicyLearner`. By default the policy is
            cooperative and its entropy is free. (:func:`policy_noise.attach` has other defaults, those of its preset.)

    Note:
        A loss counts only if it comes before the next step. A forward pass that runs ahead of a step (prefetching) is
        masked, but not learned from. If the loop calls the criterion several times on one forward's output, the first
        call gives the reward; to reward another loss, call :meth:`observe`. Ranks must be data parallel:
        tensor-parallel ranks, which need equal inputs, would get different masks.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a value is out of its range.
        RuntimeError: If model or optimizer is hooked already.

    Example:
        >>> from policy_noise import PolicyNoiseMask
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
        augmentation: StochasticAugmentation,
        optimizer: Any,
        *,
        model: nn.Module | None = None,
        criterion: nn.Module | None = None,
        output_loss: OutputLoss | None = None,
        loss_method: str = "auto",
        input_name: int | str | None = None,
        generator: torch.Generator | None = None,
        max_pending: int = 8,
        state_in_optimizer: bool = True,
        strength_schedule: StrengthSchedule | Callable[[int], float] | None = None,
        compile: bool = False,
        **learner: Any,
    ) -> None:
        stepping = None if optimizer is None else stepping_optimizer(optimizer)
        known = registry.was_hooked(stepping)  # then its state may come from this process, not from a checkpoint
        check_arguments(augmentation, stepping, optimizer, model, criterion, output_loss, max_pending)
        self.augmentation = augmentation
        self.learner = PolicyLearner(augmentation, **learner)
        self._draws = Draws(augmentation.compiled() if compile else augmentation, generator)
        self._output_loss = output_loss
        self._splitter = None if criterion is None else LossSplitter(criterion, loss_method)  # type: ignore[arg-type]
        self._input_name = input_name
        self._queue = PairingQueue(max_pending)
        self._paused = 0
        self._masked = False
        self._size: tuple[int, ...] | None = None
        self._strength = None if strength_schedule is None else ScheduledStrength(augmentation, strength_schedule)
        self._watch = Watch(model)
        self._state_in_optimizer = state_in_optimizer
        self._targets: list[Any] = []
        self._handles: list[RemovableHandle] = []
        self._optimizer_handles, self._optimizer_targets = [], []
        if model is not None:
            self._register(
                model,
                model.register_forward_pre_hook(
                    Functor(self._before_forward, self._watch.was_copied), with_kwargs=True
                ),
                model.register_forward_hook(Functor(self._after_forward), with_kwargs=True),
            )
        if criterion is not None and (self._learns or self.learner.scales_loss):
            self._register(
                criterion,
                criterion.register_forward_pre_hook(Functor(self._before_criterion), with_kwargs=True),
                criterion.register_forward_hook(Functor(self._after_criterion), with_kwargs=True),
            )
        self._stepping: torch.optim.Optimizer | None = None
        if optimizer is not None:
            self._hook_optimizer(optimizer)
            registry.follow_steps(self)
        resumable = state_in_optimizer and self._learns and not known
        self._watch.attached(stepping, wrapped=stepping is not optimizer, resumable=resumable)
        if is_distributed():
            self._equalize()

    def rebind(self, optimizer: Any) -> None:
        """Switch to another optimizer, for example one that was made when layers were unfrozen."""
        stepping = stepping_optimizer(optimizer)
        check_arguments(self.augmentation, stepping, optimizer, None, None, None, self._queue.max_pending)
        self._unhook_optimizer()
        self._hook_optimizer(optimizer)

    def remove(self) -> None:
        """Remove all hooks. The model trains on unmasked images again, and the policy no longer learns."""
        self._unhook_optimizer()
        registry.leave_steps(self)
        for handle in self._handles:
            handle.remove()
        for target in self._targets:
            registry.leave(target, self)
        self._handles.clear()
        self._targets.clear()
        self._queue.clear()
        if self._strength is not None:
            self._strength.restore()

    def __enter__(self) -> "ReinforceHook":
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._masked = False
        if self._paused or not self.augmentation.training:
            self._watch.masked()
            return None
        # Check the hooked module's mode. The mask is not its child, so model.eval() does not reach the mask.
        self._watch.evaluating += not module.training
        self._watch.without_gradients += not torch.is_grad_enabled()
        if not module.training or not torch.is_grad_enabled():
            return None
        path = find_images(args, kwargs, self._input_name, self.augmentation.spatial_dims + 2)
        args, kwargs = replace((args, kwargs), path, self.apply)
        return args, kwargs

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not torch.is_grad_enabled() or is_in_backward():
            return None
        if self._output_loss is None or not self._masked:
            self._queue.mark(output, masked=self._masked)
            return None
        output_loss = self._output_loss

        def losses() -> SampleLosses:
            with torch.no_grad():
                found = output_loss(output, args, kwargs)
            return found if isinstance(found, SampleLosses) else SampleLosses(found, None)

        factor = self._observe([Match(self._queue.newest)], losses)
        return None if factor is None else replace(output, ("loss",), lambda value: value * factor)

    def _before_criterion(self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._queue and self._learning and self._learns and not self._paused and torch.is_grad_enabled():
            assert self._splitter is not None
            self._splitter.before(args, kwargs)

    def _after_criterion(self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Any) -> Any:
        if self._paused or not torch.is_grad_enabled() or not self._queue or self._splitter is None:
            return None
        splitter = self._splitter
        matches = self._queue.find([*tensors_of(args), *tensors_of(kwargs)])
        factor = self._observe(matches, lambda: splitter(args, kwargs, loss))
        return None if factor is None else loss * factor

    def after_foreign_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after each step of any optimizer in the process, to notice one that replaced the hooked one."""
        waiting = self._queue or self.learner.observations or self._watch.suspects_copy
        if optimizer is self.learner.optimizer or not waiting:
            return
        if self._watch.foreign_step(optimizer, self._stepping):
            self.learner.forget()
            self._queue.invalidate()

    def _register(self, target: nn.Module, *handles: RemovableHandle) -> None:
        self._handles += handles
        self._targets.append(target)
        registry.enter(target, self)
