"""The two declared suites of runs, and their order. PROTOCOL.md explains them."""

from dataclasses import dataclass

from benchmarks.study.arms import (
    BIAS_FIELD,
    JITTER,
    LEARNT,
    MASKS,
    NORMALIZED,
    OTHERS,
    PLAIN,
    SMOOTH,
    SWAPPED,
    Arm,
    shading,
)
from benchmarks.study.tasks import TASKS, Task

FORMS = ("nearest", "linear", "cubic")
PATTERNS: dict[str, float | tuple[float, float]] = {".10": 0.1, ".25": 0.25, "0-.2": (0.0, 0.2), "0-.4": (0.0, 0.4)}
TODAY = "nearest .10 .20"
"""The default when the protocol was declared."""


def _setting(form: str, pattern: str, brightness: float, clip: bool) -> Arm:
    name = f"{form} {pattern} {brightness:.2f}".replace("0.", ".") + (" clipped" if clip else "")
    return Arm(name, f"masks {name}", masks=shading(form, PATTERNS[pattern], brightness, clip))


def _settings() -> list[Arm]:
    """All settings of masks that the rule may choose from, the most decisive ones first."""
    first = [("nearest", ".10"), ("linear", "0-.4"), ("linear", "0-.2"), ("cubic", "0-.4")]
    rest = [(form, pattern) for form in FORMS for pattern in PATTERNS if (form, pattern) not in first]
    return [_setting(form, pattern, 0.2, False) for form, pattern in (*first, *rest)]


SETTINGS = _settings()
LATER = {
    (form, pattern): [_setting(form, pattern, *rest) for rest in ((0.3, False), (0.2, True), (0.3, True))]
    for form in FORMS
    for pattern in PATTERNS
}
"""The second stage: brightness and clipping, for the form and pattern that the first stage takes."""
BASES = (PLAIN, NORMALIZED)
RULE_SEEDS = range(1100, 1104)
TEST_SEEDS = range(1000, 1008)
ALL = tuple(TASKS.values())

PROTOCOL = (
    PLAIN,
    NORMALIZED,
    MASKS,
    MASKS.on(NORMALIZED),
    JITTER,
    JITTER.on(NORMALIZED),
    MASKS.on(JITTER),
    SMOOTH,
    SMOOTH.on(NORMALIZED),
    SMOOTH.on(JITTER),
    BIAS_FIELD,
    BIAS_FIELD.on(NORMALIZED),
    *OTHERS,
    LEARNT,
    SWAPPED,
    LEARNT.on(NORMALIZED),
    SWAPPED.on(NORMALIZED),
)


@dataclass(frozen=True)
class Job:
    """One run: what it trains, and the split that it is scored on."""

    task: Task
    arm: Arm
    seed: int
    split: str

    @property
    def key(self) -> str:
        return f"{self.split}/{self.task.name}/{self.arm.name}/{self.seed}"


def of_both(setting: Arm) -> list[Arm]:
    """A setting of masks on images as they are, and on normalized ones."""
    return [setting, setting.on(NORMALIZED)]


def rule_jobs(settings: list[Arm]) -> list[Job]:
    """Validation runs of settings, seed by seed, the first four of them before the others."""
    first = [*BASES, *(arm for setting in settings[:4] for arm in of_both(setting))]
    rest = [arm for setting in settings[4:] for arm in of_both(setting)]
    return [
        Job(task, arm, seed, "val") for arms in (first, rest) for seed in RULE_SEEDS for arm in arms for task in ALL
    ]


def arms_on_test(taken: Arm | None) -> tuple[Arm, ...]:
    """The protocol's arms, with the setting that the rule took, if it is not among them."""
    if taken is None or any(arm.masks == taken.masks for arm in PROTOCOL):
        return PROTOCOL
    return (*PROTOCOL, taken, taken.on(NORMALIZED), taken.on(JITTER))


def protocol_jobs(taken: Arm | None = None) -> list[Job]:
    """Test runs of the protocol's arms, seed by seed."""
    return [Job(task, arm, seed, "test") for seed in TEST_SEEDS for arm in arms_on_test(taken) for task in ALL]
