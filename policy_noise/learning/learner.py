"""The policy's own training: a window of observed samples becomes one step."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import functional as PF
from ..augmentation import Sample, StochasticAugmentation
from ..utils.misc import check_one_of, is_distributed
from ..utils.warn import Once
from ._window import Observation, SampleCount, WindowMoments, check_costs, check_loss, moments_of, sum_over_ranks
from .estimators import EntropyConstraint, PaperEstimator, create_estimator

__all__ = ["MAX_WINDOW", "PolicyLearner"]

KEYS = ("reward", "baseline", "loss_std", "entropy", "policy_grad_norm")
"""Numbers that every policy has; NaN until there is a window in which a sample counts."""
MAX_WINDOW = 256
"""Observations kept while the user's optimizer does not step; older ones are dropped, with a warning."""


class PolicyLearner:
    """Collect samples and their losses, and take one policy step from them.

    Everything between two optimizer steps is one window. Advantages are computed over the whole window, and the
    gradient is divided by its number of samples. So accumulated microbatches give the gradient of one big batch. With
    several processes the window covers all ranks: one collective for the losses' moments, and one for the gradient.

    Args:
        augmentation: What is trained.
        estimator: ``"reinforce"``, or ``"paper"`` for :func:`policy_noise.functional.paper_objective`.
        reward: ``"cooperative"`` (a low loss is good), ``"adversarial"`` (a high loss is good; the choice of
            ``preset="learned"``), or a function from losses (B,) to costs (B,), where a low cost is good. The metrics
            are then those of the costs.
        baseline: ``"leave_one_out"``, ``"batch"``, ``"moving_average"`` or ``"none"``. If a window has only one sample
            that counts, the moving average is used.
        normalize_advantage: Divide advantages by their standard deviation.
        entropy_coef: Weight of the entropy bonus. With an ``entropy_target`` it is the weight at the start.
        baseline_momentum: Momentum of the moving average of the loss.
        entropy_target: Instead of a fixed ``entropy_coef``: keep the window's mean entropy near this value, in nats per
            action (per cell of a mask). 0 is uniform, ``preset="learned"`` has -0.075, and None leaves the entropy
            free. See :class:`EntropyConstraint`.
        policy_optimizer: ``"adamw"`` or ``"sgd"`` (momentum 0.9).
        policy_lr: Peak learning rate. It follows the shape of your learning-rate schedule; see :class:`PolicyRate`.
        policy_lr_ratio: Instead of ``policy_lr``: the user's current learning rate times this.
        follow_schedule: With ``policy_lr``: False keeps it constant, for a scheduler of your own on ``optimizer``.
        policy_weight_decay: Weight decay of the policy's optimizer.
        frozen: Never step. This is the control: masks are drawn, and nothing is learned.
        update_every: Learn from one window in this many. In the others masks are drawn without a graph, and their
            losses are ignored.

    Example:
        >>> from policy_noise import PolicyNoiseMask
        >>> learner = PolicyLearner(PolicyNoiseMask(in_chans=1), reward="adversarial", entropy_target=-0.075)
        >>> learner.reward
        'adversarial'
    """

    def __init__(
        self,
        augmentation: StochasticAugmentation,
        *,
        estimator: Literal["reinforce", "paper"] = "reinforce",
        reward: PF.Reward | Callable[[Tensor], Tensor] = "cooperative",
        baseline: Literal["leave_one_out", "batch", "moving_average", "none"] = "leave_one_out",
        normalize_advantage: bool = True,
        entropy_coef: float = 0.0,
        baseline_momentum: float = 0.9,
        entropy_target: float | None = None,
        policy_optimizer: Literal["adamw", "sgd"] = "adamw",
        policy_lr: float | None = 1e-2,
        policy_lr_ratio: float | None = None,
        follow_schedule: bool = True,
        policy_weight_decay: float = 0.0,
        frozen: bool = False,
        update_every: int = 1,
    ) -> None:
        if not isinstance(update_every, int) or update_every < 1:
            raise ValueError(f"update_every must be a positive integer, got {update_every!r}")
        self.estimator = create_estimator(
            estimator,
            reward,
            baseline=baseline,
            normalize=normalize_advantage,
            entropy=bool(entropy_coef) or entropy_target is not None,
            update_every=update_every,
        )
        self._cost = reward if callable(reward) else None
        if not entropy_coef >= 0:
            raise ValueError(f"entropy_coef must not be negative, got {entropy_coef!r}")
        if not 0.0 <= baseline_momentum < 1.0:
            raise ValueError(f"baseline_momentum must lie in [0, 1), got {baseline_momentum!r}")
        self.augmentation = augmentation
        self.reward: PF.Reward = "cooperative" if callable(reward) else reward
        self.baseline = baseline
        self.entropy_coef = entropy_coef
        self.entropy = None if entropy_target is None else EntropyConstraint(entropy_target, entropy_coef)
        if entropy_target is not None and entropy_target > augmentation.largest_entropy:
            raise ValueError(
                f"entropy_target must be at most {augmentation.largest_entropy:g}, the entropy of the uniform "
                f"distribution, got {entropy_target!r}: preset='learned' has -0.075"
            )
        self.baseline_momentum = baseline_momentum
        self.is_random = next(augmentation.parameters(), None) is None
        """Whether nothing can be learned, because the augmentation has no parameters."""
        self.frozen = frozen or self.is_random
        self.update_every = update_every
        self.parameters = [p for p in augmentation.parameters() if p.requires_grad]
        if not self.parameters and not self.is_random:
            raise ValueError(
                f"{type(augmentation).__name__} has no parameter that requires a gradient: there is no policy to train"
            )
        self._device = next((buffer.device for buffer in augmentation.buffers()), torch.device("cpu"))
        self.rate = PolicyRate(policy_lr, policy_lr_ratio, follow_schedule)
        check_one_of("policy_optimizer", policy_optimizer, ("adamw", "sgd"))
        self.optimizer = _make_optimizer(self.parameters, policy_optimizer, self.rate.lr or 0.0, policy_weight_decay)
        """The policy's optimizer. None if there is nothing to learn."""
        if self.frozen:
            self.entropy = None
        elif self.entropy is not None:
            self.entropy.coefficient = self.entropy.coefficient.to(self.device)
        # No None: loaders fill the tensors they find.
        self._moving_average = torch.tensor(math.nan, device=self.device, dtype=torch.float32)
        self._window: list[Observation] = []
        self._last: _LastStep | None = None
        self._count = SampleCount()
        self._drawn: Sample | None = None
        self._once = Once()

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.parameters[0].device if self.parameters else self._device

    @property
    def scales_loss(self) -> bool:
        """Whether the estimator multiplies the classifier's loss, also where nothing is learned."""
        return isinstance(self.estimator, PaperEstimator)

    def loss_scale(self, sample: Sample) -> Tensor | None:
        """What the classifier's loss is multiplied by; None leaves it alone."""
        return self.estimator.loss_scale(sample) if len(sample.applied) else None

    def forget(self) -> None:
        """Let go what was observed since the last step."""
        self._window = []

    # -- observing -----------------------------------------------------------------------------------------------------

    def saw(self, sample: Sample) -> None:
        """Note a draw of random masks, which no loss will follow."""
        self._count.seen += len(sample.applied)
        self._drawn = sample

    def observe(self, sample: Sample, loss: Tensor, valid: Tensor | None = None) -> None:
        """Pair a sample with the losses that its masks caused.

        Args:
            sample: Draw of a batch.
            loss: Loss of each image.
            valid: Images that have a loss at all; by default all. The others must have a finite one, such as 0.

        Shape:
            - loss, valid: (B,).

        Raises:
            ValueError: If there is not one loss for each image.
        """
        check_loss(len(sample.applied), loss)
        if not len(loss):
            return
        self._count.labels(valid)
        device = sample.applied.device
        loss = loss.detach().float().to(device)
        if self._cost is not None:
            with torch.no_grad():
                loss = check_costs(self._cost(loss.clone()), loss)
        self._window.append(Observation(sample, loss, None if valid is None else valid.to(device)))
        if len(self._window) > MAX_WINDOW:
            del self._window[0]
            self.say_no_step()

    def say_no_step(self) -> None:
        """Warn once that many batches were observed without a step."""
        self._once.warn(
            "window",
            f"{MAX_WINDOW} observations passed without an optimizer step: the policy does not learn. Hook the "
            "optimizer whose step() really runs (a wrapper's inner optimizer, for instance).",
        )

    @property
    def observations(self) -> int:
        """Batches observed since the last step."""
        return len(self._window)

    # -- stepping ------------------------------------------------------------------------------------------------------

    def step(self, group: Mapping[str, Any]) -> None:
        """Take one step of the policy from the window, and empty it. Every rank must call it, also with no samples.

        Args:
            group: A parameter group of the user's optimizer, which has the current learning rate.
        """
        window, self._window = self._window, []
        lr = self.rate(group)
        distributed = is_distributed() and not self.frozen
        if not window and not distributed:
            return
        with torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            moments = moments_of(
                window,
                self._count,
                self._moving_average,
                self.device,
                distributed=distributed,
                with_entropy=self.entropy is not None,
            )
            if moments is None:
                return
            self._moving_average = moments.loss.blend(self._moving_average, self.baseline_momentum)
            samples, sizes = [seen.sample for seen in window], [len(seen.loss) for seen in window]
            # The samples' own checks leave finite numbers here; a policy must outlive whatever they missed.
            gradient = torch.nan_to_num_(self._gradient(samples, moments), 0.0, 0.0, 0.0)
        if self.entropy is not None and moments.entropy is not None:
            self.entropy.update(moments.entropy)
        self._count.seen += sum(sizes)
        previous = () if self._last is None else self._last.samples
        self._last = _LastStep(moments, gradient, [sample.detach() for sample in samples] or previous)
        if self.optimizer is not None and not self.frozen:
            self._step_by(gradient, self.optimizer, lr)

    def _step_by(self, gradient: Tensor, optimizer: torch.optim.Optimizer, lr: float | None) -> None:
        """Step by the gradient of all parameters, flat. The learning rate stays if it is None."""
        for group in optimizer.param_groups if lr is not None else ():
            group["lr"] = lr
        pieces = gradient.split([parameter.numel() for parameter in self.parameters])
        for parameter, flat in zip(self.parameters, pieces, strict=True):
            piece = flat.view_as(parameter)
            # Fused optimizers take gradients that lie in memory as their parameters do.
            same = piece.stride() == parameter.stride() and piece.dtype == parameter.dtype
            parameter.grad = piece if same else torch.empty_like(parameter).copy_(piece)
        optimizer.step()
        optimizer.zero_grad()

    def _gradient(self, samples: list[Sample], moments: WindowMoments) -> Tensor:
        """One backward through all samples of the window, flat; with several processes that of all ranks."""
        if samples and self.parameters and samples[0].log_prob is not None and samples[0].log_prob.requires_grad:
            coefficient = self.entropy_coef if self.entropy is None else self.entropy.coefficient
            outputs, weights = self.estimator.terms(samples, moments.loss, moments.seen, coefficient)
            parts = torch.autograd.grad(outputs, self.parameters, weights, allow_unused=True, materialize_grads=True)
            gradient = torch.cat([part.flatten() for part in parts])
        else:
            gradient = torch.zeros(sum(parameter.numel() for parameter in self.parameters), device=self.device)
        return sum_over_ranks(gradient, self.augmentation) if is_distributed() and not self.frozen else gradient

    # -- reporting and state -------------------------------------------------------------------------------------------

    def metrics(self, size: tuple[int, ...] | None) -> dict[str, float]:
        """Diagnostics of the last step as plain numbers; reading them is what waits for the device.

        Args:
            size: Spatial size of the last images, for what the augmentation says of itself.
        """
        if self.is_random:
            drawn = self._drawn
            share = math.nan if drawn is None else float(drawn.applied.float().mean())
            described = self.augmentation.describe(drawn, size)
            return {"share_masked": share, **described, "samples_seen": self._count.seen}
        self._count.warn_dropped()
        self._count.warn_unlabelled()
        result = dict.fromkeys(KEYS, math.nan) if self._last is None else self._last.metrics(self.reward, self.baseline)
        if self.entropy is not None:
            result["entropy_coef"] = float(self.entropy.coefficient)
        sample = self._last.samples[-1] if self._last is not None and self._last.samples else None
        result |= self.augmentation.describe(sample, size)
        return result | {"samples_seen": self._count.seen, "samples_dropped": self._count.dropped}

    def state_dict(self) -> dict[str, Any]:
        """Policy, optimizer and baseline, as tensors and plain numbers."""
        state = {
            "mask": self.augmentation.state_dict(),
            "optimizer": self._optimizer_state(),
            "moving_average": self._moving_average,
            "peak_user_lr": self.rate.peak,
            "samples_seen": self._count.seen,
            "samples_dropped": self._count.dropped,
        }
        return state if self.entropy is None else {**state, "entropy_coef": self.entropy.coefficient}

    def check_state_dict(self, state_dict: Any) -> None:
        """Refuse a state that :meth:`load_state_dict` could not restore, before anything is touched.

        Raises:
            ValueError: If it belongs to something else.
        """
        own = self.state_dict()
        if isinstance(state_dict, Mapping) and own.keys() - state_dict.keys() == {"entropy_coef"}:
            raise ValueError(
                "state_dict was saved without entropy_target, and this policy has one: pass the settings that it was "
                "saved with"
            )
        if not isinstance(state_dict, Mapping) or own.keys() - state_dict.keys():
            found = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise ValueError(f"state_dict must hold {sorted(own)}, got {found}: it is not a policy's")
        for name, kind in (("mask", Mapping), ("optimizer", Mapping), ("moving_average", Tensor)):
            if not isinstance(state_dict[name], kind):
                raise ValueError(f"state_dict[{name!r}] does not fit a policy, got {type(state_dict[name]).__name__}")
        for name in ("peak_user_lr", "samples_seen", "samples_dropped"):
            if not isinstance(state_dict[name], int | float):
                raise ValueError(f"state_dict[{name!r}] must be a number, got {state_dict[name]!r}")
        shapes = {name: _shape(value) for name, value in state_dict["mask"].items()}
        expected = {name: _shape(value) for name, value in own["mask"].items()}
        if shapes != expected:
            wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
            raise ValueError(
                f"state_dict belongs to another policy: {wrong[:5]} differ in name or shape (grid_size, in_chans and "
                "policy must be those that it was saved with)"
            )
        groups, own_groups = (state["optimizer"].get("param_groups", []) for state in (state_dict, own))
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own_groups]:
            raise ValueError("state_dict belongs to another policy: its optimizer holds other parameters")
        adaptive = ["betas" in group for group in own_groups]
        if ["betas" in group for group in groups] != adaptive:
            raise ValueError(
                "state_dict belongs to a policy with another policy_optimizer: it was saved with "
                f"{'sgd' if adaptive[0] else 'adamw'!r}, and this one has {'adamw' if adaptive[0] else 'sgd'!r}"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`. Nothing is changed if it does not fit.

        Raises:
            ValueError: If it belongs to something else.
        """
        self.check_state_dict(state_dict)
        device = self.device
        self.augmentation.load_state_dict(state_dict["mask"])
        self._load_optimizer(state_dict["optimizer"])
        self._moving_average = state_dict["moving_average"].to(device, torch.float32)
        self.rate.peak = state_dict["peak_user_lr"]
        self._count.restore(state_dict["samples_seen"], state_dict["samples_dropped"])
        if self.entropy is not None:
            self.entropy.coefficient = state_dict["entropy_coef"].to(device)
        self._window = []

    def _optimizer_state(self) -> dict[str, Any]:
        return {"state": {}, "param_groups": []} if self.optimizer is None else self.optimizer.state_dict()

    def _load_optimizer(self, state: Mapping[str, Any]) -> None:
        if self.optimizer is not None:
            # Whether a step is fused belongs to the device where the policy is now.
            groups = [{**group, "fused": _can_fuse(self.parameters)} for group in state["param_groups"]]
            self.optimizer.load_state_dict({**state, "param_groups": groups})
            _fill(self.optimizer)

    def to(self, device: torch.device) -> None:
        """Follow the images to their device, with the optimizer's state."""
        self.augmentation.to(device)
        self._device = device
        self._load_optimizer(self._optimizer_state())  # onto the device where the parameters are now
        self._moving_average = self._moving_average.to(device)
        if self.entropy is not None:
            self.entropy.coefficient = self.entropy.coefficient.to(device)
        self._count.restore(self._count.seen, self._count.dropped)  # lets tensors on the other device go


class PolicyRate:
    """A share of the user's current rate.

    Args:
        lr: The policy's peak rate. It is reached where the user's rate is at its own peak: the largest seen, or what
            the schedule left in the optimizer's group, ``max_lr`` (one cycle) or ``initial_lr`` (a warm-up's target).
            A rate that climbs without either (``CyclicLR``, a warm-up by hand) has its peak in each new largest value,
            so that the policy's stays at ``lr`` until it falls: a warning says so.
        lr_ratio: Instead of ``lr``: the user's rate times this.
        follow_schedule: With ``lr``: False leaves the rate alone.

    Raises:
        ValueError: If not exactly one of the two is given, or it is negative.
    """

    def __init__(self, lr: float | None, lr_ratio: float | None, follow_schedule: bool) -> None:
        if (lr is None) == (lr_ratio is None):
            raise ValueError(
                "exactly one of policy_lr and policy_lr_ratio must be given, got "
                f"policy_lr={lr!r} and policy_lr_ratio={lr_ratio!r}"
            )
        for name, value in (("policy_lr", lr), ("policy_lr_ratio", lr_ratio)):
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value!r}")
        self.lr = lr
        self.lr_ratio = lr_ratio
        self.follow_schedule = follow_schedule
        self.peak = 0.0
        self._once = Once()

    def __call__(self, group: Mapping[str, Any]) -> float | None:
        """The policy's rate beside an optimizer's parameter group; None leaves it as it is.

        Raises:
            ValueError: If the group has no rate to take a ratio of.
        """
        if "lr" not in group:
            if self.lr_ratio is not None:
                raise ValueError(f"policy_lr_ratio={self.lr_ratio!r} needs the loop's rate: call hook.step(lr)")
            return None
        user_lr = float(group["lr"])
        known = max(self.peak, float(group.get("max_lr", group.get("initial_lr", 0.0))))
        climbs = user_lr > 1.001 * known > 0 and self.peak > 0  # a schedule's own rounding is no climb
        self.peak = max(known, user_lr)
        if self.lr_ratio is not None:
            return self.lr_ratio * user_lr
        if self.lr is None or not self.follow_schedule:
            return None
        if climbs:
            self._once.warn(
                "climbs",
                f"the learning rate climbs ({known:.3g} to {user_lr:.3g}) past the largest that was seen or announced, "
                "and while it does the policy's stays at policy_lr: set param_group['max_lr'] of the optimizer's "
                "first group to the peak, or pass policy_lr_ratio",
            )
        return self.lr * user_lr / self.peak if self.peak > 0 else 0.0


def _make_optimizer(
    parameters: list[nn.Parameter], name: str, lr: float, weight_decay: float
) -> torch.optim.Optimizer | None:
    if not parameters:
        return None
    settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "fused": _can_fuse(parameters)}
    sgd = name == "sgd"
    optimizer = (
        torch.optim.SGD(parameters, momentum=0.9, **settings) if sgd else torch.optim.AdamW(parameters, **settings)
    )
    _fill(optimizer)
    return optimizer


def _can_fuse(parameters: list[nn.Parameter]) -> bool:
    return parameters[0].device.type in ("cpu", "cuda")


def _fill(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter the state that its first step would make, for loaders that fill what is there."""
    group = optimizer.param_groups[0]
    for parameter in group["params"]:
        state = optimizer.state[parameter]
        if not state and "betas" in group:
            # A step that is not fused counts on the CPU.
            device = parameter.device if group["fused"] else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        elif not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)


@dataclass(frozen=True)
class _LastStep:
    """What the metrics are made of. Making them waits for the device, so that is left until somebody reads them.

    Args:
        moments: Of the window.
        gradient: The policy's, flat.
        samples: The window's draws, detached; those of an earlier window where this rank had none.
    """

    moments: WindowMoments
    gradient: Tensor
    samples: Sequence[Sample]

    def metrics(self, reward: PF.Reward, baseline: str) -> dict[str, float]:
        """:data:`KEYS` as plain numbers."""
        loss, count = self.moments.loss, float(self.moments.loss.count)
        if not count:
            return dict.fromkeys(KEYS, math.nan) | {"entropy": self._entropy()}
        sign = -1.0 if reward == "cooperative" else 1.0
        mean = float(loss.mean)
        base = {"none": 0.0, "moving_average": float(loss.average)}.get(baseline, mean)
        return {
            "reward": sign * mean,
            "baseline": sign * base,
            "loss_std": float(loss.variance) ** 0.5 if count > 1 else 0.0,
            "entropy": self._entropy(),
            "policy_grad_norm": float(self.gradient.norm()),
        }

    def _entropy(self) -> float:
        if self.moments.total_entropy is not None:
            return float(self.moments.total_entropy)
        entropies = [entropy for sample in self.samples if (entropy := sample.entropy) is not None]
        return float(torch.cat(entropies).mean()) if entropies else math.nan


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
