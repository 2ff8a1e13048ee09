"""Claims of few seeds that more seeds take back."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.claims import count

MEASURES = [{"key": "site", "label": "site"}]


@pytest.fixture
def runs():
    """Seven seeds of three methods: one gains with every seed, one loses as much with the last two."""
    rng = np.random.default_rng(0)
    rows = [
        (method, seed, "site", 0.5 + gain * (1 if seed < last else -1) + rng.normal(0, 0.002))
        for method, gain, last in (("plain", 0.0, 0), ("true", 0.1, 7), ("chance", 0.1, 5))
        for seed in range(7)
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "set", "value"])


@pytest.mark.usefixtures("without_garbage")
def test_a_gain_of_some_seeds_is_claimed_and_taken_back_and_one_of_all_stays(runs):
    found = count(runs, [("chance", "plain")], MEASURES)["site"]
    assert (found["first"], found["first taken back"], found["all seeds"]) == (1, 1, 0)
    assert found["any"] == found["any taken back"] >= 1
    found = count(runs, [("true", "plain")], MEASURES)["site"]
    assert found["first taken back"] == found["any taken back"] == 0
    assert (found["any"], found["all seeds"]) == (21, 1)  # 7 over 5
