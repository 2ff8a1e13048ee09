"""A comparison's verdict in plain sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from .methods import REFERENCE
from .results import ALPHA, POINT

__all__ = ["finding", "signed", "verdict"]


def signed(row: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    if row["low"] is None:
        return f"{row['mean']:+.3f}"
    return f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def finding(row: Mapping[str, Any]) -> str:
    """``"better"``, ``"worse"``, ``"not shown"``, or ``"not tested"`` where there are too few seeds."""
    if row["p_holm"] is None:
        return "not tested"
    if row["p_holm"] >= ALPHA or row["mean"] == 0:
        return "not shown"
    return "better" if row["mean"] > 0 else "worse"


def verdict(results: Mapping[str, Any]) -> list[str]:
    """Sentences, the answer first, from the table of F1."""
    table = results["tables"]["f1"]
    labels = {method["name"]: method["label"] for method in results["methods"]}
    names = {measure["key"]: measure["label"] for measure in table["measures"]}
    rows = table["differences"]
    seeds = len(results["seeds"])
    own = {name: [row for row in rows if row["method"] == name and row["versus"] == REFERENCE] for name in labels}
    del own[REFERENCE]
    if all(finding(row) == "not tested" for row in rows):
        return [
            f"No verdict from {seeds} seed{'s' * (seeds > 1)}: differences are tested from three seeds on. Run again "
            "with --resume and more --seeds; eight are a good start.",
            *(f"{labels[name]}: {_list(rows_, names)}, untested." for name, rows_ in own.items()),
        ]
    return [
        _answer(own, labels, names),
        *(_of_method(labels[name], rows_, names) for name, rows_ in own.items()),
        *_controls(rows, labels, names),
        _highest(table, labels, names),
        _power(rows, names, seeds, table["tests"]),
        "Intervals are over training seeds: they part a method from luck in training. The test images and sites are "
        "the same in all runs, so nothing here says that another site or other patients would show the same.",
    ]


def _answer(own: Mapping[str, Sequence[Mapping[str, Any]]], labels: Mapping[str, str], names: Mapping[str, str]) -> str:
    """The first sentence: which methods help, at what cost."""
    kinds: dict[str, list[str]] = {"helps": [], "trades": [], "harms": [], "nothing": []}
    for name, rows in own.items():
        found = {finding(row) for row in rows}
        kind = "trades" if {"better", "worse"} <= found else "helps" if "better" in found else None
        kinds[kind or ("harms" if "worse" in found else "nothing")].append(labels[name])
    parts = [
        (kinds["helps"], "better than conventional training somewhere and nowhere shown to be worse"),
        (kinds["trades"], "better on some test sets and worse on others"),
        (kinds["harms"], "worse somewhere and nowhere shown to be better"),
        (kinds["nothing"], "not shown to differ from conventional training on any test set"),
    ]
    said = [f"{_join(who)} {'are' if len(who) > 1 else 'is'} {what}" for who, what in parts if who]
    on_clean = [labels[name] for name, rows in own.items() if finding(rows[0]) == "better"]
    clean = (
        f"On clean test images {_join(on_clean)} gained."
        if on_clean
        else "On clean test images no method is shown to gain."
    )
    return f"{_capital('; '.join(said))}. {clean}"


def _of_method(label: str, rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    said = []
    for kind, words in (("better", "better on"), ("worse", "worse on"), ("not shown", "no difference shown on")):
        mine = [row for row in rows if finding(row) == kind]
        if mine:
            said.append(f"{words} {_list(mine, names)}")
    return f"{_capital(label)}: {'; '.join(said)}."


def _controls(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    """What learning adds, and what masks add to ColorJitter."""
    sentences = []
    for method, versus in dict.fromkeys((row["method"], row["versus"]) for row in rows if row["versus"] != REFERENCE):
        mine = [row for row in rows if (row["method"], row["versus"]) == (method, versus)]
        what = _of_method(f"{labels[method]} against {labels[versus]}", mine, names)
        tail = ""
        if method in ("policy", "paper"):
            better = any(finding(row) == "better" for row in mine)
            tail = " So learning adds something here." if better else " So learning is not shown to add anything here."
        sentences.append(what + tail)
    return sentences


def _highest(table: Mapping[str, Any], labels: Mapping[str, str], names: Mapping[str, str]) -> str:
    best = []
    for key, name in names.items():
        method = max(table["means"], key=lambda own: table["means"][own][key][0])
        best.append(f"{name} {labels[method]} ({table['means'][method][key][0]:.3f})")
    return f"Highest mean F1, which alone is no finding: {'; '.join(best)}."


def _power(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], seeds: int, tests: int) -> str:
    said = []
    for key, name in names.items():
        mine = [
            row for row in rows if row["measure"] == key and row["versus"] == REFERENCE and row["smallest"] is not None
        ]
        if not mine:
            continue
        low, high = min(row["smallest"] for row in mine), max(row["smallest"] for row in mine)
        needed = [row["seeds_for_a_point"] for row in mine]
        count = "more than 10000" if None in needed else str(max(needed))
        spread = f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"
        said.append(f"{name} {spread} ({count} seeds for {POINT})")
    return (
        f"What could have been seen: with {seeds} seeds and {tests} tests, a true difference of this size would be "
        f"found four times in five: {'; '.join(said)}. Smaller ones may exist unseen."
    )


def _list(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    return _join([f"{names[row['measure']]} ({signed(row)})" for row in rows])


def _join(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
