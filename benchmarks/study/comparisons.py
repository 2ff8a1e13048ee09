"""Paired comparisons of the study's conditions.

Everything is paired by seed. The control is not a single random-mask setting but all of them: their Pareto front of
clean against shifted score, from plain training (no masks) to the setting with the best shifted score. A method is
compared with the mixture of two neighbouring points of the front that has the method's mean clean score.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.study.results import MEASURES, Results
from policy_noise.experiments.statistics import bootstrap_interval, holm, paired_difference

TESTED = ("clean", "shifted", "bias_field", "medmnist_c", "few_shot", "ct2", "mr")
"""Measures that get all tests. Other shifts are only compared with plain training, over all tasks. The bias field is
the shift most similar to the mask."""
TWINS = ("-shuffled", "-static")
LEVEL_CONTROLS = ("mean of 1", "no pattern", "level of the dose", "bias-field", "color-jitter")
CONTROLS = ("plain", "frozen front", "frozen twin", *TWINS, *LEVEL_CONTROLS)
FROZEN_TWINS = {
    "coop": "frozen-s100-p50",
    "adv": "frozen-s100-p50",
    "relative-coop": "frozen-s100-p50",
    "coop-smooth": "frozen-smooth-s100-p50",
    "coop-normalized": "frozen-normalized",
    "paper": "frozen-paper",
    "color-jitter-coop-2x2-dose10-level20": "color-jitter-2x2-dose10-level20",
}
"""The unlearned control of each condition: the same mask with a policy that never learns. The control of ``X-doseN`` is
``frozen-doseN``, and that of ``X-2x2-doseN`` is ``frozen-2x2-doseN``."""
FAMILIES = ("plain", "frozen", "learned", "augmentation")


def frozen_front(results: Results, task: str, measure: str = "shifted") -> list[str]:
    """The random-mask settings (and plain) on the concave hull of clean score against a measure, from the clean end.

    Args:
        results: Scores.
        task: Name of the task.
        measure: ``"shifted"`` or one shift.
    """
    names = [
        name
        for name in results.conditions(task)
        if results.family[name] in ("plain", "frozen") and not name.endswith("-throughout")
    ]
    points = {name: (results.mean(task, name, "clean"), results.mean(task, name, measure)) for name in names}
    if not points:
        return []
    start = max(points, key=lambda name: points[name])
    front = [start]
    while True:
        clean, shifted = points[front[-1]]
        better = [name for name in names if points[name][1] > shifted]
        if not better:
            return front
        # The next vertex of the hull gains the most shifted score per loss of clean score.
        front.append(max(better, key=lambda name: (points[name][1] - shifted) / max(clean - points[name][0], 1e-12)))


def front_mixture(results: Results, task: str, clean: float, measure: str = "shifted") -> Callable[[int], float]:
    """The front's score at a given clean score, as a function of the seed.

    Beyond the ends of the front, the end point is used.
    """
    front = frozen_front(results, task, measure)
    cleans = [results.mean(task, name, "clean") for name in front]
    if clean >= cleans[0]:
        pair, weight = (front[0], front[0]), 1.0
    elif clean <= cleans[-1]:
        pair, weight = (front[-1], front[-1]), 1.0
    else:
        index = next(i for i in range(1, len(front)) if cleans[i] <= clean)
        pair = (front[index - 1], front[index])
        weight = (clean - cleans[index]) / (cleans[index - 1] - cleans[index])

    def at(seed: int) -> float:
        first, second = (results.by_seed(task, name, measure)[seed] for name in pair)
        return weight * first + (1 - weight) * second

    return at


@dataclass
class Comparison:
    """A paired comparison of a condition with a control on one task and measure."""

    task: str
    condition: str
    control: str
    measure: str
    seeds: int
    mean: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    effect_size: float
    p_value: float
    p_holm: float = float("nan")


def _differences(results: Results, task: str, condition: str, control: str, measure: str) -> dict[int, float]:
    """Differences by seed. Empty if there is nothing to compare."""
    own = results.by_seed(task, condition, measure)
    if control != "frozen front":
        other = results.by_seed(task, control, measure)
        return {seed: value - other[seed] for seed, value in own.items() if seed in other}
    if not own or not frozen_front(results, task, measure):
        return {}
    at = front_mixture(results, task, results.mean(task, condition, "clean"), measure)
    return {seed: value - at(seed) for seed, value in own.items()}


def compare(results: Results, task: str, condition: str, control: str, measure: str) -> Comparison | None:
    """Compare by seed with another condition or with ``"frozen front"``. None with fewer than two common seeds.

    Args:
        results: Scores.
        task: Name of the task, or ``"all"`` for the mean over tasks, by seed.
        condition: Name of the condition.
        control: Name of the control.
        measure: One of :data:`MEASURES`; the frozen front is that of this measure.
    """
    tasks = results.tasks if task == "all" else [task]
    found = [_differences(results, name, condition, control, measure) for name in tasks]
    found = [differences for differences in found if differences]  # not every task has every measure
    if not found:
        return None
    seeds = sorted(set.intersection(*(set(differences) for differences in found)))
    if len(seeds) < 2:
        return None
    difference = np.mean([[differences[seed] for seed in seeds] for differences in found], axis=0)
    test = paired_difference(difference, np.zeros_like(difference))
    interval = bootstrap_interval(difference)
    spread = float(difference.std(ddof=1))
    effect = float(difference.mean() / spread) if spread > 0 else float("nan")
    return Comparison(
        task, condition, control, measure, len(seeds), *test[:3], *interval[1:], effect, p_value=test.p_value
    )


def _frozen_twin(condition: str) -> str:
    name, _, dose = condition.partition("-dose")
    if condition in FROZEN_TWINS or not dose or name.startswith("frozen"):
        return FROZEN_TWINS.get(condition, "none")
    dose = dose.partition("-entropy")[0]
    for kind in ("-shuffled", "-static", "-class"):
        dose = dose.removesuffix(kind)
    shape = name.partition("-")[2]
    return f"frozen-{shape}-dose{dose}" if shape else f"frozen-dose{dose}"


def meant_by(condition: str, control: str) -> str:
    """The condition that serves as this kind of control for a condition, or ``"none"``."""
    if control in TWINS:
        return condition + control
    if control == "frozen twin":
        return _frozen_twin(condition)
    if control not in LEVEL_CONTROLS or condition.startswith(f"{control}-"):
        return control
    mask, found, level = condition.partition("-level")
    if not found or level.startswith("-"):
        return "none"
    if control == "no pattern":
        name, _, dose = mask.partition("-2x2-dose")
        return f"{name}-1x1-dose{level or dose}-level" if dose else "none"
    if control == "level of the dose":
        return f"{mask}-level" if level else "none"
    return mask if control == "mean of 1" else control


def all_comparisons(results: Results, against: str | None) -> list[Comparison]:
    """All declared comparisons.

    Every condition is compared with plain training, with its own controls, and with the condition ``against``. All but
    random masks are also compared with the front of random masks. Masks of varying brightness are also compared with
    the same masks of mean 1 and with other augmentations, and masks after ColorJitter with ColorJitter alone.

    Holm's correction covers all tasks and conditions of one family, control and measure. The means over tasks are
    corrected in the same way.
    """
    found = []
    names = list(results.family)
    controls = (*CONTROLS, against) if against else CONTROLS
    for measure in MEASURES:
        for control in controls if measure in TESTED else controls[:1]:
            for family in ("frozen", "learned", "augmentation"):
                for tasks in (results.tasks, ["all"]) if measure in TESTED else (["all"],):
                    kept = []
                    for task in tasks:
                        for name in (name for name in names if results.family[name] == family):
                            other = meant_by(name, control)
                            needless = control == "frozen front" and (family == "frozen" or measure == "clean")
                            if not needless and other != name:
                                kept.append(compare(results, task, name, other, measure))
                    done = [comparison for comparison in kept if comparison is not None]
                    for comparison, adjusted in zip(done, holm([c.p_value for c in done]), strict=True):
                        comparison.p_holm = float(adjusted)
                    found += done
    return found


def gains(results: Results, condition: str, measure: str) -> float:
    """Difference from plain training, as a mean over the tasks that have the measure."""
    found = [_differences(results, task, condition, "plain", measure) for task in results.tasks]
    means = [np.mean(list(differences.values())) for differences in found if differences]
    return float(np.mean(means)) if means else float("nan")


def by_family(results: Results) -> list[str]:
    """Conditions by family, sorted by the score on shifted images, the best first."""
    return sorted(
        results.family, key=lambda name: (FAMILIES.index(results.family[name]), -gains(results, name, "shifted"))
    )
