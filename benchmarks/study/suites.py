"""The suites of the study, each named by its question.

Suites that end in ``-screen`` select conditions on validation data alone. The others score the test data of selected
conditions, or of conditions that needed no selection. In comments, ``dose`` and ``level`` are the parts of condition
names for the strength of the pattern and of the brightness.
"""

from dataclasses import dataclass

from benchmarks.study.conditions import CONDITIONS, FIRST, HELD, LEVELS, SECOND, THIRD


@dataclass(frozen=True)
class Suite:
    """A declared list of runs.

    Args:
        tasks: Names of the tasks.
        conditions: Names of the conditions.
        seeds: Number of seeds.
        splits: Splits to score.
    """

    tasks: tuple[str, ...]
    conditions: tuple[str, ...]
    seeds: int
    splits: tuple[str, ...]


MAIN_TASKS = ("joined", "organs", "tumour", "pneumonia")
HALF_TASKS = ("joined-half", "organs-half", "pneumonia-half")
SUITES = {
    "smoke": Suite(
        ("organs",),
        (
            *("plain", "frozen-s100-p50", "frozen-curriculum", "coop-wide", "adv-smooth-shuffled", "teacher", "band"),
            *("relative-adv", "align", "paper", "bias-field", "random-erasing", "mixup", "randaugment"),
        ),
        1,
        ("val",),
    ),
    "free-strength-screen": Suite(MAIN_TASKS, FIRST, 3, ("val",)),
    "fixed-std-screen": Suite(
        HALF_TASKS,
        (
            "plain",
            "bias-field",
            *(name for name in SECOND if "-" not in name.partition("dose")[2]),
        ),
        2,
        ("val",),
    ),
    "fixed-std": Suite(
        HALF_TASKS,
        (
            *("plain", "frozen-dose10", "frozen-dose20", "frozen-dose30", "coop-dose20", "coop-dose20-shuffled"),
            *("coop", "adv-dose20", "bias-field"),
        ),
        8,
        ("val", "test"),
    ),
    # Declared after looking at test: does the shape of the mask matter?
    "fixed-std-shape": Suite(HALF_TASKS, ("frozen-dose20-sparse", "coop-dose20-static"), 8, ("val", "test")),
    "broad-cells-screen": Suite(
        HALF_TASKS,
        (
            *("plain", "frozen-dose10", "frozen-dose20", "coop-dose20", "bias-field"),
            *(name for name in THIRD if "dose20" in name and "-shuffled" not in name),
        ),
        1,
        ("val",),
    ),
    # Selected on broad-cells-screen: of the learned conditions whose clean score is at most 0.01 below plain, the one
    # farthest above the frozen front under bias fields, with its controls; and the frozen condition by the same rule.
    # Broad cells and the bias field are included in any case. Runs that suite fixed-std has are taken from there.
    "broad-cells": Suite(
        HALF_TASKS,
        (
            *("plain", "frozen-dose10", "frozen-dose20", "frozen-dose30", "bias-field"),
            *("frozen-2x2-dose10", "frozen-2x2-dose20", "robust-2x2-dose20", "robust-2x2-dose20-shuffled"),
            "frozen-dose20-long",
        ),
        8,
        ("val", "test"),
    ),
    # Declared after looking at test: what does the default's reward learn on broad cells?
    "broad-cells-coop": Suite(HALF_TASKS, ("coop-2x2-dose20",), 8, ("val", "test")),
    # Which cells and which strength for the default? Validation alone, with seeds that no other suite uses. Rule: the
    # learned condition, of three, with the best mean of its differences from plain (clean, shifted, bias fields). A
    # condition other than coop-dose20, the default at that time, is taken only if the 95 % interval of its advantage in
    # that mean excludes 0.
    "default-cells-screen": Suite(
        HALF_TASKS, ("plain", "coop-dose20", "coop-2x2-dose10", "coop-2x2-dose20"), 5, ("val",)
    ),
    # Declared with it, whatever it selects: the learned counterpart of what the third round recommends.
    "default-cells": Suite(HALF_TASKS, ("coop-2x2-dose10",), 8, ("val", "test")),
    # Is the random bias field ahead because of its strength or its brightness? Random masks only; nothing is selected.
    "bias-field-gap": Suite(HALF_TASKS, ("frozen-2x2-dose45", "frozen-2x2-dark"), 8, ("val", "test")),
    # Declared after looking at test for other conditions. Is a mask that brightens as often as it darkens better than
    # one of mean 1? Does learning it help? Is the random bias field still better at equal strength? Comparisons: each
    # frozen condition with frozen-2x2 of the same dose, the learned one with its frozen control, the strongest with the
    # bias field. Nothing is selected.
    "varying-brightness": Suite(
        HALF_TASKS,
        (*(f"frozen-2x2-dose{int(100 * std)}-level" for std in LEVELS), "coop-2x2-dose20-level"),
        8,
        ("val", "test"),
    ),
    "transfer": Suite(
        ("no-breastcancerus", "no-braintumormri", "no-mednist"),
        ("plain", "frozen-dose20", "coop-dose20"),
        8,
        ("val", "test"),
    ),
    "large": Suite(
        ("joined-full-half", "joined-vit-half"),
        ("plain", "frozen-dose20", "coop-dose20"),
        8,
        ("val", "test"),
    ),
    # Declared after looking at test: does the third round's recommendation cost clean score on the full data set?
    "large-broad-cells": Suite(("joined-full-half",), ("frozen-2x2-dose10",), 8, ("val", "test")),
    # Declared after looking at suite varying-brightness: what do masks of varying mean cost on the full data set?
    "large-brightness": Suite(
        ("joined-full-half",), ("frozen-2x2-dose10-level", "frozen-2x2-dose20-level"), 8, ("val", "test")
    ),
    # The default again, now that masks can vary in brightness, and with the full data set, where the default at that
    # time cost the most. Validation alone, with seeds that no other suite uses. Learned conditions that lose more than
    # 0.01 clean in the mean over the four tasks are excluded, as long as one is left. Of the rest, the one with the
    # best mean of its differences from plain (clean, shifted, bias fields) is taken. It replaces coop-dose20, the
    # default at that time, only if the 95 % interval of its advantage in that mean excludes 0.
    "default-brightness-screen": Suite(
        (*HALF_TASKS, "joined-full-half"),
        ("plain", "coop-dose20", "coop-2x2-dose10", "coop-2x2-dose10-level", "coop-2x2-dose20-level"),
        5,
        ("val",),
    ),
    # Declared with it, whatever it selects: the learned counterpart of what the package recommends.
    "learned-brightness": Suite(HALF_TASKS, ("coop-2x2-dose10-level",), 8, ("val", "test")),
    "large-learned-brightness": Suite(("joined-full-half",), ("coop-2x2-dose10-level",), 8, ("val", "test")),
    # Declared after looking at suite learned-brightness, where coop-2x2-dose10-level was the first learned condition
    # above the frozen front over the shifts. Do random masks of half the dose or half the level do the same? Do the
    # masks of other images?
    "milder-noise": Suite(
        HALF_TASKS,
        ("frozen-2x2-dose5-level", "frozen-2x2-dose10-half-level", "coop-2x2-dose10-level-shuffled"),
        8,
        ("val", "test"),
    ),
    # Brightness without a pattern: its effect alone, and whether one number per image can be learned. Comparisons: the
    # frozen condition with frozen-2x2-dose20-level, the learned ones with the frozen one, and the cooperative one also
    # with its shuffled control. Nothing is selected.
    "brightness-alone": Suite(
        HALF_TASKS, tuple(name for name in CONDITIONS if "1x1-dose20" in name), 8, ("val", "test")
    ),
    # preset="random" again, now that the effect of brightness alone is known: brightness with and without a pattern.
    # Validation alone, with seeds that no other suite uses. Conditions that lose more than 0.01 clean in the mean over
    # the four tasks are excluded, as long as one is left. Of the rest, the one with the best mean of its differences
    # from plain (clean, shifted, bias fields) is taken. It replaces frozen-2x2-dose10-level, the preset at that time,
    # only if the 95 % interval of its advantage in that mean excludes 0.
    "augment-screen": Suite(
        (*HALF_TASKS, "joined-full-half"),
        (
            *("plain", "frozen-2x2-dose10-level", "frozen-2x2-dose10-level20", "frozen-2x2-dose10-level30"),
            *("frozen-1x1-dose10-level", "frozen-1x1-dose20-level", "frozen-1x1-dose30-level"),
            "frozen-2x2-dose20-level",
        ),
        5,
        ("val",),
    ),
    # Declared after augment-screen, whose rule left only a mask weaker than the preset at that time, which therefore
    # stayed. There a level of 0.2 with the same pattern gained more, without a significant clean loss against it. It
    # becomes preset="random" if the same holds here on validation, with new seeds: over the four tasks, the 95 %
    # intervals of its differences from frozen-2x2-dose10-level lie above 0 for the shifts and for bias fields, and not
    # below 0 on clean images. Test decides nothing.
    "augment": Suite(HALF_TASKS, ("frozen-2x2-dose10-level20",), 8, ("val", "test")),
    "large-augment": Suite(("joined-full-half",), ("frozen-2x2-dose10-level20",), 8, ("val", "test")),
    # Declared after looking at test for other conditions: ColorJitter, which timm's transforms use by default, and
    # whether masks add anything after it, with and without varying brightness. Nothing is selected.
    "jitter": Suite(
        HALF_TASKS, ("color-jitter", "color-jitter-2x2-dose10", "color-jitter-2x2-dose10-level20"), 8, ("val", "test")
    ),
    # Declared after looking at suite jitter: does learning add to what random masks add after ColorJitter?
    # Comparisons: the learned condition with the random one, and with its shuffled control. Nothing is selected.
    "jitter-learned": Suite(
        HALF_TASKS,
        ("color-jitter-coop-2x2-dose10-level20", "color-jitter-coop-2x2-dose10-level20-shuffled"),
        8,
        ("val", "test"),
    ),
    # The default, by a rule that the clean score of one task cannot decide. Validation alone, with seeds that no other
    # suite uses. A condition replaces coop-dose20, the default at that time, if over the four tasks the 95 % intervals
    # of its differences lie above 0 for the shifts and not below 0 on clean images and under bias fields, and its clean
    # mean is at most 0.005 lower. Of several, the one with the best sum of clean and shifted is taken. (This rule would
    # have taken coop-2x2-dose10-level in default-brightness-screen, with other seeds. So this tests an earlier
    # observation.)
    "default-rule-screen": Suite(
        (*HALF_TASKS, "joined-full-half"),
        ("plain", "coop-dose20", "coop-dose10-level20", "coop-2x2-dose10-level", "coop-2x2-dose10-level20"),
        5,
        ("val",),
    ),
    # Declared with it, whatever it selects: the learned counterpart of preset="random". Test decides nothing.
    "learned-augment": Suite(HALF_TASKS, ("coop-2x2-dose10-level20",), 8, ("val", "test")),
    "large-learned-augment": Suite(("joined-full-half",), ("coop-2x2-dose10-level20",), 8, ("val", "test")),
    # Declared after looking at suite learned-augment: do the default's masks work as well on other images?
    "learned-augment-shuffled": Suite(HALF_TASKS, ("coop-2x2-dose10-level20-shuffled",), 8, ("val", "test")),
    # Is REINFORCE's noise the reason? The pathwise gradient has about 100 times its signal-to-noise ratio. It is used
    # for the paper's reward; and, with a bound that keeps most of the noise's spread, for the opposite reward and for
    # the effect of a step on the masked image on another batch under strong masks. Validation alone, with seeds that no
    # other suite uses. A condition goes to test, with its shuffled control, if over the three tasks its 95 % intervals
    # against frozen-2x2-dose10-level20, the same mask unlearned, are not below 0 on clean images, over the shifts and
    # under bias fields, and one of the last two is above 0 after Holm's correction over both and the three conditions.
    # Of several, the one with the best sum of the three is taken.
    "pathwise-screen": Suite(
        HALF_TASKS,
        (
            *("plain", "frozen-2x2-dose10-level20", "coop-2x2-dose10-level20"),
            *(name for name in CONDITIONS if name.startswith("pathwise-") and not name.endswith("-shuffled")),
        ),
        5,
        ("val",),
    ),
    # Five times the epochs, with positive controls. In the short trainings every augmentation costs clean score, even
    # MixUp and RandAugment. The question: do masks, learned or not, raise the *clean* score where MixUp or RandAugment
    # does? Nothing is selected. A method raises it if the 95 % interval of its difference from plain lies above 0.
    # Joined is run first, then pneumonia. Time, and no score, decides how many of the 8 seeds are run.
    "long": Suite(
        ("joined-half-long", "pneumonia-half-long"),
        (
            *("plain", "mixup", "randaugment", "color-jitter", "frozen-2x2-dose10-level20", "coop-2x2-dose10-level20"),
            *("color-jitter-2x2-dose10-level20", "color-jitter-coop-2x2-dose10-level20"),
        ),
        8,
        ("val", "test"),
    ),
    # Added when test scores of the others were known: the learned preset since then, see "entropy". Nothing is chosen.
    "long-learned": Suite(
        ("joined-half-long", "pneumonia-half-long"), ("adv-2x2-dose10-level20-entropy075-centred",), 8, ("val", "test")
    ),
    # CT, which pays most of the clean cost in short trainings. Added when test scores of the other tasks were known.
    # Time, and no score, decides how many of the 8 seeds are run. Nothing is chosen.
    "long-ct": Suite(
        ("organs-half-long",),
        (
            *("plain", "randaugment", "color-jitter", "frozen-2x2-dose10-level20"),
            "adv-2x2-dose10-level20-entropy075-centred",
        ),
        8,
        ("val", "test"),
    ),
    # Is there a learned default that is never worse than its unlearned control? Validation alone, with seeds that no
    # other suite uses; time is planned for 2 of the 3. The control is frozen-2x2-dose10-level20. A candidate is
    # excluded if it is significantly below it in clean, shifted or bias-field score: the 95 % t-interval over all pairs
    # of task and seed lies below 0. Of the rest, the one with the best mean of the three goes to test, whatever that
    # mean is. The learned default at that time is included for comparison and is not a candidate.
    # `python -m benchmarks.study choose` applies the rule.
    "entropy-screen": Suite(
        ("joined-half", "organs-half"),
        (
            *("plain", "frozen-2x2-dose10-level20", "coop-2x2-dose10-level20"),
            *(name for name in HELD if not name.endswith("-shuffled")),
        ),
        3,
        ("val",),
    ),
    # The condition that entropy-screen's rule took, with 3 seeds. At constant total noise, does a distribution for each
    # image help? Comparisons: the winner with frozen-2x2-dose10-level20, its unlearned control, and with its own masks
    # on other images. It becomes preset="learned" if none of clean, shifted and bias-field score is significantly below
    # the control in the mean over the two tasks, by the 95 % interval. Runs of plain and of the control for these seeds
    # are in suites fixed-std and augment under the same keys. As far as time allows they are repeated, to measure what
    # their masks tell about the class.
    "entropy": Suite(
        ("joined-half", "organs-half"),
        (
            *("plain", "frozen-2x2-dose10-level20", "adv-2x2-dose10-level20-entropy075-centred"),
            "adv-2x2-dose10-level20-entropy075-centred-shuffled",
        ),
        8,
        ("val", "test"),
    ),
    # The third task, added when test scores of the two were known. It decides nothing.
    "entropy-pneumonia": Suite(
        ("pneumonia-half",),
        (
            *("plain", "frozen-2x2-dose10-level20", "adv-2x2-dose10-level20-entropy075-centred"),
            "adv-2x2-dose10-level20-entropy075-centred-shuffled",
        ),
        8,
        ("val", "test"),
    ),
    "paper-unlearned": Suite(("organs-half", "pneumonia-half"), ("plain", "paper", "frozen-paper"), 8, ("val", "test")),
    "free-strength": Suite(
        MAIN_TASKS,
        (
            "plain",
            *(name for name in CONDITIONS if name.startswith("frozen-s") and not name.endswith("-throughout")),
            "frozen-normalized",
            *("coop", "coop-shuffled", "coop-static", "adv", "adv-shuffled", "adv-static"),
            *("coop-normalized", "coop-smooth", "relative-coop", "paper"),
            *("bias-field", "gaussian-noise", "random-erasing", "mixup", "randaugment"),
        ),
        8,
        ("val", "test"),
    ),
}
