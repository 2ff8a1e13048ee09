"""The policy's learning rate, which follows the shape of the user's schedule."""

from collections.abc import Mapping
from typing import Any

from ..utils.warn import warn

__all__ = ["PolicyRate"]


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
        self._warned = False

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
        if climbs and not self._warned:
            self._warned = True
            warn(
                f"the learning rate climbs ({known:.3g} to {user_lr:.3g}) past the largest that was seen or announced, "
                "and while it does the policy's stays at policy_lr: set param_group['max_lr'] of the optimizer's "
                "first group to the peak, or pass policy_lr_ratio"
            )
        return self.lr * user_lr / self.peak if self.peak > 0 else 0.0
