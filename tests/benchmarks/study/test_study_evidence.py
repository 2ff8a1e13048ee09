"""The evidence page: its table is what the committed runs give, and README quotes it."""

import re
from pathlib import Path

import pytest

from benchmarks.study import evidence

README = Path(__file__).resolve().parents[3] / "README.md"


@pytest.fixture(scope="module")
def found():
    return evidence.collect()


def test_the_page_has_the_table_of_the_committed_runs(found):
    page = evidence.PAGE.read_text(encoding="utf-8")
    assert evidence.put(page, evidence.table(found)) == page
    long = evidence.collect_long()
    assert evidence.put(page, evidence.long_table(long), evidence.LONG_MARKERS) == page
    assert {name for _, name, _ in long} == set(evidence.LONG_ROWS)


def test_every_row_has_the_measures_that_the_picture_shows(found, tmp_path):
    assert all((row.condition, measure) in found for row in evidence.ROWS for measure in evidence.SHOWN)
    assert all(comparison.seeds == 8 for comparison in found.values())
    evidence.plot(found, tmp_path / "evidence.png")
    assert (tmp_path / "evidence.png").stat().st_size > 10_000


def test_the_readme_quotes_the_table(found):
    """Its six rows are rows of the page: clean, shifted and under bias fields."""
    quoted = re.findall(
        r"^\| .*\| ([-+]\.\d.*?) \| ([-+]\.\d.*?) \| ([-+]\.\d.*?) \|$", README.read_text(), re.MULTILINE
    )
    rows = {
        tuple(
            evidence._cell(found[row.condition, measure]).replace("\N{NO-BREAK SPACE}", " ")
            for measure in evidence.SHOWN
        )
        for row in evidence.ROWS
    }
    assert len(quoted) == 6
    assert set(quoted) <= rows
