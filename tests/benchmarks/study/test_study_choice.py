"""The rule that takes a condition to test, on made-up scores whose answer is known."""

import pytest

from benchmarks.study.choice import CONTROL, candidates, choice_table
from benchmarks.study.conditions import HELD
from benchmarks.study.results import Results

BEST, WORSE_CLEAN, UNSURE = (name for name in HELD[:6] if not name.endswith("-shuffled"))
DIFFERENCES = {  # clean, bias field
    CONTROL: (0.0, 0.0),
    BEST: (0.01, 0.01),
    WORSE_CLEAN: (-0.02, 0.2),  # the best mean, and out
    UNSURE: (-0.001, 0.0),  # below, and not significantly
    "coop-2x2-dose10-level20": (0.5, 0.5),  # no candidate
}


def _results(names) -> Results:
    records = []
    for name in names:
        clean, field = DIFFERENCES[name]
        for task in ("one", "two"):
            for seed in range(3):
                noise = 0.006 * (seed - 1) if name != CONTROL else 0.0
                scores = {"clean": 0.7 + clean + noise, "bias_field:1": 0.5 + field + noise}
                family = "frozen" if name == CONTROL else "learned"
                key = f"{task}{name}{seed}"
                record = {"key": key, "task": task, "condition": name, "family": family, "seed": seed}
                records.append({**record, "scores": {"val": scores}})
    return Results(records, "val")


def test_what_is_significantly_below_the_control_is_out_and_the_best_of_the_rest_is_taken():
    found = {candidate.name: candidate for candidate in candidates(_results(DIFFERENCES))}
    assert list(found) == [WORSE_CLEAN, BEST, UNSURE]
    assert [candidate.kept for candidate in found.values()] == [False, True, True]
    assert found[BEST].mean == pytest.approx(0.01)
    assert found[UNSURE].differences["clean"].high > 0 > found[WORSE_CLEAN].differences["clean"].high
    assert choice_table(_results(DIFFERENCES)).endswith(f"Taken: {BEST}")


def test_none_is_taken_where_all_are_out_and_the_control_must_be_there():
    assert choice_table(_results([CONTROL, WORSE_CLEAN])).endswith("Taken: none")
    with pytest.raises(ValueError, match=f"no {CONTROL}"):
        candidates(_results([BEST]))
