"""The policy's own optimizer, which steps from a flat gradient at a share of the user's learning rate."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..utils.misc import check_one_of
from ..utils.warn import Once

__all__ = ["PolicyOptimizer", "PolicyRate"]


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


class PolicyOptimizer:
    """AdamW or SGD over a policy's parameters, its rate beside the user's.

    Args:
        parameters: The policy's.
        name: ``"adamw"`` or ``"sgd"`` (momentum 0.9).
        lr: The learning rate at the start.
        weight_decay: Of this optimizer.
    """

    def __init__(
        self, parameters: list[nn.Parameter], name: Literal["adamw", "sgd"], lr: float, weight_decay: float
    ) -> None:
        check_one_of("policy_optimizer", name, ("adamw", "sgd"))
        self.parameters = parameters
        settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "fused": self._fused()}
        self.inner: torch.optim.Optimizer | None = None
        if not parameters:
            return
        if name == "sgd":
            self.inner = torch.optim.SGD(parameters, momentum=0.9, **settings)
        else:
            self.inner = torch.optim.AdamW(parameters, **settings)
        self._fill()

    def step(self, gradient: Tensor, lr: float | None) -> None:
        """Step by the gradient in all parameters, one after the other in one vector.

        Args:
            gradient: (sum of the parameters' sizes,).
            lr: The learning rate; None leaves it as it is.
        """
        if self.inner is None:
            return
        if lr is not None:
            for group in self.inner.param_groups:
                group["lr"] = lr
        pieces = gradient.split([parameter.numel() for parameter in self.parameters])
        for parameter, flat in zip(self.parameters, pieces, strict=True):
            piece = flat.view_as(parameter)
            # Fused optimizers take gradients that lie in memory as their parameters do.
            same = piece.stride() == parameter.stride() and piece.dtype == parameter.dtype
            parameter.grad = piece if same else torch.empty_like(parameter).copy_(piece)
        self.inner.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's; without groups where there is nothing to learn."""
        return {"state": {}, "param_groups": []} if self.inner is None else self.inner.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state for the device where the policy is now: whether it is fused belongs to the device."""
        if self.inner is None:
            return
        groups = [{**group, "fused": self._fused()} for group in state_dict["param_groups"]]
        self.inner.load_state_dict({**state_dict, "param_groups": groups})
        self._fill()

    def _fill(self) -> None:
        """Give each parameter the state that its first step would make, for loaders that fill what is there."""
        assert self.inner is not None
        group = self.inner.param_groups[0]
        for parameter in self.parameters:
            state = self.inner.state[parameter]
            if not state and "betas" in group:
                # A step that is not fused counts on the CPU.
                device = parameter.device if group["fused"] else torch.device("cpu")
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            elif not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)

    def _fused(self) -> bool:
        return bool(self.parameters) and self.parameters[0].device.type in ("cpu", "cuda")
