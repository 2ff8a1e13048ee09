"""The declared conditions of the study: what happens to the training images, and the policy's reward."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

LEARNING_RATE = 2e-3
"""Peak learning rate of the classifier's AdamW, for every condition."""


@dataclass(frozen=True)
class Condition:
    """One training method.

    Args:
        name: Its name in tables.
        family: ``"plain"``, ``"frozen"`` (random masks; learned masks must beat their Pareto front), ``"learned"`` or
            ``"augmentation"`` (other augmentations).
        preset: ``"paper"``, or ``"default"`` for the constructors' own settings; None for no mask.
        mask: Overrides for the mask. Here ``sigma`` is a share of the image's side, not pixels.
        policy: Settings of the policy: ``kind`` (``"spatial"``, ``"static"`` or ``"class"``),
            ``init_log_concentration``, and for a static one ``concentration`` or ``concentration1`` and
            ``concentration0``.
        hook: Overrides for :class:`policy_noise.ReinforceHook`.
        signal: The per-image signal that the reward is made of, see ``benchmarks.study.signals.Signals``.
        shuffled: Apply each mask to another image of the batch and reward it with that image's loss.
        curriculum: The strength grows from 0 to its value over the first half of the masked epochs.
        augment: Name of another augmentation.
        schedule: Which epochs are clean: ``"heated"``: the last quarter; ``"long"``: the last half; ``"throughout"``:
            none; ``"recalibrated"``: none, and BatchNorm's averages are computed again from unmasked images.
    """

    name: str
    family: str
    preset: str | None = None
    mask: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    hook: Mapping[str, Any] = field(default_factory=dict)
    signal: str = "loss"
    shuffled: bool = False
    curriculum: bool = False
    augment: str | None = None
    schedule: str = "heated"


SMOOTH = {"grid_size": 4, "sigma": 1 / 12}
"""A few broad cells with a wide blur, similar to the shading of scanners."""
BROAD = {"2x2": {"grid_size": 2, "sigma": 1 / 6}, "3x3": {"grid_size": 3, "sigma": 1 / 9}}
"""Broader cells, with the same ratio of blur to cell."""
ONE_CELL = {"grid_size": 1, "sigma": 1 / 6, "pattern_std": None, "brightness_std": 0.2}
"""No pattern: the image brightens or darkens as a whole."""
PAPER_MASK = {"grid_size": 8, "kernel_size": None, "sigma": None}
"""64 cells at 224 px correspond to 8 cells at 28 to 32 px."""
DOSES = (0.1, 0.2, 0.3, 0.45)
"""Fixed standard deviations of the pattern within an image (``dose`` in names)."""
LEVELS = DOSES[:3]
"""Standard deviations of the brightness between images (``level`` in names)."""
ENTROPIES = (0.0, -0.075, -0.25)
"""Targets of a policy's mean entropy, in nats per cell."""
ADVERSARIAL = {"reward": "adversarial"}
BOUNDED = {"max_log_concentration": math.log(2)}
"""Bounds that keep the noise on: concentrations in 1/2 to 2 keep at least three quarters of the uniform's spread."""
PATHWISE = {"baseline": "none", "normalize_advantage": False}
"""The signal's own gradient is used as it is, without a baseline or normalization."""
WIDE = {"init_log_concentration": -1.0}
"""Start at Beta(.37, .37), whose mass lies at 0 and 1: the strongest noise at a given strength."""


def _frozen(name: str, mask: Mapping[str, Any], **rest: Any) -> Condition:
    policy = rest.pop("policy", {"kind": "static"})
    return Condition(f"frozen-{name}", "frozen", "default", mask, policy, {"frozen": True}, **rest)


def _learned(name: str, mask: Mapping[str, Any] | None = None, hook: Mapping[str, Any] | None = None, **rest: Any):
    return Condition(name, "learned", "default", mask or {}, hook=hook or {}, **rest)


def _dosed(name: str, std: float, twin: str = "", shape: Mapping[str, Any] = SMOOTH, **rest: Any) -> Condition:
    return _learned(f"{name}-dose{int(100 * std)}{twin}", {**shape, "pattern_std": std}, **rest)


def _level(std: float, level: float) -> dict[str, Any]:
    return {**BROAD["2x2"], "pattern_std": std, "brightness_std": level}


def _first_round() -> list[Condition]:
    p1 = {"p": 1.0}
    conditions = [
        Condition("plain", "plain"),
        *(
            _frozen(f"s{int(100 * strength)}-p{int(100 * p)}", {"strength": strength, "p": p})
            for strength in (1.0, 0.75, 0.5, 0.25)
            for p in (0.5, 1.0)
        ),
        *(
            _frozen(f"smooth-s{int(100 * strength)}-p{int(100 * p)}", {**SMOOTH, "strength": strength, "p": p})
            for strength in (1.0, 0.5)
            for p in (0.5, 1.0)
        ),
        _frozen("wide-p50", {}, policy={"kind": "static", "concentration": 0.37}),
        _frozen("wide-p100", p1, policy={"kind": "static", "concentration": 0.37}),
        _frozen("normalized", {"scale_about": "zero"}),
        _frozen("curriculum", {}, curriculum=True),
        # The paper's reward.
        _learned("coop"),
        _learned("coop-p100", p1),
        _learned("coop-shuffled", shuffled=True),
        _learned("coop-static", policy={"kind": "static"}),
        _learned("coop-entropy02", hook={"entropy_coef": 0.02}),
        _learned("coop-normalized", {"scale_about": "zero"}),
        _learned("coop-smooth", SMOOTH),
        _learned("coop-wide", policy=WIDE),
        # The policy's SGD peaks at the paper's 0.01.
        Condition("paper", "learned", "paper", PAPER_MASK, hook={"policy_lr_ratio": 0.01 / LEARNING_RATE}),
        # The opposite.
        _learned("adv", hook=ADVERSARIAL),
        _learned("adv-p100", p1, ADVERSARIAL),
        _learned("adv-s50", {"strength": 0.5}, ADVERSARIAL),
        _learned("adv-s50-p100", {"strength": 0.5, "p": 1.0}, ADVERSARIAL),
        _learned("adv-shuffled", hook=ADVERSARIAL, shuffled=True),
        _learned("adv-static", hook=ADVERSARIAL, policy={"kind": "static"}),
        _learned("adv-moving", hook={**ADVERSARIAL, "baseline": "moving_average"}),
        _learned("adv-entropy02", hook={**ADVERSARIAL, "entropy_coef": 0.02}),
        _learned("adv-entropy10", hook={**ADVERSARIAL, "entropy_coef": 0.1}),
        _learned("adv-lr001", hook={**ADVERSARIAL, "policy_lr": 1e-3}),
        _learned("adv-lr030", hook={**ADVERSARIAL, "policy_lr": 3e-2}),
        _learned("adv-normalized", {"scale_about": "zero"}, ADVERSARIAL),
        _learned("adv-smooth", SMOOTH, ADVERSARIAL),
        _learned("adv-smooth-p100", {**SMOOTH, "p": 1.0}, ADVERSARIAL),
        _learned("adv-smooth-shuffled", SMOOTH, ADVERSARIAL, shuffled=True),
        _learned("adv-curriculum", hook=ADVERSARIAL, curriculum=True),
        # Neither: masks that are hard, but whose training generalises.
        _learned("teacher", signal="teacher"),
        _learned("teacher-p100", p1, signal="teacher"),
        _learned("teacher-shuffled", signal="teacher", shuffled=True),
        _learned("teacher-smooth", SMOOTH, signal="teacher"),
        _learned("teacher-entropy02", hook={"entropy_coef": 0.02}, signal="teacher"),
        _learned("band", signal="band"),
        _learned("band-smooth", SMOOTH, signal="band"),
        _learned("relative-adv", hook=ADVERSARIAL, signal="relative"),
        _learned("relative-coop", signal="relative"),
        _learned("align", signal="align"),
        _learned("align-smooth", SMOOTH, signal="align"),
        # Other augmentations. The bias field is also one of the test's shifts.
        Condition("bias-field", "augmentation", augment="bias_field"),
        Condition("gaussian-noise", "augmentation", augment="gaussian_noise"),
        Condition("random-erasing", "augmentation", augment="random_erasing"),
        Condition("mixup", "augmentation", augment="mixup"),
        Condition("randaugment", "augmentation", augment="randaugment"),
    ]
    by_name = {condition.name: condition for condition in conditions}
    to_the_end = (
        "frozen-s100-p50",
        "frozen-s50-p50",
        "frozen-smooth-s100-p50",
        "coop",
        "adv",
        "adv-smooth",
        "teacher",
        "bias-field",
        "gaussian-noise",
        "random-erasing",
        "mixup",
        "randaugment",
    )
    return conditions + [
        replace(by_name[name], name=f"{name}-throughout", schedule="throughout") for name in to_the_end
    ]


def _second_round() -> list[Condition]:
    return [
        Condition("frozen-paper", "frozen", "paper", PAPER_MASK, {"kind": "static"}, {"frozen": True}),
        # The same pattern strength for every mask, learned or not.
        *(_frozen(f"dose{int(100 * std)}", {**SMOOTH, "pattern_std": std}) for std in DOSES),
        # What coop-dose20-shuffled had learned, the median of 24 runs: a few bright cells among dark ones.
        _frozen(
            "dose20-sparse",
            {**SMOOTH, "pattern_std": 0.2},
            policy={"kind": "static", "concentration1": 0.44, "concentration0": 3.04},
        ),
        *(_dosed("coop", std) for std in DOSES),
        *(_dosed("coop", std, "-shuffled", shuffled=True) for std in DOSES),
        *(_dosed("coop", std, "-static", policy={"kind": "static"}) for std in DOSES),
        *(_dosed("adv", std, hook=ADVERSARIAL) for std in DOSES),
        *(_dosed("align", std, signal="align") for std in DOSES),
        *(_dosed("teacher", std, signal="teacher") for std in DOSES),
    ]


def _third_round() -> list[Condition]:
    return [
        # Fewer and broader cells, for which the policy's gradient has more signal.
        *(
            _frozen(f"{name}-dose{int(100 * std)}", {**shape, "pattern_std": std})
            for name, shape in BROAD.items()
            for std in DOSES
        ),
        *(_dosed(f"coop-{name}", std, shape=shape) for name, shape in BROAD.items() for std in DOSES),
        *(
            _dosed(f"coop-{name}", std, "-shuffled", shape, shuffled=True)
            for name, shape in BROAD.items()
            for std in DOSES
        ),
        *(_dosed(f"adv-{name}", std, shape=shape, hook=ADVERSARIAL) for name, shape in BROAD.items() for std in DOSES),
        # One distribution per class is learned from all images of the class.
        *(_dosed("coop", std, "-class", policy={"kind": "class"}) for std in DOSES),
        *(_dosed("adv", std, "-class", hook=ADVERSARIAL, policy={"kind": "class"}) for std in DOSES),
        # The effect of a step on the masked image on the loss of another batch.
        *(_dosed("virtual", std, signal="virtual") for std in DOSES),
        *(_dosed("robust", std, signal="robust") for std in DOSES),
        *(
            _dosed("robust-2x2", std, twin, BROAD["2x2"], signal="robust", shuffled=bool(twin))
            for twin in ("", "-shuffled")
            for std in DOSES
        ),
        # Schedules: when masking stops.
        *(_dosed("coop", 0.2, f"-{schedule}", schedule=schedule) for schedule in ("long", "recalibrated")),
        *(
            _frozen(f"dose20-{schedule}", {**SMOOTH, "pattern_std": 0.2}, schedule=schedule)
            for schedule in ("long", "recalibrated")
        ),
        # Broad cells that also darken the image: each mask keeps its own mean, about a half.
        _frozen("2x2-dark", {**BROAD["2x2"], "mean_preserving": False, "pattern_std": None}),
    ]


def _later() -> list[Condition]:
    return [
        # Broad cells of fixed strength whose mean varies about 1. The last is about as strong as the bias field.
        *(_frozen(f"2x2-dose{int(100 * std)}-level", _level(std, std)) for std in LEVELS),
        *(_learned(f"coop-2x2-dose{int(100 * std)}-level", _level(std, std)) for std in LEVELS[:2]),
        # What coop-2x2-dose10-level may have learned: a weaker pattern, or less variation of the brightness.
        _frozen("2x2-dose5-level", _level(0.05, 0.05)),
        _frozen("2x2-dose10-half-level", _level(0.1, 0.05)),
        _learned("coop-2x2-dose10-level-shuffled", _level(0.1, 0.1), shuffled=True),
        # The learned counterpart of preset="random", and the same strengths on the cells of the default at that time.
        *(
            _learned(f"coop-2x2-dose10-level20{twin}", _level(0.1, 0.2), shuffled=bool(twin))
            for twin in ("", "-shuffled")
        ),
        _learned("coop-dose10-level20", {**SMOOTH, "pattern_std": 0.1, "brightness_std": 0.2}),
        # Brightness alone, and with the weakest pattern. At 0.1 the latter is frozen-2x2-dose10-level.
        *(_frozen(f"1x1-dose{int(100 * level)}-level", {**ONE_CELL, "brightness_std": level}) for level in LEVELS),
        *(_frozen(f"2x2-dose10-level{int(100 * level)}", _level(0.1, level)) for level in LEVELS[1:]),
        *(
            _learned(f"{name}-1x1-dose20-level{twin}", ONE_CELL, hook, policy=BOUNDED, shuffled=bool(twin))
            for name, hook, twin in (("coop", {}, ""), ("coop", {}, "-shuffled"), ("adv", ADVERSARIAL, ""))
        ),
        # What timm's training transforms do anyway, and masks after it, unlearned and learned.
        Condition("color-jitter", "augmentation", augment="color_jitter"),
        *(
            replace(_frozen(name, mask, augment="color_jitter"), name=f"color-jitter-{name}", family="augmentation")
            for name, mask in (
                ("2x2-dose10", {**BROAD["2x2"], "pattern_std": 0.1}),
                ("2x2-dose10-level20", _level(0.1, 0.2)),
            )
        ),
        *(
            _learned(
                f"color-jitter-coop-2x2-dose10-level20{twin}",
                _level(0.1, 0.2),
                augment="color_jitter",
                shuffled=bool(twin),
            )
            for twin in ("", "-shuffled")
        ),
        # The signal's own gradient instead of REINFORCE, on the mask of preset="random".
        *(
            _learned(
                f"pathwise-{name}-2x2-dose10-level20{bounded}{twin}",
                _level(0.1, 0.2),
                {**PATHWISE, **hook},
                signal=f"pathwise-{signal}",
                policy=BOUNDED if bounded else {},
                shuffled=bool(twin),
            )
            for name, signal, hook, bounded in (
                ("coop", "loss", {}, ""),
                ("adv", "loss", ADVERSARIAL, "-bounded"),
                ("robust", "robust", {}, "-bounded"),
            )
            for twin in ("", "-shuffled")
        ),
    ]


def _held() -> list[Condition]:
    """The mask of preset="learned" with constant total noise: the policy's mean entropy is kept at a target.

    The policy can move noise between cells and images, but can neither remove it nor collapse. 0 nats per cell is the
    uniform distribution, that of unlearned masks; Beta(1.6, 1.6) has -0.06 and Beta(2.8, 2.8) has -0.24. ``-centred``:
    brightness is measured from the policy's own expectation, so no policy can brighten or darken images on average.
    """
    return [
        _learned(
            f"{name}-2x2-dose10-level20-entropy{int(-1000 * target):03d}{centred}{twin}",
            {**_level(0.1, 0.2), **({"center_brightness": True} if centred else {})},
            {**hook, "entropy_target": target},
            shuffled=bool(twin),
        )
        for name, hook in (("coop", {}), ("adv", ADVERSARIAL))
        for target in ENTROPIES
        for centred in ("", "-centred")
        for twin in ("", "-shuffled")
    ]


ROUNDS = (_first_round(), _second_round(), _third_round(), _later(), _held())
FIRST, SECOND, THIRD, _, HELD = (tuple(condition.name for condition in conditions) for conditions in ROUNDS)
CONDITIONS = {condition.name: condition for conditions in ROUNDS for condition in conditions}
