"""A comparison's verdict in plain sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from .methods import REFERENCE
from .overlap import Overlap, sentence
from .results import ALPHA, POINT

__all__ = ["finding", "signed", "size", "verdict"]

NEAR_CHANCE = 1.5
"""F1 is called near chance if the best is below this many times that of guessing."""


def signed(row: Mapping[str, Any]) -> str:
    """A difference and its interval, as text."""
    if row["low"] is None:
        return f"{row['mean']:+.3f}"
    return f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def size(difference: float) -> str:
    """A difference without its sign, as text. Scores cannot differ by more than 1."""
    return f"{difference:.3f}" if difference < 1 else "over 1"


def finding(row: Mapping[str, Any]) -> str:
    """``"better"``, ``"worse"``, ``"not shown"``, or ``"not tested"`` if there are too few seeds."""
    if row["p_holm"] is None:
        return "not tested"
    if row["p_holm"] >= ALPHA or row["mean"] == 0:
        return "not shown"
    return "better" if row["mean"] > 0 else "worse"


def verdict(results: Mapping[str, Any]) -> list[str]:
    """The verdict in sentences, the answer first, from the table of F1."""
    table = results["tables"]["f1"]
    labels = {method["name"]: method["name"] for method in results["methods"]}
    names = {measure["key"]: measure["label"] for measure in table["measures"]}
    rows = table["differences"]
    seeds = len(results["seeds"])
    overlaps = [sentence(key, Overlap(**found)) for key, found in results["overlaps"].items() if key in names]
    own = {name: [row for row in rows if row["method"] == name and row["versus"] == REFERENCE] for name in labels}
    del own[REFERENCE]
    if all(finding(row) == "not tested" for row in rows):
        return [
            f"No verdict from {seeds} seed{'s' * (seeds > 1)}: a test needs at least three. Run again "
            "with --resume and more --seeds; eight are a good start.",
            *overlaps,
            *(f"{_capital(labels[name])}, untested: {_list(rows_, names)}." for name, rows_ in own.items()),
        ]
    return [
        _answer(own, labels, names),
        *overlaps,
        *(_of_method(labels[name], rows_, names) for name, rows_ in own.items()),
        *_controls(rows, labels, names),
        _highest(table, labels, names),
        *([] if results["record"]["data"].get("multi_label") else _near_chance(table)),
        _power(table, names, seeds),
        "Numbers are differences of macro F1 with 95 % intervals over training seeds. They separate a method's effect "
        "from chance in training. All runs share the test images and sites, so the intervals do not say whether "
        "another site or other patients would show the same.",
    ]


def _answer(own: Mapping[str, Sequence[Mapping[str, Any]]], labels: Mapping[str, str], names: Mapping[str, str]) -> str:
    """The first sentence: which methods help, at what cost."""
    kinds: dict[str, list[str]] = {"helps": [], "trades": [], "harms": [], "nothing": []}
    for name, rows in own.items():
        better, worse = (
            _join([names[row["measure"]] for row in rows if finding(row) == kind]) for kind in ("better", "worse")
        )
        if better and worse:
            kinds["trades"].append(f"{labels[name]} (better on {better}; worse on {worse})")
        elif better or worse:
            kinds["helps" if better else "harms"].append(f"{labels[name]} (on {better or worse})")
        else:
            kinds["nothing"].append(labels[name])
    parts = [
        ("better than plain and nowhere shown to be worse", kinds["helps"]),
        ("better on some test sets and worse on others", kinds["trades"]),
        ("worse than plain and nowhere shown to be better", kinds["harms"]),
        ("not shown to differ from plain", kinds["nothing"]),
    ]
    said = [f"{what}: {', '.join(who)}" for what, who in parts if who]
    on_clean = [labels[name] for name, rows in own.items() if finding(rows[0]) == "better"]
    clean = f"{_join(on_clean)} gained" if on_clean else "no method is shown to gain"
    return f"{'. '.join(map(_capital, said))}. On clean test images {clean}."


def _of_method(label: str, rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """The test sets on which a method is better or worse, with numbers, and those where no difference is shown."""
    unclear = [row for row in rows if finding(row) == "not shown"]
    groups = (
        ("better on", [row for row in rows if finding(row) == "better"], True),
        ("worse on", [row for row in rows if finding(row) == "worse"], True),
        ("higher, but not significant after correction, on", [row for row in unclear if row["low"] > 0], True),
        ("lower, but not significant after correction, on", [row for row in unclear if row["high"] < 0], True),
        ("no difference shown on", [row for row in unclear if row["low"] <= 0 <= row["high"]], False),
    )
    said = [f"{words} {_list(mine, names, numbers=numbers)}" for words, mine, numbers in groups if mine]
    return f"{_capital(label)}: {'; '.join(said)}."


def _controls(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    """Sentences on what learning adds to masks, and what masks add to ColorJitter."""
    sentences = []
    for method, versus in dict.fromkeys((row["method"], row["versus"]) for row in rows if row["versus"] != REFERENCE):
        mine = [row for row in rows if (row["method"], row["versus"]) == (method, versus)]
        what = _of_method(f"{labels[method]} against {labels[versus]}", mine, names)
        tail = ""
        if method in ("learned", "paper") and not any(finding(row) == "better" for row in mine):
            tail = " Learning is not shown to add anything here."
        sentences.append(what + tail)
    return sentences


def _highest(table: Mapping[str, Any], labels: Mapping[str, str], names: Mapping[str, str]) -> str:
    best = []
    for key, name in names.items():
        method = max(table["means"], key=lambda own: table["means"][own][key][0])
        best.append(f"{name} {labels[method]} ({table['means'][method][key][0]:.3f})")
    return f"Highest mean F1 (not a finding in itself): {'; '.join(best)}."


def _near_chance(table: Mapping[str, Any]) -> list[str]:
    """Name the test sets on which even the best method is hardly better than guessing."""
    found = []
    for measure in table["measures"]:
        best, chance = max(means[measure["key"]][0] for means in table["means"].values()), 1 / measure["classes"]
        if best < NEAR_CHANCE * chance:
            found.append(
                f"{measure['label']} ({best:.3f} at most; guessing among {measure['classes']} gives {chance:.3f})"
            )
    if not found:
        return []
    return [f"No method does much better than guessing on {_join(found)}: differences there say little."]


def _power(table: Mapping[str, Any], names: Mapping[str, str], seeds: int) -> str:
    """The differences that could have been detected, for the method whose differences vary most."""
    said = []
    rows = [row for row in table["differences"] if row["versus"] == REFERENCE]
    for key, name in names.items():
        known = [row["smallest"] for row in rows if row["measure"] == key and row["smallest"] is not None]
        said.append(f"{size(max(known))} on {name}" if known else f"unknown on {name} (the differences do not vary)")
    needed = [row["seeds_for_a_point"] for row in rows if row["measure"] == "clean" and row["smallest"] is not None]
    count = "more than 10000" if None in needed else str(max(needed, default=0))
    point = f" To find one point of F1 ({POINT}) on clean test images would take {count} seeds." if needed else ""
    return (
        f"Power: with {seeds} seeds and {table['tests']} tests, a true difference of this size would be found with "
        f"80 % probability: {_join(said)}. Smaller ones may have been missed.{point}"
    )


def _list(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], *, numbers: bool = True) -> str:
    return _join([names[row["measure"]] + (f" ({signed(row)})" if numbers else "") for row in rows])


def _join(texts: Sequence[str]) -> str:
    return "".join(texts) if len(texts) < 2 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
