"""Drift and encoding: the numbers of a few made-up runs."""

import math

import numpy as np
import pytest

from benchmarks.study import __main__ as command_line
from benchmarks.study.conditions import CONDITIONS
from benchmarks.study.explanations import drift_table, encoding_table, gap_table, implied_brightness
from benchmarks.study.results import pack

DEFAULT = CONDITIONS["coop-2x2-dose10-level20"]


@pytest.mark.parametrize(
    ("cell_mean", "factor"),
    [(0.5, 1.0), (0.6, math.exp(0.2 * math.sqrt(48) * 0.1)), (1.0, math.exp(0.6)), (0.0, math.exp(-0.6))],
)
def test_the_implied_brightness_is_the_masks_own_formula(cell_mean, factor):
    assert implied_brightness(DEFAULT, cell_mean) == pytest.approx(factor, rel=1e-5)


def test_a_centred_mask_cannot_drift_and_one_of_mean_1_has_no_brightness():
    assert implied_brightness(CONDITIONS["coop-2x2-dose10-level20-entropy075-centred"], 0.9) == 1.0
    assert implied_brightness(CONDITIONS["coop-dose20"], 0.9) is None


def _records() -> list[dict]:
    records = []
    for seed, mean in enumerate((0.5, 0.55, 1.0)):
        encoding = {"probe": 0.4, "probe_swapped": 0.1, "chance": 0.1, "loss": 0.2, "loss_unmasked": 0.1}
        record = {"task": "one", "family": "learned", "seed": seed, "policy": [{"cell_mean": 0.0}, {"cell_mean": mean}]}
        records.append(record | {"condition": DEFAULT.name, "encoding": {**encoding, "loss_swapped": 0.3 + 0.1 * seed}})
    records.append({"task": "one", "family": "frozen", "policy": [{"cell_mean": 0.5}], "condition": "x"})
    return records


def test_drift_is_how_the_last_cell_means_are_spread():
    *_, line = drift_table(_records())
    assert line == f"| {DEFAULT.name} | 3 | 0.50, 0.55, 1.00 | 1.00, 1.07, 1.82 | 1 of 3 |"


def test_the_gap_goes_with_what_it_was_made_of():
    """Within each task the gap is the cells' deviation and noise, and tasks that differ in both do not count."""
    twin, records = "frozen-2x2-dose10-level20", []
    for offset, task in enumerate(("one", "two")):
        for seed in range(8):
            deviation = 0.1 + 0.01 * seed
            noise = 0.01 * (-1) ** seed
            field = {twin: 0.5, DEFAULT.name: 0.3 + 0.2 * (1 - offset) + deviation + noise}
            for name, score in field.items():
                point = {"cell_mean": 0.5, "cell_std": deviation + 0.3 * offset}
                record = {"key": f"{task}{seed}{name}", "task": task, "condition": name, "seed": seed}
                record |= {"family": CONDITIONS[name].family, "policy": [point]}
                records.append(record | {"scores": {"test": {"clean": 0.5, "bias_field:1": score}}})
    seeds = np.arange(8)
    z = np.arctanh(np.corrcoef(seeds, seeds + (-1.0) ** seeds)[0, 1])
    half = 1.96 / math.sqrt(16 - 2 - 2)  # two tasks' means are taken off
    *_, line = gap_table(records)
    cell = f"{np.tanh(z):+.2f} [{np.tanh(z - half):+.2f}, {np.tanh(z + half):+.2f}]"
    assert line == f"| {DEFAULT.name} | 16 | {cell} |  |"
    assert len(gap_table(records[:12])) == 2  # too few for a correlation


def test_encoding_is_the_mean_over_seeds_with_its_interval():
    *_, line = encoding_table(_records())
    half = 4.303 * 0.1 / math.sqrt(3)  # t of two degrees of freedom
    cells = ["one", DEFAULT.name, "3", "0.400 ± 0.000", "0.100 ± 0.000", "0.100", f"+0.200 ± {half:.3f}"]
    assert line == f"| {' | '.join(cells)} | +0.100 ± 0.000 |"


def test_the_command_reads_packed_files(tmp_path, capsys):
    path = tmp_path / "runs.jsonl.gz"
    path.write_bytes(pack(_records()))
    assert command_line.main(["explain", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "1 of 3" in printed
    assert "+0.200 ± " in printed
