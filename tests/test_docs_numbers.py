"""Every result on README and documentation stands in a file that a command wrote.

A figure is a number with a decimal point or a unit, or in a table, outside of code and formulas. Its source is:

- with an interval, as in ".179 ± .015": a table that a command wrote, in the same digits;
- in a table: rows of the results that the section links to, which have the words of the row's first cell;
- elsewhere: rows that a comment at the end of the paragraph names by a part of their text, as in
  ``<!-- cpu.md: random; learned -->``. Before the colon stands a file, or the name of a table on the evidence page.
  Such a comment behind a table counts for all its rows.

A number of these rows rounds to the figure. A percentage may also stand for a ratio: 4 % for 1.039 or 0.039.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]
TABLE = re.compile(r"<!-- ([A-Z]+) -->(.*?)<!-- /\1 -->", re.DOTALL)
"""A table that a command writes."""
DECLARED = ("95 %", "80 %", "5 to 95 %", "p < .05", "±10 %")
"""Of intervals, the power that a verdict plans for, a range of spreads, the level of tests, what a deviation means."""

UNITS = "%|ms|s|seconds|minutes|kB|MB|operations|times"
FIGURE = re.compile(rf"(?<![\w.,])(\d*\.\d+|\d+(?= (?:{UNITS})(?!\w))|(?<=\| )\d+(?= [|(]))( %)?")
RANGE = re.compile(rf"(?<=\d) (to|and) (\d*\.?\d+) ({UNITS})(?!\w)")
INTERVAL = re.compile(r"\d?\.\d{2,3}\s±\s\d?\.\d{2,3}")
SOURCE = re.compile(r"<!-- ([\w./-]+\.\w+|[A-Z]+): (.*?) -->", re.DOTALL)
LINK = re.compile(r"\]\(([^)]*)\)")
BLOCKS = re.compile(r"\A---.*?^---$|^ *```.*?^ *```$|<!-- not run.*?-->", re.MULTILINE | re.DOTALL)
"""Headers, and code with what it prints, which other tests compare."""
INLINE = re.compile(
    r"\$\$.*?\$\$|\$[^$\n]+\$|`[^`]*`|\u2039[^\u203a]*\u203a|\d+\.\d+\.\d+"
    r"|(?:Python|PyTorch|torch|MONAI|TorchIO|Albumentations|AlbumentationsX|Apache)[ -]\d[\w.]*",
    re.DOTALL,
)
"""Formulas, code, and versions."""


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")


TABLES = dict(TABLE.findall(text_of(ROOT / "docs/evidence.md")))
RESULTS = [
    *(path for folder in ("benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.md"))),
    ROOT / "policy_noise/experiments/run_page.py",
]


def intervals(text: str) -> set[str]:
    return {re.sub(r"\s", " ", found) for found in INTERVAL.findall(text)}


WRITTEN = intervals("\n".join([*TABLES.values(), *map(text_of, RESULTS)]))


def named(file: str, parts: str) -> list[str]:
    """The rows that a comment names."""
    found = [TABLES[file]] if file in TABLES else [text_of(p) for p in RESULTS if p.as_posix().endswith(f"/{file}")]
    assert len(found) == 1, f"{len(found)} files of results are called {file}: name one, with its folder"
    rows = []
    for part in re.sub(r"\s+", " ", parts).split("; "):
        having = [line for line in found[0].splitlines() if part in line]
        assert having, f"no row of {file} has {part!r}"
        rows += having
    return rows


def linked(page: str, section: str) -> list[str]:
    """Rows of the results that a section links to."""
    paths = {(ROOT / page).parent.joinpath(target.partition("#")[0]).resolve() for target in LINK.findall(section)}
    return [line for path in RESULTS if path in paths for line in text_of(path).splitlines()]


def has(rows: list[str], figure: re.Match[str]) -> bool:
    """Whether a number of the rows rounds to a figure."""
    value, within = float(figure[1]), 0.5001 * 10.0 ** -len(figure[1].partition(".")[2])
    meant = [(value, within)]
    if figure[2]:
        meant += [(value / 100, within / 100), (1 + value / 100, within / 100)]
    numbers = [float(number) for row in rows for number in re.findall(r"(?<![\w.])\d*\.?\d+", row)]
    return any(abs(number - wanted) <= near for number in numbers for wanted, near in meant)


def parts_of(page: str, section: str) -> Iterator[tuple[str, list[str]]]:
    """Paragraphs, items of lists and rows of tables, each with the rows that it comes from."""
    for paragraph in re.split(r"\n\s*\n(?!<!-- )", section):
        whole = SOURCE.findall(paragraph)
        for part in re.split(r"\n(?=\||- |\d\. )", paragraph):
            is_row = part.startswith("|")
            rows = [row for source in (whole if is_row else SOURCE.findall(part)) for row in named(*source)]
            if is_row:
                words = re.findall(r"[\w.-]+", part.split("|")[1].lower())
                rows += [row for row in linked(page, section) if words and all(word in row.lower() for word in words)]
            yield SOURCE.sub("", part), rows


def without_source(page: str, text: str) -> Iterator[str]:
    """Figures that have none, each with the words before it."""
    for section in re.split(r"^(?=## )", TABLE.sub("", BLOCKS.sub("", text)), flags=re.MULTILINE):
        for part, rows in parts_of(page, section):
            plain = INLINE.sub("", LINK.sub("", part))
            for declared in DECLARED:
                plain = plain.replace(declared, "")
            yield from sorted(intervals(plain) - WRITTEN)
            plain = RANGE.sub(r" \3 \1 \2 \3", INTERVAL.sub("", plain))
            for figure in FIGURE.finditer(plain):
                if not has(rows, figure):
                    yield " ".join(plain[max(0, figure.start() - 40) : figure.end()].split())


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_has_a_source(page):
    found = list(without_source(page, text_of(ROOT / page)))
    assert not found, (
        f"{page}: the results behind these do not have their last number. Name rows that have it at the end of the "
        f"paragraph, <!-- cpu.md: random; learned -->, or put a setting into code, `0.5`. {found}"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It costs 2.0 ms. <!-- cpu.md: resnet18, 224 px, batch 16, fp32 | random -->", 0),
        ("It costs 2.1 ms. <!-- cpu.md: resnet18, 224 px, batch 16, fp32 | random -->", 1),
        ("It costs 0.3 %. <!-- cpu.md: resnet18, 224 px, batch 16, fp32 | random -->", 0),
        ("It costs 0.5 %. <!-- cpu.md: resnet18, 224 px, batch 16, fp32 | random -->", 1),
        ("It costs 2.0 ms.", 1),
        ("It gains .123 ± .456.", 1),
        ("| masks |\n|---|\n| timm Mixup | 1.04 |\n\n[All](benchmarks/overhead/results/peers.md)", 0),
        ("| masks |\n|---|\n| timm Mixup | 1.14 |\n\n[All](benchmarks/overhead/results/peers.md)", 1),
        ("`0.5`, torch 2.7 and $c = 0.5$ are no results", 0),
    ],
)
def test_a_wrong_figure_is_found(text, found):
    assert len([*without_source("README.md", text)]) == found
