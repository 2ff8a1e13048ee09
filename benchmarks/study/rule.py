"""The rule that chooses what ``RandomShading`` is by default, on validation alone. PROTOCOL.md declares it."""

from dataclasses import dataclass

import numpy as np

from benchmarks.pages import head, row
from benchmarks.study.arms import Arm
from benchmarks.study.results import Difference, Results
from benchmarks.study.suites import ALL, BASES, LATER, PLAIN, SETTINGS, TODAY, Job, of_both, rule_jobs

TASKS = [task.name for task in ALL]
CLEAN_LOSS, CLEAN_LOSS_OF_ONE, DETAIL_LOSS = 0.005, 0.015, 0.02
"""The largest losses against today's default: clean in the mean over tasks and on one task, and of blur and noise."""
MEASURES = {"clean": "clean", "bias_field": "bias field", "blur": "blur", "noise": "noise"}


@dataclass
class Verdict:
    """A setting against today's default, on images as they are and on normalized ones."""

    setting: Arm
    passes: bool
    score: float
    differences: dict[str, dict[str, Difference]]


def judge(results: Results, setting: Arm) -> Verdict | None:
    """Apply the rule's conditions to a setting. None while runs are missing."""
    differences: dict[str, dict[str, Difference]] = {}
    passes, scores = True, []
    for base, arm in zip(BASES, of_both(setting), strict=True):
        today = arm.name.replace(setting.name, TODAY)
        found = {measure: results.difference(TASKS, arm.name, today, measure) for measure in MEASURES}
        single = [results.difference([task], arm.name, today, "clean") for task in TASKS]
        if None in found.values() or None in single:
            return None
        differences[base.name] = found
        clean, bias_field, blur, noise = (found[measure].mean for measure in MEASURES)
        passes &= clean >= -CLEAN_LOSS and min(one.mean for one in single) >= -CLEAN_LOSS_OF_ONE
        passes &= bool(bias_field - found["bias_field"].half > 0)  # never with fewer than three seeds
        passes &= (blur + noise) / 2 >= -DETAIL_LOSS
        scores.append(clean + bias_field + (blur + noise) / 2)
    return Verdict(setting, passes, float(np.mean(scores)), differences)


def choose(results: Results, settings: list[Arm]) -> Verdict | None:
    """The setting with the best score of those that pass. None if none does."""
    found = [judge(results, setting) for setting in settings if setting.name != TODAY]
    return max((v for v in found if v is not None and v.passes), key=lambda v: v.score, default=None)


def second_stage(results: Results, done: set[str]) -> list[Arm]:
    """The settings of the second stage, once the first is complete: brightness and clipping of the pattern taken."""
    if any(job.key not in done for job in rule_jobs(SETTINGS)):
        return []
    best = choose(results, SETTINGS)
    form, pattern = (best.setting.name if best else TODAY).split()[:2]
    return LATER[form, pattern]


def all_rule_jobs(results: Results, done: set[str]) -> list[Job]:
    """Both stages' runs, as far as they are known."""
    later = second_stage(results, done)
    return list({job.key: job for job in [*rule_jobs(SETTINGS), *(rule_jobs(later) if later else ())]}.values())


def taken(results: Results, done: set[str]) -> Arm | None:
    """The setting that the rule took, once all its runs exist. None before, and if today's stays."""
    later = second_stage(results, done)
    if not later or any(job.key not in done for job in all_rule_jobs(results, done)):
        return None
    chosen = choose(results, [*SETTINGS, *later])
    return chosen.setting if chosen else None


def outcome(results: Results, done: set[str]) -> str:
    """The rule's outcome in a sentence or two: the default, who pays, or that it is not decided."""
    later = second_stage(results, done)
    jobs = all_rule_jobs(results, done)
    missing = sum(job.key not in done for job in jobs)
    if missing or not later:
        stages = "two stages" if later else "first stage"
        exist = f"{len(jobs) - missing} of {len(jobs)} runs of the rule's {stages} exist"
        return f"The default of `RandomShading` is not decided: {exist}."
    chosen = taken(results, done)
    if chosen is None:
        return f"Decided: no setting passes, so the default stays `{TODAY}`."
    payers = [
        f"{task} under {MEASURES[measure]} ({arm.title}): {difference}"
        for arm in of_both(chosen)
        for task in TASKS
        for measure in ("clean", "blur", "noise")
        if (difference := results.difference([task], arm.name, arm.name.replace(chosen.name, TODAY), measure))
        and difference.mean + difference.half < 0
    ]
    return f"Decided: `{chosen.name}`. Who pays: {'; '.join(payers) or 'no task significantly'}."


def rule_table(results: Results, settings: list[Arm]) -> list[str]:
    """Settings minus today's default, and today's minus no masks, by base."""
    lines = head(["masks", "on images", "seeds", *MEASURES.values()])
    for setting in settings:
        for base, arm in zip(BASES, of_both(setting), strict=True):
            control = base.name if setting.name == TODAY else arm.name.replace(setting.name, TODAY)
            cells = [results.difference(TASKS, arm.name, control, measure) for measure in MEASURES]
            if cells[0] is not None:
                title = f"{TODAY}, minus none" if setting.name == TODAY else setting.name
                kind = "as they are" if base is PLAIN else "normalized"
                lines.append(row([title, kind, str(cells[0].seeds), *map(str, cells)]))
    return lines
