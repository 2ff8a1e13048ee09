"""Readable names of conditions, tasks and measures for figures. Recorded runs have shorter names."""

import re

WHOLE = {
    "plain": "plain",
    "paper": "paper's preset",
    "frozen-paper": "paper's preset, unlearned",
    "bias-field": "random bias field",
    "gaussian-noise": "Gaussian noise",
    "random-erasing": "RandomErasing",
    "mixup": "MixUp",
    "randaugment": "RandAugment",
    "color-jitter": "ColorJitter",
}
WHO = {"frozen": "random", "coop": "learned, low loss", "adv": "learned, high loss"}
"""The first part of a name. Other first parts name a reward."""
PARTS = {
    "shuffled": "masks swapped",
    "static": "one for all",
    "class": "one per class",
    "throughout": "to the end",
    "long": "half the epochs clean",
    "moving": "moving baseline",
    "p50": "",
    "p100": "on all images",
}
MEASURES = {
    "shifted": "mean of shifts",
    "bias_field": "bias fields",
    "noise": "Gaussian noise",
    "pixelate": "pixelation",
    "medmnist_c": "MedMNIST-C",
    "few_shot": "few-shot transfer",
    "ct2": "unseen CT patient",
    "mr": "MR patient",
}


def condition_in_words(name: str) -> str:
    """A condition as a reader would call it.

    Example:
        >>> condition_in_words("frozen-2x2-dose10-level20")
        'random, 2 x 2, pattern .10, brightness .20'
    """
    if name in WHOLE:
        return WHOLE[name]
    for whole in ("color-jitter", *WHOLE):
        rest = name.removeprefix(f"{whole}-")
        if rest != name:
            mask = rest if rest in PARTS or rest.startswith("coop-") else f"frozen-{rest}"
            return f"{WHOLE[whole]}, {PARTS.get(rest) or f'then {condition_in_words(mask)}'}"
    reward, *rest = re.sub(r"^(relative|pathwise)-", r"\1 ", name).split("-")
    kind, _, word = reward.rpartition(" ")
    who = WHO.get(word, f"learned, {word}")
    parts = [f"{who} ({kind})" if kind else who]
    pattern = 0
    cells = ""
    for part in rest:
        number = int(re.sub(r"\D", "", part) or 0)
        if part.startswith("dose"):
            pattern = number
            parts += [f"pattern .{number:02d}"] if cells != "1x1" else []
        elif part.startswith("level"):
            parts.append(f"brightness .{(number or pattern) // (2 if 'half' in rest else 1):02d}")
        elif re.fullmatch(r"\dx\d", part):
            cells = part
            parts += [part.replace("x", " x ")] if cells != "1x1" else []
        elif part.startswith("entropy"):
            parts.append(f"entropy -.{number:03d}" if number else "entropy 0")
        elif re.fullmatch(r"s\d+", part):
            parts.append(f"strength {number} %")
        elif part != "half":
            parts.append(PARTS.get(part, part))
    return ", ".join(part for part in parts if part)


def task_in_words(name: str) -> str:
    """A task's name without the parts that all tasks of a page share."""
    return name.replace("-half", "").replace("-", " ")


def measure_in_words(name: str) -> str:
    """A measure as a reader would call it."""
    return MEASURES.get(name, name)
