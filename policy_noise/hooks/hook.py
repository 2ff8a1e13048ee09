"""The hook: masks a model's inputs, observes its losses and steps the policy after the user's optimizer.

The sampled mask and the reward are both detached, so the policy's graph and the classifier's are disjoint. Therefore
the user's loop does not change: loss, scaler, clipping, reducer and parameter groups stay as they are.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..augmentation import Sample, StochasticAugmentation
from ..learning import PolicyLearner
from ..learning._window import check_loss
from ..learning.learner import MAX_WINDOW
from ..losses import CriterionError, LossMethod, LossSplitter, SampleLosses, is_hookable, loss_of, with_loss
from ..utils.compat import backward_number, is_in_backward, is_replica, is_transformed
from ..utils.misc import is_distributed, tensors_in
from ..utils.warn import warn
from . import _registry as registry
from ._calls import Call, InputName, find_images, is_training, item_at, replace
from ._draws import Draws, joined
from ._pairing import Match, PairingError, PairingQueue, Pending
from ._registry import Functor, saves_itself, stepping_optimizer
from ._trained import Look, Term, trained_losses
from ._watch import Watch

__all__ = ["ReinforceHook"]

WITH_CRITERION = (
    "call the hooked criterion or hook.observe(per_sample_loss) once for each, or run forwards that have no loss under "
    "hook.paused()"
)
WITHOUT_CRITERION = (
    "the hook has no criterion. Pass it to attach, call hook.observe(per_sample_loss) once for each, or use masks that "
    "are not learned (preset='random')"
)
OutputLoss = Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor]

STATE_KEY = "policy_noise"
NO_REPLICAS = (
    "its threads run copies of the model, whose masks can't be paired with losses; use DistributedDataParallel"
)
NO_HOOKS = "scripted modules take no hooks. Pass the module that you scripted, and call that in the loop"


class ReinforceHook:
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
        loss_method: ``"auto"``; ``"own"`` for the criterion on each image alone, where its batch loss is another mean;
            or ``"leave_one_out"`` for criteria that couple samples. See :class:`policy_noise.losses.LossSplitter`.
        input_name: Which of the model's inputs holds the images: a position, the name of a keyword, or a key of a
            mapping that the model takes. By default the first floating-point tensor with the right number of axes, or
            else a list of images, which are masked one by one. Several inputs (``("left", "right")``) get a mask each,
            and each is rewarded with the loss of its row.
        shared_mask: Give the several inputs of ``input_name`` the same mask: two modalities of one patient.
        generator: Source of randomness for the draws. By default the hook has its own streams, derived from
            ``torch.initial_seed()`` and the rank, and leaves the loop's generators as they are.
        max_pending: How many masked forward passes may wait for their losses; see :class:`policy_noise.PairingError`.
        state_in_optimizer: Save the policy in ``optimizer.state_dict()``, so that existing checkpointing code resumes
            it. With False, use :meth:`state_dict` and :meth:`load_state_dict`.
        strength_schedule: The share of the augmentation's ``strength`` at each step; see
            :class:`policy_noise.StrengthSchedule`.
        **learner: How the policy learns; see :class:`policy_noise.learning.PolicyLearner`. By default the policy is
            cooperative and its entropy is free. (:func:`policy_noise.attach` has other defaults, those of its preset.)

    Note:
        A loss counts only if it comes before the next step. A forward pass that runs ahead of a step (prefetching) is
        masked, but not learned from. The reward is the loss that is trained on: if the loop calls the criterion several
        times on one forward's output, and adds up, weights or negates what it returns, so is the reward, up to a factor
        that is common to all images of the step. Calls that no backward pass reaches do not count. To reward another
        loss, call :meth:`observe`. Ranks must be data parallel: tensor-parallel ranks, which need equal inputs, would
        get different masks.

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
        loss_method: LossMethod = "auto",
        input_name: InputName = None,
        shared_mask: bool = False,
        generator: torch.Generator | None = None,
        max_pending: int = 8,
        state_in_optimizer: bool = True,
        strength_schedule: Callable[[int], float] | None = None,
        **learner: Any,
    ) -> None:
        stepping = None if optimizer is None else stepping_optimizer(optimizer)
        known = registry.was_hooked(stepping)  # then its state may come from this process, not from a checkpoint
        _check_arguments(augmentation, model, criterion, output_loss, loss_method, max_pending)
        if shared_mask and (input_name is None or isinstance(input_name, int | str) or len(input_name) < 2):
            raise TypeError(f"shared_mask=True is for several inputs: name them with input_name, got {input_name!r}")
        _check_free(model, stepping)
        self.augmentation = augmentation
        self.learner = PolicyLearner(augmentation, **learner)
        self._model, self._criterion, self._optimizer, self._stepping = model, criterion, optimizer, stepping
        self._number = _free_number(stepping)
        self._draws = Draws(augmentation, generator, self._number, strength_schedule)
        self._output_loss = output_loss
        self._loss_method: LossMethod = loss_method
        self._splitter = None if criterion is None else LossSplitter(criterion, loss_method)
        self._input_name = input_name
        self._shared_mask = shared_mask
        self._queue = PairingQueue(max_pending)
        self._forwards = 0
        self._backward, self._gradient = -1, 0
        self._look = Look()
        self._pauses = 0
        self._calls: list[Call] = []
        self._size: tuple[int, ...] | None = None
        self._checked = False
        self._watch = Watch(model)
        self._state_in_optimizer = state_in_optimizer
        self._handles: dict[Any, list[RemovableHandle]] = {}
        try:
            self._activate()
            resumable = state_in_optimizer and self._learns and not known
            self._watch.attached(stepping, wrapped=stepping is not optimizer, resumable=resumable)
            if is_distributed():
                self._equalize()
        except BaseException:
            self.remove()
            raise

    def rebind(self, optimizer: Any = None, *, criterion: nn.Module | None = None) -> None:
        """Switch to an optimizer or a criterion that was made during training, and keep the policy.

        Args:
            optimizer: The new optimizer, for example one for layers that were unfrozen. None keeps the current one.
            criterion: The new criterion, for example one with other class weights. None keeps the current one.

        Raises:
            TypeError: If an argument is of the wrong kind, or the hook has no criterion.
            RuntimeError: If the optimizer has a hook for the same model.

        Example:
            >>> from policy_noise import attach
            >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
            >>> hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
            >>> hook.rebind(torch.optim.AdamW(model.parameters()), criterion=nn.CrossEntropyLoss(label_smoothing=0.1))
        """
        if criterion is not None:
            _check_criterion(criterion)
            if self._criterion is None:
                raise TypeError("criterion cannot be switched: the hook was made without one")
            self._unregister(self._criterion)
            self._criterion, self._splitter = criterion, LossSplitter(criterion, self._loss_method)
            self._hook_criterion()
        if optimizer is not None:
            stepping = stepping_optimizer(optimizer)
            _check_free(self._model, stepping, besides=self)
            for target in {self._optimizer, self._stepping} & self._handles.keys():
                self._unregister(target)
            self._optimizer, self._stepping = optimizer, stepping
            self._number = _free_number(stepping, self._number)
            self._hook_optimizer()

    def remove(self) -> None:
        """Remove all hooks. The model trains on unmasked images again, and the policy no longer learns."""
        registry.leave_steps(self._after_any_step)
        for target in list(self._handles):
            self._unregister(target)
        self._queue.clear()
        self._draws.restore_strength()

    def __repr__(self) -> str:
        level = ""
        if hasattr(self.augmentation, "black"):
            black: Any = self.augmentation.black
            known = isinstance(black, Tensor)
            level = f", black {[round(v, 2) for v in black.flatten().tolist()] if known else 'from each image'}"
        size = "none yet" if self._size is None else f"{' x '.join(map(str, self._size))} px"
        how = "observe()" if self._splitter is None else f"{type(self._splitter.criterion).__name__}, {self._splitter}"
        stepping = "hook.step()" if self._stepping is None else type(self._stepping).__name__
        return (
            f"images: {size}, {type(self.augmentation).__name__}{level}\n"
            f"losses: {how if self._learns else 'not needed, nothing is learned'}\n"
            f"steps: {stepping}, {self._draws.steps} so far"
        )

    def __enter__(self) -> "ReinforceHook":
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()

    # -- for loops that mask and observe by hand -----------------------------------------------------------------------

    def apply(self, images: Tensor) -> Tensor:
        """Transform a batch, and remember the draw until its loss is observed.

        Outside training (gradients off, ``hook.augmentation.eval()``, :meth:`paused`) it returns the images unchanged.

        Raises:
            PairingError: If none of the first ``max_pending`` batches had a loss.

        Example:
            >>> from policy_noise import PolicyNoiseMask
            >>> hook = ReinforceHook(PolicyNoiseMask(), None)
            >>> masked = hook.apply(torch.rand(2, 3, 8, 8))  # and then hook.observe(losses)
            >>> with torch.no_grad():
            ...     hook.apply(masked) is masked
            True
        """
        return self._mask([images], views=False)[0][0]

    def _mask(self, batches: Sequence[Tensor], *, views: bool) -> tuple[list[Tensor], Pending | None]:
        """Transform batches that have their losses together, and remember the draw.

        Args:
            batches: Batches of different images, or with ``views`` several batches that show the same ones.
            views: Which of both.

        Returns:
            The batches, and what waits for their losses, if they were transformed.
        """
        images = batches[0]
        # Outside training nothing is looked at: validation may pass anything.
        if self._pauses or not torch.is_grad_enabled() or not self.augmentation.training:
            return list(batches), None
        # Before all that reads the images: under a transform they are wrappers, whose shapes lack the batch.
        if is_transformed():
            self._watch.transformed()
            return list(batches), None
        axes = self.augmentation.spatial_dims + 2
        for batch in batches:
            if isinstance(batch, Tensor) and batch.ndim != axes:
                raise ValueError(f"images must be a batch with {axes} axes, got shape {tuple(batch.shape)}")
        if views and len({len(batch) for batch in batches}) > 1:
            raise ValueError(f"input_name must name inputs of equal length, got {[len(batch) for batch in batches]}")
        drawn_for = batches[:1] if views and self._shared_mask else batches
        # Checkpointing's recomputation repeats a draw, so it comes before everything that draws or counts.
        if is_in_backward():
            return self._transformed(batches, [self._draws.repeat(batch) for batch in drawn_for]), None
        # From here on the batch is one of training. Without a mask it counts as masked on purpose, and nothing waits.
        if isinstance(images, Tensor) and not len(images):
            self._watch.masked()
            return list(batches), None
        if not self._draws.set_strength():
            self._watch.masked()
            return list(batches), None
        # Before the draw, so that an error leaves the random streams as they were.
        if self._learns:
            observes = self._splitter is not None or self._output_loss is not None
            self._queue.check_room(WITH_CRITERION if observes else WITHOUT_CRITERION)
        else:
            self._queue.make_room()
        if images.is_floating_point() and images.device != self.learner.device:
            self.learner.to(images.device)
        samples = [self._draws.draw(batch, with_graph=self._learning and self._learns) for batch in drawn_for]
        masked = self._transformed(batches, samples)
        if not self._checked and bool(images.detach().isfinite().any()):
            self.augmentation.check(images)
            self._checked = True
        self._size = tuple(batches[-1].shape[2:])
        # Last, because a batch that failed above must not wait for a loss.
        sample = joined(samples)
        pending = self._queue.push(sample, views=len(samples) if views else 1)
        if self.learner.is_random:
            self.learner.saw(sample)
        self._watch.masked()
        return masked, pending

    def _transformed(self, batches: Sequence[Tensor], samples: Sequence[Sample]) -> list[Tensor]:
        """Transform each batch with its own draw, or all with the only one."""
        own = samples if len(samples) == len(batches) else [*samples] * len(batches)
        return [self._draws.augmentation(batch, sample) for batch, sample in zip(batches, own, strict=True)]

    def observe(self, per_sample_loss: Tensor, *, valid: Tensor | None = None, index: Any = None) -> Tensor:
        """Tell the policy the loss of each image of a masked batch.

        If the loss's autograd graph leads to an output of the hooked model, the loss belongs to that batch. Otherwise
        it belongs to the oldest batch that still waits for its loss.

        Args:
            per_sample_loss: One loss per image, with or without gradient.
            valid: Which losses count, bool; by default all.
            index: Needed if there is not exactly one loss per image of one batch. For each loss, the number of its
                image, or -1 for none. Or a list of (forward, index) pairs, where forward 0 is the oldest waiting batch
                and -1 the newest.

        Shape:
            - per_sample_loss: (B,), or (N,) with an index.
            - valid, index: the same.

        Returns:
            The loss to train on: the same loss, or with the paper's estimator the scaled one. While :meth:`paused`, the
            loss is returned unchanged and not observed.

        Raises:
            RuntimeError: If no masked batch waits for a loss.
            ValueError: If there is not one loss per image.

        Example:
            >>> from policy_noise import PolicyNoiseMask
            >>> hook = ReinforceHook(PolicyNoiseMask(), None)
            >>> masked = hook.apply(torch.rand(4, 3, 8, 8))
            >>> loss = hook.observe(masked.square().mean((1, 2, 3))).mean()  # in a loop: loss.backward()
            >>> hook.step()
            >>> hook.metrics["samples_seen"]
            4
        """
        if self.learner.is_random:
            raise RuntimeError(
                "observe has nothing to teach, because these masks are not learned: leave it out, or pass "
                "attach(..., preset='learned')"
            )
        if not isinstance(per_sample_loss, Tensor):
            raise TypeError(f"per_sample_loss must be a tensor of shape (B,), got {type(per_sample_loss).__name__}")
        if self._pauses or not per_sample_loss.numel():
            return per_sample_loss
        if self._queue and per_sample_loss.ndim != 1:
            check_loss(len(self._queue.newest), per_sample_loss)
        if index is None:
            matches = self._queue.find([per_sample_loss])
        else:
            matches = self._queue.given(index, len(per_sample_loss), [per_sample_loss])
        if not matches:
            raise RuntimeError(
                "observe was called but no masked batch waits for this loss: mask one first (hook.apply(images), or a "
                "forward of the hooked model in training mode with gradients on), and observe it once, before the step"
            )
        for match in matches:
            if match.index is None:
                check_loss(len(match.pending), per_sample_loss)
        values = per_sample_loss.detach().float()
        losses = SampleLosses(values if valid is None else torch.where(valid, values, 0.0), valid)
        factor = self._observe(matches, losses if self._learning else None)
        return per_sample_loss if factor is None else per_sample_loss * factor

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Neither mask nor observe inside this block.

        Example:
            >>> from policy_noise import PolicyNoiseMask
            >>> hook, images = ReinforceHook(PolicyNoiseMask(), None), torch.rand(2, 3, 8, 8)
            >>> with hook.paused():  # an attack, a GAN's other step, Grad-CAM
            ...     hook.apply(images) is images
            True
        """
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def step(self, lr: float | None = None) -> None:
        """Step the policy. Call it only if your loop has no torch optimizer, after each of the loop's own steps.

        Args:
            lr: The loop's current learning rate, which the policy's rate follows. None keeps the policy's rate at its
                peak.

        Example:
            >>> from policy_noise import PolicyNoiseMask
            >>> hook = ReinforceHook(PolicyNoiseMask(), optimizer=None)
            >>> losses = hook.observe(hook.apply(torch.rand(4, 3, 8, 8)).mean((1, 2, 3)))
            >>> hook.step(lr=0.1)  # after the loop's own step
        """
        self._step({} if lr is None else {"lr": lr})

    # -- metrics and state ---------------------------------------------------------------------------------------------

    @property
    def policy_optimizer(self) -> torch.optim.Optimizer | None:
        """The policy's own optimizer; None if there is nothing to learn."""
        return self.learner.optimizer

    @property
    def metrics(self) -> dict[str, float]:
        """Diagnostics of the last step. The keys never change. A value is NaN as long as there is no number.

        Of random masks: ``share_masked``, ``mask_mean`` and ``mask_std`` of the last batch, and ``samples_seen``. Else
        ``reward``, ``baseline``, ``loss_std``, ``entropy`` (nats per image), ``policy_grad_norm``,
        ``entropy_coef`` (with an ``entropy_target``), the augmentation's own metrics (``mask_mean`` and ``mask_std``
        for masks, after blur and scaling), ``samples_seen`` (images of all observed batches, unmasked and unlabelled
        ones included) and ``samples_dropped`` (images whose loss was not finite). Reading the metrics waits for the
        device; a step does not.
        """
        return self.learner.metrics(self._size)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume. It can be loaded with ``torch.load(weights_only=True)``.

        Example:
            >>> from policy_noise import PolicyNoiseMask
            >>> hook, resumed = (ReinforceHook(PolicyNoiseMask(), optimizer=None) for _ in range(2))
            >>> resumed.load_state_dict(hook.state_dict())
        """
        generator = self._draws.generator
        return {
            **self.learner.state_dict(),
            "generator": None if generator is None else generator.get_state(),
            "seed": self._draws.seed,
            "steps": self._draws.steps,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a :meth:`state_dict`. If it does not fit, nothing is changed.

        Raises:
            ValueError: If the state belongs to another policy, or is not a hook's.
        """
        if isinstance(state_dict, Mapping) and isinstance(state_dict.get(self._key), Mapping):
            state_dict = state_dict[self._key]
        self.learner.check_state_dict(state_dict)
        missing = {"generator", "seed", "steps"} - state_dict.keys()
        if missing:
            raise ValueError(f"state_dict must be from a hook's state_dict(), got one without {sorted(missing)}")
        if self._draws.generator is not None and state_dict["generator"] is not None:
            self._draws.generator.set_state(state_dict["generator"].cpu())
        self.learner.load_state_dict(state_dict)
        self._queue.clear()
        self._draws.restore(state_dict["seed"], state_dict["steps"])

    # -- hooks on model and criterion ----------------------------------------------------------------------------------

    def _overlaps(self, model: nn.Module | None) -> bool:
        """Whether a model is the hooked one, or lies inside or around it. Without a model nothing tells hooks apart."""
        if model is None or self._model is None:
            return model is self._model
        return model in set(self._model.modules()) or self._model in set(model.modules())

    def _activate(self) -> None:
        """Register all hooks, also after :meth:`remove`."""
        if self._model is not None:
            before = Functor(self._before_forward, self._watch.was_copied)
            self._register(self._model, before, self._after_forward, after_errors=True)
        self._hook_criterion()
        self._hook_optimizer()

    def _hook_criterion(self) -> None:
        if self._criterion is not None and (self._learns or self.learner.scales_loss):
            self._register(self._criterion, Functor(self._before_criterion), self._after_criterion)

    def _hook_optimizer(self) -> None:
        if self._stepping is None:
            return
        for target in (self._optimizer, self._stepping):
            self._handles.setdefault(target, [])
            registry.enter(target, self)
        handles = self._handles[self._stepping]
        handles.append(self._stepping.register_step_post_hook(Functor(self._after_step)))
        if self._state_in_optimizer:
            saved = self._optimizer if saves_itself(self._optimizer) else self._stepping
            handles.append(saved.register_state_dict_post_hook(Functor(self._save_into)))
            handles.append(saved.register_load_state_dict_pre_hook(Functor(self._load_from)))
        registry.follow_steps(self._after_any_step)

    def _register(
        self, target: nn.Module, before: Functor, after: Callable[..., Any], *, after_errors: bool = False
    ) -> None:
        handles = self._handles.setdefault(target, [])
        handles.append(target.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(target.register_forward_hook(Functor(after), with_kwargs=True, always_call=after_errors))
        registry.enter(target, self)

    def _unregister(self, target: Any) -> None:
        for handle in self._handles.pop(target, ()):
            handle.remove()
        registry.leave(target, self)

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if is_replica(module):
            raise RuntimeError(f"the hooked model runs as a replica of DataParallel: {NO_REPLICAS}")
        outer = self._calls[-1] if self._calls else None
        call = Call()
        self._calls.append(call)
        if self._pauses or not self.augmentation.training:
            self._watch.masked()
            return None
        # Check the hooked module's mode. The mask is not its child, so model.eval() does not reach the mask.
        training, with_gradients = is_training(module), torch.is_grad_enabled()
        if not training or not with_gradients:
            self._watch.skipped(evaluating=not training, without_gradients=not with_gradients)
            return None
        axes = self.augmentation.spatial_dims + 2
        within = outer is not None and outer.masked
        paths, others = find_images(args, kwargs, self._input_name, axes, required=not within)
        inputs = (args, kwargs)
        images = [item_at(inputs, path) for path in paths]
        if outer is not None and outer.masks([*tensors_in(images)]):
            self._calls[-1] = outer.within([*tensors_in(images)])
            return None
        if others and self._input_name is None:
            self._watch.several_inputs([path[-1] for path in (*paths, *others)])
        call.is_list = isinstance(images[0], list | tuple)
        if call.is_list:
            masked, call.pending = self._mask([image.unsqueeze(0) for image in images[0]], views=False)
            masked = [image.squeeze(0) for image in masked]
            inputs = replace(inputs, paths[0], lambda listed: masked if isinstance(listed, list) else tuple(masked))
        else:
            masked, call.pending = self._mask(images, views=len(images) > 1)
            batches = iter(masked)
            for path in paths:
                inputs = replace(inputs, path, lambda _: next(batches))
        call.masked = masked if call.pending is not None or is_in_backward() else ()
        call.unmasked = [item_at(inputs, path) for path in others]
        call.drawn = [] if call.pending is None else [call.pending]
        return inputs

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = self._calls.pop() if self._calls else Call()
        if output is None and sys.exc_info()[0] is not None:  # it failed; the loop may catch the error and go on
            for pending in call.drawn:
                self._queue.drop(pending)
            return None
        if self._calls:
            self._calls[-1].drawn += call.drawn
            self._calls[-1].reached += call.pendings
        if not torch.is_grad_enabled() or is_in_backward() or call.is_part:
            return None
        pendings = call.pendings
        output_loss = self._output_loss
        if output_loss is None and call.is_list:
            output_loss = self._loss_of_one(output, pendings)
        if output_loss is None or not pendings:
            # Where calls within this one were masked, each marked its own output.
            if len(pendings) <= 1:
                self._queue.mark(output, pendings[0] if pendings else None)
            if self._looks:
                for pending in pendings:
                    if not pending.terms:  # else the criterion was called inside
                        self._look.mark_outputs(tensors_in(output), pending)
            return None
        if self._calls:
            return None  # the outermost call has the loss
        losses = None
        if self._learning and self._learns:
            with torch.no_grad():
                found = output_loss(output, args, kwargs)
            losses = found if isinstance(found, SampleLosses) else SampleLosses(found, None)
        factor = self._observe([Match(pending) for pending in pendings], losses)
        return None if factor is None else replace(output, ("loss",), lambda value: value * factor)

    def _loss_of_one(self, output: Any, pendings: list[Pending]) -> OutputLoss | None:
        """The loss of a detector's only image: the sum of the losses that it returned. None if it returned others.

        Raises:
            PairingError: If the losses are those of several images.
        """
        values = [*output.values()] if isinstance(output, Mapping) else []
        if not values or not pendings or not all(isinstance(v, Tensor) and v.ndim == 0 for v in values):
            return None
        if self._learns and self._learning and len(pendings[0]) > 1:
            raise PairingError(
                f"the model returned losses ({', '.join(map(str, output))}) of {len(pendings[0])} images together, so "
                "it is not known which image has which loss: call it with one image at a time, or pass output_loss "
                "(one loss for each image), or use random masks (preset='random')"
            )
        return lambda output, args, kwargs: torch.stack([value.detach().float() for value in values]).sum().view(1)

    def _before_criterion(self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forwards = self._queue.number
        if self._queue.has_open and self._learning and self._learns and self._observes:
            assert self._splitter is not None
            self._splitter.before(args, kwargs)

    def _after_criterion(
        self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any
    ) -> Any:
        splitter = self._splitter
        if splitter is None or not self._queue.has_open or not self._observes:
            return None
        if self._queue.number > self._forwards:
            raise CriterionError(
                f"criterion {type(criterion).__name__} runs the hooked model. Its second evaluation, for the reward, "
                "would see unmasked images: call the model in the loop and give the criterion its output, or omit the "
                "criterion and call hook.observe(losses) with one loss per image, shape (B,)"
            )
        loss = loss_of(returned)
        if loss is not None and not loss.requires_grad:
            return None  # nothing is trained on it
        inputs = [*tensors_in(args), *tensors_in(kwargs)]
        matches = self._queue.find(inputs)
        if not matches:
            return None
        if not (self._learning and self._learns):
            factor = self._observe(matches, None)
            return None if factor is None or loss is None else with_loss(returned, loss * factor)
        losses = splitter(args, kwargs, returned)
        assert loss is not None
        for match in matches:
            match.gather(losses.values, losses.valid)  # rows that do not fit are refused here, in the loop's line
        factor = self._loss_factor(matches)
        if factor is not None:
            loss = loss * factor
        # The loss that is trained on may be any sum of the criterion's calls. What each counts is known at the step.
        term = Term(loss, losses, self._gradient_number)
        if self._looks:
            self._look.mark_call(loss)
            for match in matches:
                if not match.pending.marked:
                    self._look.mark_outputs(inputs, match.pending)
        for match in matches:
            match.pending.terms.append((term, match))
            self._queue.score(match.pending)
        if len(self._queue.scored) > MAX_WINDOW:
            self._queue.scored.popleft()
            self.learner.say_no_step()
        return None if factor is None else with_loss(returned, loss)

    @property
    def _observes(self) -> bool:
        """Whether a call of the criterion may be one of training, and not checkpointing's repetition of one."""
        return not self._pauses and torch.is_grad_enabled() and not is_in_backward()

    @property
    def _learns(self) -> bool:
        return not self.learner.frozen

    @property
    def _looks(self) -> bool:
        """Whether it is looked at what this step trains on."""
        return self._look.is_due and self._learning and self._learns

    @property
    def _learning(self) -> bool:
        """Whether the policy learns from this window (``update_every``). All ranks agree."""
        return self._draws.steps % self.learner.update_every == 0

    def _observe(self, matches: Sequence[Match], losses: SampleLosses | None) -> Tensor | None:
        """Pass the losses of batches to the learner. None: nothing is learned from them. Returns the loss's factor."""
        if losses is not None:
            for match in matches:
                values, valid = match.gather(losses.values, losses.valid)
                self.learner.observe(match.pending.sample, *match.pending.spread(values, valid))
        for match in matches:
            self._queue.pop(match.pending)
        return self._loss_factor(matches)

    def _loss_factor(self, matches: Sequence[Match]) -> Tensor | None:
        """What the classifier's loss is multiplied by; None leaves it alone."""
        factors = [self.learner.loss_scale(match.pending.sample) for match in matches]
        known = [factor for factor in factors if factor is not None]
        return torch.stack(known).mean() if known else None

    def _say_what_is_missing(self) -> None:
        """Say once if the loop trains on something that was never observed, or that the reward does not follow."""
        if self._queue.unobserved:
            self._watch.say(
                "unobserved",
                "the model was trained on a loss that the hook did not see: its output reached backward, but with no "
                "call of the hooked criterion and no hook.observe. Nothing is learned from these images: pass the loss "
                "module that the loop calls as criterion, or call hook.observe(losses) with one loss per image, "
                "shape (B,)",
            )
        besides = self._look.besides(self._queue.scored)
        if besides is not None:
            self._watch.say(
                "partly",
                "the loop trains on something besides the hooked criterion: the model's output also reaches the loss "
                f"by another way (a functional loss, a penalty; autograd's {besides}), and the reward leaves that part "
                "out. Put it into the criterion, or call hook.observe(losses) with each image's whole loss, shape (B,)",
            )
        if self._look.nonlinear:
            self._watch.say(
                "nonlinear",
                "the loop puts the criterion's losses through a function that is not linear (autograd's "
                f"{self._look.nonlinear}), and the reward is each loss times that function's slope: call "
                "hook.observe(losses) with the function's values, one per image, shape (B,)",
            )
        self._look.stepped()

    def _close_window(self) -> None:
        """Pass the losses that were trained on to the learner."""
        reached = 0
        for pending, values, valid in trained_losses(self._queue.scored):
            self.learner.observe(pending.sample, *pending.spread(values, valid))
            reached += 1
        if reached < len(self._queue.scored):
            self._watch.say(
                "untrained",
                "a masked forward has losses, but none of them is part of a backward pass. So nothing is learned from "
                "it: train on what the criterion returns, or run such forwards under torch.no_grad() or "
                "hook.paused()",
            )
        for pending in self._queue.scored:
            pending.terms.clear()
        self._queue.scored.clear()

    # -- hooks on the optimizer ----------------------------------------------------------------------------------------

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return  # GradScaler calls a fused optimizer even after an overflow; it skips the step itself
        self._step(optimizer.param_groups[0])

    def _gradient_number(self) -> int:
        """The number of the gradient that the running backward pass adds to. After ``zero_grad`` it is another one."""
        running = backward_number()
        if running != self._backward and self._stepping is not None:
            groups = self._stepping.param_groups
            self._gradient += all(parameter.grad is None for group in groups for parameter in group["params"])
        self._backward = running
        return self._gradient

    def _after_any_step(self, optimizer: torch.optim.Optimizer) -> None:
        """After each step of any optimizer in the process: notice one that replaced the hooked one."""
        waiting = self._queue.has_open or self.learner.observations or self._watch.suspects_copy
        if optimizer is self.learner.optimizer or not waiting:
            return
        if self._watch.foreign_step(optimizer, self._stepping):
            self.learner.forget()
            self._queue.invalidate()

    def _step(self, group: Mapping[str, Any]) -> None:
        self._watch.first_step(lambda: "; ".join(repr(self).splitlines()))
        self._say_what_is_missing()
        self._close_window()
        if self._learning:
            self.learner.step(group)
        else:
            self.learner.rate(group)  # it may be the largest seen
        self._draws.advance()
        self._calls.clear()  # of forwards that were interrupted
        if self._splitter is not None:
            self._splitter.stepped()
        # The policy has changed, so the graphs of earlier masks are no longer valid.
        self._queue.invalidate()
        self._watch.stepped(paused=bool(self._pauses))

    @property
    def _key(self) -> str:
        """Key of the policy in the optimizer's state dict. Several hooks on one optimizer are numbered."""
        return f"{STATE_KEY}.{self._number}" if self._number else STATE_KEY

    def _save_into(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, self._key: self.state_dict()}

    def _load_from(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict = dict(state_dict)
        if self._key in state_dict:
            self.load_state_dict(state_dict.pop(self._key))
        elif self._learns:
            warn(
                "the optimizer's state was saved without a policy: the classifier resumes, and the policy starts from "
                "scratch"
            )
        return state_dict

    # -- details -------------------------------------------------------------------------------------------------------

    def _equalize(self) -> None:
        """Copy the first rank's policy and seed to all ranks, with one broadcast when the hook is made."""
        content: list[Any] = [self.augmentation.state_dict(), self._draws.seed]
        dist.broadcast_object_list(content)
        self.augmentation.load_state_dict(content[0])
        self._draws.seed = content[1]


def _check_arguments(
    augmentation: Any, model: Any, criterion: Any, output_loss: Any, loss_method: str, max_pending: Any
) -> None:
    if not isinstance(augmentation, StochasticAugmentation):
        raise TypeError(f"augmentation must be a StochasticAugmentation, got {type(augmentation).__name__}")
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must not be scripted: {NO_HOOKS}")
    if isinstance(model, nn.DataParallel):
        raise TypeError(f"model must not be a DataParallel: {NO_REPLICAS}")
    if criterion is not None:
        _check_criterion(criterion)
    if output_loss is not None and (model is None or criterion is not None):
        raise TypeError("output_loss replaces criterion: pass it with model and without criterion")
    if loss_method != "auto" and (criterion is None or next(augmentation.parameters(), None) is None):
        missing = "criterion" if criterion is None else "policy, because random masks are not learned"
        raise TypeError(
            f"loss_method={loss_method!r} would have no effect, because there is no {missing}: leave it out, or pass "
            "the criterion that it is about and masks that are learned (preset='learned')"
        )
    if not max_pending >= 1 or not math.isfinite(max_pending):
        raise ValueError(f"max_pending must be at least 1, got {max_pending!r}")


def _check_criterion(criterion: Any) -> None:
    if isinstance(criterion, type) and issubclass(criterion, nn.Module):
        raise TypeError(f"criterion must be an object, got the class: pass {criterion.__name__}()")
    if not isinstance(criterion, nn.Module):
        raise TypeError(
            f"criterion must be a torch.nn.Module, got {type(criterion).__name__}: if your loss is a function, pass "
            "attach(..., preset='learned') without it and call hook.observe(losses) with one loss per image, shape (B,)"
        )
    if isinstance(criterion, torch.jit.ScriptModule):
        raise TypeError(f"criterion must not be scripted: {NO_HOOKS}")
    if not is_hookable(criterion):
        raise TypeError(
            f"criterion {type(criterion).__name__} overrides __call__, so its forward hooks never run: omit "
            "criterion and call hook.observe(policy_noise.losses.per_sample_loss(criterion, output, target))"
        )


def _check_free(
    model: nn.Module | None, stepping: torch.optim.Optimizer | None, besides: ReinforceHook | None = None
) -> None:
    """Refuse a model that is hooked already, and one inside or around a model hooked with the same optimizer."""
    found = [] if stepping is None else [hook for hook in registry.hooks_on(stepping) if hook._overlaps(model)]
    if model is not None:
        found += registry.hooks_on(model)
    if any(hook is not besides for hook in found):
        name = "optimizer" if model is None else "model"
        raise RuntimeError(
            f"{name} is hooked already: call policy_noise.detach({name}) first, or attach(..., replace=True)"
        )


def _free_number(stepping: torch.optim.Optimizer | None, wanted: int = 0) -> int:
    """The wanted number, or the smallest one that no hook on this optimizer has."""
    taken = set() if stepping is None else {hook._number for hook in registry.hooks_on(stepping)}
    return next(number for number in (wanted, *range(len(taken) + 1)) if number not in taken)
