"""A comparison's verdict, one line each: the answer first, what to do next last."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..statistics import MIN_PAIRS, MIN_PATIENTS, pairs_needed
from .methods import unlearned
from .overlap import Overlap, sentence

__all__ = ["ends", "signed", "size", "verdict"]

LARGE = 2
"""Images are called reduced if they were at least this many times as large."""
SMALL = 2.0
"""A model is called small below this many million weights."""
MOST_SEEDS = 40
"""More seeds than this are not advised."""


def signed(row: Mapping[str, Any]) -> str:
    """A difference and its interval, as text."""
    if row["low"] is None:
        return f"{row['mean']:+.3f}"
    return f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def ends(row: Mapping[str, Any]) -> str:
    """An interval over patients, as text."""
    return "too few" if row["low"] is None else f"[{row['low']:+.3f}, {row['high']:+.3f}]"


def size(difference: float) -> str:
    """A difference without its sign, as text."""
    return f"{difference:.3f}"


def verdict(results: Mapping[str, Any]) -> list[str]:
    """The verdict in sentences, from the first table.

    Args:
        results: What :func:`~policy_noise.experiments.comparison.results.results_of` gives, or of a table of runs the
            entries ``methods``, ``seeds``, ``settings`` and ``tables``.
    """
    table = next(iter(results["tables"].values()))
    names = {measure["key"]: measure["label"] for measure in table["measures"]}
    reference = results["settings"]["reference"]
    arms = [method["name"] for method in results["methods"] if method["name"] != reference]
    own = {name: _rows(table, name, reference) for name in arms}
    found = results.get("overlaps", {})
    overlaps = [sentence(key, Overlap(**value)) for key, value in found.items() if key in names]
    why = _no_verdict(results)
    if why:
        numbers = [f"{name}, untested: {_list(rows, names)}." for name, rows in own.items()]
        return [why, *overlaps, *numbers, *_patients(results, names), _what_next(results, table, own, names)]
    return [
        _answer(own, reference, results),
        *_near_chance(table),
        *overlaps,
        *(f"{name}: {_findings(rows, names)}." for name, rows in own.items()),
        *_parts(table, names, reference),
        *_elsewhere(results),
        *_patients(results, names),
        _power(results, table, names),
        *_scale(results),
        _scope(results),
        _what_next(results, table, own, names),
    ]


def _rows(table: Mapping[str, Any], name: str, versus: str) -> list[Mapping[str, Any]]:
    return [row for row in table["differences"] if (row["method"], row["versus"]) == (name, versus)]


def _no_verdict(results: Mapping[str, Any]) -> str:
    """Why nothing was tested, if so."""
    seeds, missing = len(results["seeds"]), results.get("missing", [])
    if missing:
        return f"No verdict yet: {len(missing)} of the planned runs are not finished, and a test now would be one more."
    if seeds < MIN_PAIRS:
        return f"No verdict from {seeds} seed{'s' * (seeds > 1)}: a test needs at least {MIN_PAIRS}."
    if all(row["p"] is None for table in results["tables"].values() for row in table["differences"]):
        return "No verdict: the differences are the same for every seed, so nothing can be said of chance."
    return ""


def _answer(own: Mapping[str, Sequence[Mapping[str, Any]]], reference: str, results: Mapping[str, Any]) -> str:
    """The first sentence: which arms help, by the first measure."""
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for name, rows in own.items():
        said = {row["finding"] for row in rows}
        kinds.setdefault(("better" in said, "worse" in said), []).append(name)
    words = {
        (True, False): "better somewhere and nowhere shown to be worse",
        (True, True): "better somewhere, worse elsewhere",
        (False, True): "worse somewhere and nowhere shown to be better",
        (False, False): "no difference shown",
    }
    parts = [f"{what}: {_join(kinds[kind])}" for kind, what in words.items() if kind in kinds]
    several = len(results["tables"]) > 1 and "record" not in results  # compare's page says which measure is its first
    start = f"By {next(iter(results['tables']))}, against" if several else "Against"
    return f"{start} {reference}, {'; '.join(parts)}."


def _near_chance(table: Mapping[str, Any]) -> list[str]:
    """Name the test sets on which even the best method is hardly better than guessing."""
    found = [
        f"{measure['label']} ({measure['best']:.3f} at most; guessing gives {1 / measure['classes']:.3f})"
        for measure in table["measures"]
        if measure["near_chance"]
    ]
    return [f"Near chance, so no difference there counts: {_join(found)}."] if found else []


def _findings(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """The test sets on which a method is better or worse, with numbers, and those where no difference is shown."""
    groups = [(kind, [row for row in rows if row["finding"] == kind]) for kind in ("better", "worse")]
    said = [f"{kind} on {_list(mine, names)}" for kind, mine in groups if mine]
    rest = [names[row["measure"]] for row in rows if row["finding"] not in ("better", "worse")]
    return "; ".join([*said, *([f"no difference shown on {_join(rest)}"] if rest else [])])


def _parts(table: Mapping[str, Any], names: Mapping[str, str], reference: str) -> list[str]:
    """What learning adds to masks, one part to another, and masks to normalization alone."""
    said = []
    for name, versus in dict.fromkeys((row["method"], row["versus"]) for row in table["differences"]):
        if versus == reference:
            continue
        rows = _rows(table, name, versus)
        better = _is_better(rows)
        tail = ""
        if versus == "normalize" and not better:
            tail = f". Normalizing each image alone does as much as {name}"
        elif versus == unlearned(name):
            tail = "" if better else ". Learning is not shown to add anything here"
        elif "learned" in name.split("+") and "random" in versus.split("+"):
            tail = ". Their masks differ too: what learning adds shows against learned-random"
        said.append(f"{name} against {versus}: {_findings(rows, names)}{tail}.")
    return said


def _elsewhere(results: Mapping[str, Any]) -> list[str]:
    """Name what is significant in the tables that the page folds."""
    said = []
    for key, table in list(results["tables"].items())[1:]:
        names = {measure["key"]: measure["label"] for measure in table["measures"]}
        what = "F1 under single shifts" if key == "shifts" else table["metric"]
        starred: dict[str, list[str]] = {}
        for row in table["differences"]:
            if row["finding"] in ("better", "worse") and row["versus"] == results["settings"]["reference"]:
                starred.setdefault(f"{row['method']} {row['finding']}", []).append(names[row["measure"]])
        if starred:
            said.append(f"{what}: {'; '.join(f'{who} on {_join(where)}' for who, where in starred.items())}.")
    return said


def _patients(results: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Intervals over patients of the differences from the reference."""
    said: dict[tuple[str, int], list[str]] = {}
    for row in results["patients"]:
        if row["versus"] == results["settings"]["reference"] and row["measure"] in names:
            where = said.setdefault((names[row["measure"]], row["patients"]), [])
            where.append(f"{row['method']} {ends(row)}")
    return [
        f"Over the {count} patients of {name} (bootstrap, not corrected): {', '.join(found)}."
        if count >= MIN_PATIENTS
        else f"{name}: too few patients for an interval over them, {count} where {MIN_PATIENTS} are needed."
        for (name, count), found in said.items()
    ]


def _power(results: Mapping[str, Any], table: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The differences that could have been found, for the pair whose differences vary most."""
    said = []
    for key, name in names.items():
        known = [row["smallest"] for row in table["differences"] if row["measure"] == key and row["smallest"]]
        said.append(f"{size(max(known))} on {name}" if known else f"unknown on {name} (no spread over seeds)")
    return f"{len(results['seeds'])} seeds find a true difference of {_join(said)}, four times in five."


def _scale(results: Mapping[str, Any]) -> list[str]:
    """Model and image size, and whether images were reduced."""
    record = results.get("record")
    if record is None:
        return []
    recipe, original, weights = record["recipe"], record["data"].get("original_size"), record["data"].get("weights")
    said = f"Judged at {recipe['image_size']} px"
    if original and original >= LARGE * recipe["image_size"]:
        said += f", reduced from {original},"
    return [f"{said} by {recipe['model']}" + (f", {weights / 1e6:.1f} million weights." if weights else ".")]


def _scope(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    looks = settings["looks"]
    level = f"Level {settings['alpha']}, one planned look"
    if looks > 1:
        level = f"Level {settings['alpha']} spent over {looks} planned looks, {settings['alpha'] / looks:.3f} each"
    tested = any(row["low"] is not None for row in results["patients"])
    others = "sites" if tested else "patients or sites"
    return f"{level}. Intervals are over training seeds: they do not say what other {others} would show."


def _what_next(
    results: Mapping[str, Any],
    table: Mapping[str, Any],
    own: Mapping[str, Sequence[Mapping[str, Any]]],
    names: Mapping[str, str],
) -> str:
    """The last sentence."""
    seeds, record = len(results["seeds"]), results.get("record")
    if results.get("missing"):
        return "Next: finish the planned runs with --resume."
    if seeds < MIN_PAIRS:
        return f"Next: more seeds, at least {MIN_PAIRS}" + (" (--resume --seeds 5)." if record else ".")
    if all(row["p"] is None for row in table["differences"]):
        return "Next: runs that differ by their seeds; equal differences may be one run given several times."
    if all(measure["near_chance"] for measure in table["measures"]):
        return "Next: a model that learns the task, with more epochs or weights; all scores are near chance."
    rows = [row for several in own.values() for row in several]
    if not any(row["finding"] in ("better", "worse") for row in rows):
        strict = table["level"] / max(1, table["tests"])
        wanted = [
            pairs_needed(row["spread"], abs(row["mean"]), alpha=strict, largest=MOST_SEEDS)
            for row in rows
            if row["finding"] == "not shown" and abs(row["mean"]) >= 2 * results["settings"]["point"]
        ]
        known = [count for count in wanted if count is not None]
        if known:
            count = max(seeds + 1, min(known))
            return f"Next: more seeds; {count} would find the largest of these differences. Plan them in a new folder."
    if record is not None:
        recipe, data = record["recipe"], record["data"]
        reduced = (data.get("original_size") or 0) >= LARGE * recipe["image_size"]
        if reduced or (data.get("weights") or 0) < SMALL * 1e6:
            larger = min(224, data.get("original_size") or 224)
            again = (
                f"--set model=resnet18 image_size={larger} load_size={larger}" if reduced else "--set model=resnet18"
            )
            return f"Next: the same with {'larger images and ' * reduced}the model that you will use, such as {again}."
        if not data.get("sites"):
            return "Next: another scanner or hospital, as --site NAME=SOURCE."
    every = [row for each in results["tables"].values() for row in each["differences"]]
    harmed = {row["method"] for row in every if row["finding"] == "worse" and row["method"] in own}
    best = [name for name, mine in own.items() if name not in harmed and _is_better(mine)]
    if best:
        gain = {name: sum(row["mean"] for row in own[name]) * (1 if table["higher"] else -1) for name in best}
        chosen = max(best, key=gain.__getitem__)
        # Where a part of it, or its control, does as much, that will do.
        while simpler := [other for other in best if (both := _rows(table, chosen, other)) and not _is_better(both)]:
            chosen = simpler[0]
        return f"Next: stop here, and use {chosen}."
    return f"Next: stop here, and keep {results['settings']['reference']}."


def _is_better(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a method is better than another one on any test set."""
    return any(row["finding"] == "better" for row in rows)


def _list(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    return _join([f"{names[row['measure']]} ({signed(row)})" for row in rows])


def _join(texts: Sequence[str]) -> str:
    return "".join(texts) if len(texts) < 2 else f"{', '.join(texts[:-1])} and {texts[-1]}"
