"""The policy's own training: a window of observed samples, an estimator and an optimizer."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from . import functional as PF
from .mask import MaskSample, PolicyNoiseMask

__all__ = ["PolicyLearner"]

MAX_WINDOW = 256
"""Observations kept while the user's optimizer does not step; older ones are let go, with a warning."""


class PolicyLearner:
    """Collects (sample, loss) pairs and turns them into one step of the policy.

    Everything between two steps is one window: its advantage is taken over all its samples, so that accumulated
    microbatches give the gradient of the big batch, and gradients are normalised by the number of samples. With
    several processes one flat all-reduce a step makes the window that of all ranks.

    Args:
        mask: The mask whose policy is trained.
        estimator: ``"score_function"``, or ``"paper"`` for :func:`policy_noise.functional.paper_objective`.
        reward: ``"cooperative"`` (a low loss is good) or ``"adversarial"``.
        baseline: ``"leave_one_out"``, ``"batch"``, ``"moving_average"`` or ``"none"``. A window in which one sample
            counts falls back on the moving average.
        normalize_advantage: Divide advantages by their standard deviation.
        entropy_coef: Weight of the entropy bonus.
        baseline_momentum: Momentum of the moving average of the loss.
        optimizer_name: ``"adamw"`` or ``"sgd"`` (momentum 0.9).
        lr: Peak learning rate; it follows the shape of the user's schedule, as a share of the largest rate seen.
        lr_ratio: Instead of ``lr``: the user's current learning rate times this.
        follow_schedule: With ``lr``: False keeps it as it is, for a scheduler of your own on ``optimizer``.
        weight_decay: Of the policy's optimizer.
        frozen: Never step: the control in which masks are drawn and nothing is learned.
        update_every: Learn from one window in this many. In the others masks are drawn without a graph, and their
            losses are let go.
    """

    def __init__(
        self,
        mask: PolicyNoiseMask,
        *,
        estimator: Literal["score_function", "paper"] = "score_function",
        reward: PF.Reward = "cooperative",
        baseline: str = "leave_one_out",
        normalize_advantage: bool = True,
        entropy_coef: float = 0.0,
        baseline_momentum: float = 0.9,
        optimizer_name: Literal["adamw", "sgd"] = "adamw",
        lr: float | None = 1e-2,
        lr_ratio: float | None = None,
        follow_schedule: bool = True,
        weight_decay: float = 0.0,
        frozen: bool = False,
        update_every: int = 1,
    ) -> None:
        _one_of("estimator", estimator, ("score_function", "paper"))
        _one_of("reward", reward, ("cooperative", "adversarial"))
        _one_of("baseline", baseline, ("leave_one_out", "batch", "moving_average", "none"))
        _one_of("optimizer_name", optimizer_name, ("adamw", "sgd"))
        if (lr is None) == (lr_ratio is None):
            raise ValueError(f"exactly one of lr and lr_ratio must be given, got lr={lr!r} and lr_ratio={lr_ratio!r}")
        for name, value in (("lr", lr), ("lr_ratio", lr_ratio), ("entropy_coef", entropy_coef)):
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value!r}")
        if estimator == "paper" and (reward != "cooperative" or entropy_coef):
            raise ValueError(
                "estimator='paper' has neither an adversarial reward nor an entropy bonus, got "
                f"reward={reward!r} and entropy_coef={entropy_coef!r}: take estimator='score_function' for them"
            )
        if not isinstance(update_every, int) or update_every < 1:
            raise ValueError(f"update_every must be a positive integer, got {update_every!r}")
        if estimator == "paper" and update_every > 1:
            raise ValueError(
                "estimator='paper' scales the classifier's loss in every step and needs update_every=1, got "
                f"{update_every}: take estimator='score_function'"
            )
        if not 0.0 <= baseline_momentum < 1.0:
            raise ValueError(f"baseline_momentum must lie in [0, 1), got {baseline_momentum!r}")
        self.mask = mask
        self.estimator = estimator
        self.reward: PF.Reward = reward
        self.baseline = baseline
        self.normalize_advantage = normalize_advantage
        self.entropy_coef = entropy_coef
        self.baseline_momentum = baseline_momentum
        self.lr = lr
        self.lr_ratio = lr_ratio
        self.follow_schedule = follow_schedule
        self.frozen = frozen
        self.update_every = update_every
        self.parameters = [p for p in mask.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("mask has no parameter that requires a gradient: there is no policy to train")
        start = 0.0 if lr is None else lr
        self.optimizer: torch.optim.Optimizer
        settings: dict[str, Any] = {"lr": start, "weight_decay": weight_decay, "fused": self._fused()}
        if optimizer_name == "sgd":
            self.optimizer = torch.optim.SGD(self.parameters, momentum=0.9, **settings)
        else:
            self.optimizer = torch.optim.AdamW(self.parameters, **settings)
        self._peak_user_lr = 0.0
        self._moving_average: Tensor | None = None
        self._window: list[tuple[MaskSample, Tensor]] = []
        self._window_overflowed = False
        self._last: dict[str, Tensor] = {}
        self._last_samples: list[MaskSample] = []
        self._samples_seen = 0
        self._samples_checked = 0
        self._samples_finite: Tensor | int = 0
        self._warned_dropped = False

    # -- observing -----------------------------------------------------------------------------------------------------

    def observe(self, sample: MaskSample, loss: Tensor) -> Tensor | None:
        """Pair a sample with the losses that its masks caused.

        Args:
            sample: Masks of a batch.
            loss: Loss of each image.

        Shape:
            - loss: (B,).

        Returns:
            With the paper's estimator the factor that scales the classifier's loss, else None.

        Raises:
            ValueError: If there is not one loss for each image.
        """
        check_loss(sample, loss)
        self._window.append((sample, loss.detach().float().to(sample.log_prob.device)))
        if len(self._window) > MAX_WINDOW:
            del self._window[0]
            if not self._window_overflowed:
                self._window_overflowed = True
                warnings.warn(
                    f"{MAX_WINDOW} observations passed without an optimizer step: the policy does not learn. Hook the "
                    "optimizer whose step() really runs (a wrapper's inner optimizer, for instance).",
                    stacklevel=3,
                )
        if self.estimator == "paper":
            return torch.logsumexp(sample.cell_log_prob().detach(), dim=1).mean()
        return None

    @property
    def observations(self) -> int:
        """Batches observed since the last step."""
        return len(self._window)

    # -- stepping ------------------------------------------------------------------------------------------------------

    def step(self, user_lr: float) -> None:
        """Take one step of the policy from the window, and empty it. Every rank must call it, also with no samples.

        Args:
            user_lr: The current learning rate of the user's optimizer.
        """
        window, self._window = self._window, []
        distributed = is_distributed()
        if not window and not distributed:
            return
        with torch.enable_grad(), torch.autocast(self.parameters[0].device.type, enabled=False):
            gradient = self._gradient_of_all_ranks(window) if distributed else self._gradient(window)
        if gradient is None:
            return
        self._samples_seen += sum(len(loss) for _, loss in window)
        if window:
            self._last_samples = [sample.detach() for sample, _ in window]
        # The samples' own checks leave finite numbers here; a policy must outlive whatever they missed.
        self._last["gradient"] = torch.nan_to_num_(gradient, 0.0, 0.0, 0.0)
        if self.frozen:
            return
        self._set_lr(user_lr)
        pieces = _unflatten_dense_tensors(gradient, self.parameters)
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            # Fused optimizers take gradients that lie in memory as their parameters do.
            same = piece.stride() == parameter.stride() and piece.dtype == parameter.dtype
            parameter.grad = piece if same else torch.empty_like(parameter).copy_(piece)
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None

    def skip(self, user_lr: float) -> None:
        """Let a window pass that was not to be learned from; its learning rate may still be the largest seen."""
        self._peak_user_lr = max(self._peak_user_lr, user_lr)

    def _fused(self) -> bool:
        return self.parameters[0].device.type in ("cpu", "cuda")

    def _set_lr(self, user_lr: float) -> None:
        self._peak_user_lr = max(self._peak_user_lr, user_lr)
        if self.lr_ratio is not None:
            lr = self.lr_ratio * user_lr
        elif self.follow_schedule and self._peak_user_lr > 0:
            lr = self.lr * user_lr / self._peak_user_lr  # type: ignore[operator]
        else:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _valid(self, sample: MaskSample, loss: Tensor) -> Tensor:
        """Samples that count: masked, with a finite loss. The others are dropped, and non-finite ones counted."""
        finite = (loss + sample.log_prob.detach()).abs() < math.inf  # one is infinite or NaN: so is the sum
        self._samples_checked += len(finite)
        self._samples_finite = self._samples_finite + finite.sum()
        if not finite.is_cuda:
            self._warn_dropped()
        return finite & sample.applied

    @property
    def _samples_dropped(self) -> int:
        return self._samples_checked - int(self._samples_finite)

    def _warn_dropped(self) -> None:
        dropped = self._samples_dropped
        if dropped and not self._warned_dropped:
            self._warned_dropped = True
            warnings.warn(
                f"{dropped} samples with a non-finite loss were kept from the policy; metrics['samples_dropped'] goes "
                "on counting, without further warnings",
                stacklevel=4,
            )

    def _gradient(self, window: list[tuple[MaskSample, Tensor]]) -> Tensor:
        """One process: one backward through all samples of the window, flat.

        What :func:`policy_noise.functional.reinforce_loss` differentiates is linear in the log-probabilities, so its
        weights are handed to autograd as they are, and the surrogate itself is never computed.
        """
        sizes = [len(losses) for _, losses in window]
        valid = _join([self._valid(sample, losses) for sample, losses in window])
        loss = _join([losses for _, losses in window])
        # A sample that alone counts has no others to be compared with.
        moments = PF.LossMoments.of(loss, valid, self._moving_average)
        self._record(moments.count, moments.mean, moments.variance, moments.average)
        if self.estimator == "paper":
            outputs = [
                PF.paper_objective(sample.cell_log_prob(), losses)
                for (sample, _), losses in zip(window, moments.kept.split(sizes), strict=True)
            ]
            weights = [torch.full_like(output, size / len(loss)) for output, size in zip(outputs, sizes, strict=True)]
        else:
            baseline: Any = moments.average if self.baseline == "moving_average" else self.baseline
            weight = moments.weights(baseline, self.normalize_advantage)
            outputs = [sample.log_prob for sample, _ in window]
            weights = [*(weight if self.reward == "cooperative" else -weight).split(sizes)]
            if self.entropy_coef:
                outputs += [sample.entropy for sample, _ in window]
                weights += (-self.entropy_coef * valid / moments.samples).split(sizes)
        return self._flat_gradient(outputs, weights)

    def _record(self, count: Tensor, mean: Tensor, variance: Tensor, average: Tensor) -> None:
        """Keep what metrics are made of, when they are read, and move the average on."""
        blended = torch.lerp(mean, average, self.baseline_momentum)
        previous = torch.full_like(mean, torch.nan) if self._moving_average is None else self._moving_average
        self._moving_average = torch.where(count > 0, blended, previous).detach()  # NaN: no sample has counted yet
        self._last = {"count": count, "loss": mean, "average": average, "variance": variance}

    def _gradient_of_all_ranks(self, window: list[tuple[MaskSample, Tensor]]) -> Tensor | None:
        """Several processes: the window of all ranks in one all-reduce.

        The advantage is linear in the loss once count, mean and variance are known, so each rank sends the gradients
        of sum(loss * log_prob), of sum(log_prob) and of sum(entropy), beside its sums. Losses are centred on the moving
        average, which is equal on all ranks, to keep digits. Floating-point buffers (a policy's moving averages)
        travel along and are averaged.
        """
        device = self.parameters[0].device
        zero = torch.zeros((), device=device)
        shift = PF.average_or(zero, self._moving_average)
        sums = torch.zeros(5, device=device)
        weighted = plain = spread = zero
        for sample, raw in window:
            valid = self._valid(sample, raw)
            loss = torch.where(valid, raw - shift, 0)
            if self.estimator == "paper":
                mean = torch.where(valid, raw, 0).mean()
                weighted = weighted + torch.logsumexp(sample.cell_log_prob(), dim=1).sum() * mean
            else:
                weighted = weighted + (loss * sample.log_prob).sum()
                plain = plain + torch.where(valid, sample.log_prob, 0).sum()
            entropy = sample.entropy if self.entropy_coef else sample.detach().entropy
            spread = spread + torch.where(valid, entropy, 0).sum()
            sums = sums + torch.stack(
                [valid.sum(), loss.sum(), loss.square().sum(), entropy.detach().sum(), zero + len(loss)]
            )
        buffers = [b for b in self.mask.buffers() if b.is_floating_point() and b is not self.mask.black]
        parts = [sums, *(b.detach().float().flatten() for b in buffers)]
        shapes = [self._flat_gradient([total], [zero + 1], retain_graph=True) for total in (weighted, plain, spread)]
        flat = torch.cat([*parts, *shapes])
        dist.all_reduce(flat)
        parts = list(flat.split([part.numel() for part in (*parts, *shapes)]))
        count, total, squares, entropy, seen = parts[0]
        if not window and not bool(seen):
            return None  # no rank had a sample, so that all stop here; only one without any has to look (and wait)
        with torch.no_grad():
            for buffer, value in zip(buffers, parts[1:-3], strict=True):
                buffer.copy_(value.view_as(buffer) / dist.get_world_size())
        gradient, gradient_plain, gradient_entropy = parts[-3:]
        n = count.clamp(min=1)
        mean = total / n
        variance = (squares / n - mean.square()).clamp(min=0)
        average = PF.average_or(mean + shift, self._moving_average)
        if self.estimator == "paper":
            flat = gradient / seen.clamp(min=1)
        else:
            if self.baseline == "none":
                centred = gradient + shift * gradient_plain
            elif self.baseline == "moving_average":
                centred = gradient - (average - shift) * gradient_plain
            else:
                single = count < 2
                centre = torch.where(single, average - shift, mean)
                centred = gradient - centre * gradient_plain
                if self.baseline == "leave_one_out":
                    centred = centred * torch.where(single, 1.0, count / (count - 1).clamp(min=1))
            if self.normalize_advantage:
                centred = centred / torch.where(count < 2, 1.0, variance.sqrt().clamp(min=1e-6))
            sign = 1.0 if self.reward == "cooperative" else -1.0
            flat = (sign * centred - self.entropy_coef * gradient_entropy) / n
        self._record(count, mean + shift, variance, average)
        self._last["entropy"] = entropy / seen.clamp(min=1)
        return flat

    def _flat_gradient(self, outputs: list[Tensor], weights: list[Tensor], *, retain_graph: bool = False) -> Tensor:
        """Gradient of the weighted sum of outputs in all parameters, one after the other in one vector."""
        if not any(output.requires_grad for output in outputs):
            return self.parameters[0].new_zeros(sum(parameter.numel() for parameter in self.parameters))
        return _flatten_dense_tensors(
            torch.autograd.grad(
                outputs, self.parameters, weights, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
            )
        )

    # -- reporting and state -------------------------------------------------------------------------------------------

    def metrics(self, size: tuple[int, ...] | None) -> dict[str, float]:
        """Diagnostics of the last step as plain numbers; reading them is what waits for the device.

        Args:
            size: Spatial size of the last images, at which the mask's mean and standard deviation are taken.
        """
        self._warn_dropped()
        result: dict[str, float] = {}
        if self._last:
            sign = -1.0 if self.reward == "cooperative" else 1.0
            loss = float(self._last["loss"])
            baseline = {"none": 0.0, "moving_average": float(self._last["average"])}.get(self.baseline, loss)
            entropy = self._last.get("entropy")
            if entropy is None:
                entropy = torch.cat([sample.entropy for sample in self._last_samples]).mean()
            result = {
                "reward": sign * loss,
                "baseline": sign * baseline,
                "advantage_std": float(self._last["variance"]) ** 0.5 if self._last["count"] > 1 else 0.0,
                "entropy": float(entropy),
                "policy_grad_norm": float(self._last["gradient"].norm()),
            }
        if self._last_samples and size is not None:
            mask = self.mask.render(self._last_samples[-1], size)
            result |= {"mask_mean": float(mask.mean()), "mask_std": float(mask.std())}
        return result | {"samples_seen": self._samples_seen, "samples_dropped": self._samples_dropped}

    def state_dict(self) -> dict[str, Any]:
        """Policy, optimizer and baseline, as tensors and plain numbers."""
        return {
            "mask": self.mask.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "moving_average": self._moving_average,
            "peak_user_lr": self._peak_user_lr,
            "samples_seen": self._samples_seen,
            "samples_dropped": self._samples_dropped,
        }

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Refuse a state that :meth:`load_state_dict` could not restore, before anything is touched.

        Raises:
            ValueError: If it belongs to something else.
        """
        own = self.state_dict()
        if not isinstance(state_dict, Mapping) or own.keys() - state_dict.keys():
            found = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise ValueError(f"state_dict must hold {sorted(own)}, got {found}: it is not a policy's")
        for name, kind in (("mask", Mapping), ("optimizer", Mapping), ("moving_average", Tensor | None)):
            if not isinstance(state_dict[name], kind):
                raise ValueError(f"state_dict[{name!r}] is no policy's, got {type(state_dict[name]).__name__}")
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
        groups = state_dict["optimizer"].get("param_groups", [])
        if [len(group["params"]) for group in groups] != [len(self.parameters)]:
            raise ValueError("state_dict belongs to another policy: its optimizer holds other parameters")
        adaptive = "betas" in self.optimizer.param_groups[0]
        if ("betas" in groups[0]) != adaptive:
            raise ValueError(
                "state_dict belongs to a policy with another optimizer_name: it was saved with "
                f"{'sgd' if adaptive else 'adamw'!r}, and this one has {'adamw' if adaptive else 'sgd'!r}"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`. Nothing is changed if it does not fit.

        Raises:
            ValueError: If it belongs to something else.
        """
        self.check_state_dict(state_dict)
        self.mask.load_state_dict(state_dict["mask"])
        self._load_optimizer(state_dict["optimizer"])
        average = state_dict["moving_average"]
        self._moving_average = None if average is None else average.to(self.parameters[0].device)
        self._peak_user_lr = state_dict["peak_user_lr"]
        self._samples_seen = state_dict["samples_seen"]
        self._samples_checked, self._samples_finite = state_dict["samples_dropped"], 0
        self._window = []

    def _load_optimizer(self, state_dict: dict[str, Any]) -> None:
        """Load its state for the device where the policy is now: whether it is fused belongs to the device."""
        groups = [{**group, "fused": self._fused()} for group in state_dict["param_groups"]]
        self.optimizer.load_state_dict({**state_dict, "param_groups": groups})

    def to(self, device: torch.device) -> None:
        """Follow the images to their device, with the optimizer's state."""
        self.mask.to(device)
        self._load_optimizer(self.optimizer.state_dict())
        if self._moving_average is not None:
            self._moving_average = self._moving_average.to(device)
        self._samples_checked, self._samples_finite = self._samples_dropped, 0


def check_loss(sample: MaskSample, loss: Tensor) -> None:
    """Refuse losses of which there is not one for each image."""
    if not isinstance(loss, Tensor) or loss.shape != sample.log_prob.shape:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"per_sample_loss must have shape ({len(sample.log_prob)},), one loss for each image, got {shape}; "
            "compute it with reduction='none'"
        )


def _join(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
