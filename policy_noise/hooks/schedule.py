"""The strength of the masks over the course of training."""

from collections.abc import Callable
from dataclasses import dataclass

from ..augmentation import StochasticAugmentation

__all__ = ["ScheduledStrength", "StrengthSchedule"]


@dataclass(frozen=True)
class StrengthSchedule:
    """Ramp the masks' strength up over the first steps, and switch masks off for the last ones.

    Args:
        total_steps: Optimizer steps of the whole training.
        warmup: Share of the steps, at the start, over which the strength rises linearly.
        clean: Share of the steps, at the end, without masks.

    Example:
        >>> schedule = StrengthSchedule(total_steps=100, warmup=0.1, clean=0.25)
        >>> [schedule(step) for step in (0, 4, 50, 75)]
        [0.1, 0.5, 1.0, 0.0]
    """

    total_steps: int
    warmup: float = 0.0
    clean: float = 0.25

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be positive, got {self.total_steps!r}")
        for name, value in (("warmup", self.warmup), ("clean", self.clean)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
        if self.warmup + self.clean > 1.0:
            raise ValueError(f"warmup and clean must leave some steps, got {self.warmup!r} and {self.clean!r}")

    def __call__(self, step: int) -> float:
        """Return the share of the full strength at a step. Steps count from 0."""
        if step >= self.total_steps * (1.0 - self.clean):
            return 0.0
        rising = self.total_steps * self.warmup
        return 1.0 if step + 1 >= rising else (step + 1) / rising


class ScheduledStrength:
    """Set an augmentation's strength by a schedule.

    Args:
        augmentation: An augmentation with a ``strength``.
        schedule: Share of the strength at each step.

    Raises:
        TypeError: If the augmentation has no strength.
    """

    def __init__(self, augmentation: StochasticAugmentation, schedule: Callable[[int], float]) -> None:
        if not callable(schedule):
            raise TypeError(
                "strength_schedule must be a function of the step, such as StrengthSchedule(total_steps), got "
                f"{schedule!r}: for a constant strength pass strength=..."
            )
        full = getattr(augmentation, "strength", None)
        if not isinstance(full, float | int):
            raise TypeError(f"strength_schedule needs a strength, but {type(augmentation).__name__} has none")
        self.augmentation = augmentation
        self.schedule = schedule
        self.full = float(full)

    def set(self, step: int) -> bool:
        """Set the strength for a step. Returns False if it is 0, so that nothing needs to be masked."""
        strength = self.full * float(self.schedule(step))
        self.augmentation.strength = strength  # type: ignore[assignment]
        return strength > 0

    def restore(self) -> None:
        """Restore the full strength."""
        self.augmentation.strength = self.full  # type: ignore[assignment]
