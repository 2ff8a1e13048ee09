"""Suites of the study, each named by its question.

Suites that end in ``-screen`` score validation data alone and choose; the others look at test with the conditions that
were chosen, or that nothing had to choose.
"""

from dataclasses import dataclass

from benchmarks.study.conditions import CONDITIONS, FIRST, HELD, LEVELS, SECOND, THIRD


@dataclass(frozen=True)
class Suite:
    """A declared list of runs.

    Args:
        tasks: Names.
        conditions: Names.
        seeds: How many.
        splits: What is evaluated.
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
    # Declared after test was looked at: is it a matter of the mask's shape?
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
    # Chosen on broad-cells-screen: of the learned conditions whose clean score is at most 0.01 below plain the one
    # farthest above the frozen front under bias fields, with its twins, and the frozen one for which the same
    # holds. Broad cells and the bias field are there in any case, and what suite fixed-std has is read from there.
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
    # Declared after test was looked at: what does the default's reward learn on broad cells?
    "broad-cells-coop": Suite(HALF_TASKS, ("coop-2x2-dose20",), 8, ("val", "test")),
    # How broad the default's cells are, and its dose. Validation alone, seeds that no other suite has. Of the three
    # learned conditions the one with the best mean of its differences from plain, clean, shifted and under bias fields;
    # another than coop-dose20, today's default, only if the 95 % interval of its advantage in that mean excludes 0.
    "default-cells-screen": Suite(
        HALF_TASKS, ("plain", "coop-dose20", "coop-2x2-dose10", "coop-2x2-dose20"), 5, ("val",)
    ),
    # Declared with it, whatever it chooses: the learned twin of what the third round recommends.
    "default-cells": Suite(HALF_TASKS, ("coop-2x2-dose10",), 8, ("val", "test")),
    # Is it the dose, or the brightness, that the hand-set bias field is ahead by? Unlearned, so nothing is chosen.
    "bias-field-gap": Suite(HALF_TASKS, ("frozen-2x2-dose45", "frozen-2x2-dark"), 8, ("val", "test")),
    # Declared after test was looked at for other conditions: is a mask that brightens as often as it darkens worth more
    # than one of mean 1, does learning it help, and is anything left to the hand-set bias field at its own dose? The
    # comparisons: each frozen one with frozen-2x2 of the same dose, the learned one with its frozen twin, the strongest
    # with the bias field. Nothing is chosen.
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
    # Declared after test was looked at: does what the third round recommends cost anything on the full set?
    "large-broad-cells": Suite(("joined-full-half",), ("frozen-2x2-dose10",), 8, ("val", "test")),
    # Declared after suite varying-brightness was looked at: what do masks whose mean varies cost on the full set?
    "large-brightness": Suite(
        ("joined-full-half",), ("frozen-2x2-dose10-level", "frozen-2x2-dose20-level"), 8, ("val", "test")
    ),
    # The default once more, now that masks can have a level, and with the full set, where today's cost the most.
    # Validation alone, seeds that no other suite has. Out are learned conditions that lose more than 0.01 clean in the
    # mean over the four tasks, as long as one is left; of the rest the one with the best mean of its differences from
    # plain, clean, shifted and under bias fields; another than coop-dose20, today's default, only if the 95 % interval
    # of its advantage in that mean excludes 0.
    "default-brightness-screen": Suite(
        (*HALF_TASKS, "joined-full-half"),
        ("plain", "coop-dose20", "coop-2x2-dose10", "coop-2x2-dose10-level", "coop-2x2-dose20-level"),
        5,
        ("val",),
    ),
    # Declared with it, whatever it chooses: the learned twin of what the package recommends.
    "learned-brightness": Suite(HALF_TASKS, ("coop-2x2-dose10-level",), 8, ("val", "test")),
    "large-learned-brightness": Suite(("joined-full-half",), ("coop-2x2-dose10-level",), 8, ("val", "test")),
    # Declared after suite learned-brightness was looked at, where coop-2x2-dose10-level lay above the frozen front over
    # the shifts, the first learned condition that did: does unlearned noise of half the dose or half the level do
    # the same, and does the mask of another image?
    "milder-noise": Suite(
        HALF_TASKS,
        ("frozen-2x2-dose5-level", "frozen-2x2-dose10-half-level", "coop-2x2-dose10-level-shuffled"),
        8,
        ("val", "test"),
    ),
    # The level and the pattern apart: what the level does alone, and whether one number an image can be learned. The
    # comparisons: the frozen one with frozen-2x2-dose20-level, the learned ones with it, the cooperative one with its
    # shuffled twin too. Nothing is chosen.
    "brightness-alone": Suite(
        HALF_TASKS, tuple(name for name in CONDITIONS if "1x1-dose20" in name), 8, ("val", "test")
    ),
    # preset="augment" anew, now that the level alone is known: levels with a pattern and without. Validation alone,
    # seeds that no other suite has. Out are those that lose more than 0.01 clean in the mean over the four tasks, as
    # long as one is left; of the rest the one with the best mean of its differences from plain, clean, shifted and
    # under bias fields; another than frozen-2x2-dose10-level, today's, only if the 95 % interval of its advantage in
    # that mean excludes 0.
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
    # Declared after augment-screen, whose rule left but a mask that is weaker than today's, so that today's stayed:
    # there a level of 0.2 beside the same pattern gained more at no clean loss against it that was resolved. It becomes
    # preset="augment" if the same holds on validation here, for seeds on which it has not been run: the 95 % intervals
    # of its differences from frozen-2x2-dose10-level over the four tasks lie above 0 for the shifts and for bias
    # fields, and not below 0 on clean images. Test decides nothing.
    "augment": Suite(HALF_TASKS, ("frozen-2x2-dose10-level20",), 8, ("val", "test")),
    "large-augment": Suite(("joined-full-half",), ("frozen-2x2-dose10-level20",), 8, ("val", "test")),
    # Declared after test was looked at for other conditions: the rival that is on by default in timm's transforms, and
    # whether a mask is worth anything after it, with a level and without. Nothing is chosen.
    "jitter": Suite(
        HALF_TASKS, ("color-jitter", "color-jitter-2x2-dose10", "color-jitter-2x2-dose10-level20"), 8, ("val", "test")
    ),
    # Declared after suite jitter was looked at: does learning add to what the unlearned mask adds after ColorJitter?
    # The comparisons: the learned one with the unlearned, and with its shuffled twin. Nothing is chosen.
    "jitter-learned": Suite(
        HALF_TASKS,
        ("color-jitter-coop-2x2-dose10-level20", "color-jitter-coop-2x2-dose10-level20-shuffled"),
        8,
        ("val", "test"),
    ),
    # The default by a rule that one task's clean score cannot decide. Validation alone, seeds that no other suite has.
    # A condition becomes the default if, against coop-dose20, that then, and over the four tasks, the 95 % intervals
    # lie above 0 for the shifts and not below 0 on clean images and under bias fields, and its clean mean is no more
    # than 0.005 below; of several the one with the best sum of clean and shifted. (In default-brightness-screen, for
    # other seeds, coop-2x2-dose10-level would have been taken by it, so that this is an older lead put to the test.)
    "default-rule-screen": Suite(
        (*HALF_TASKS, "joined-full-half"),
        ("plain", "coop-dose20", "coop-dose10-level20", "coop-2x2-dose10-level", "coop-2x2-dose10-level20"),
        5,
        ("val",),
    ),
    # Declared with it, whatever it chooses: the learned twin of preset="augment". Test decides nothing.
    "learned-augment": Suite(HALF_TASKS, ("coop-2x2-dose10-level20",), 8, ("val", "test")),
    "large-learned-augment": Suite(("joined-full-half",), ("coop-2x2-dose10-level20",), 8, ("val", "test")),
    # Declared after suite learned-augment was looked at: do the default's masks do the same for other images?
    "learned-augment-shuffled": Suite(HALF_TASKS, ("coop-2x2-dose10-level20-shuffled",), 8, ("val", "test")),
    # Was it REINFORCE's noise? The signal's own gradient in the mask, whose signal-to-noise ratio is about a hundred
    # times that of the score function: for the paper's reward, and, with a bound that keeps most of the noise's spread,
    # for its opposite and for what a step on the masked image does to another batch under strong masks. Validation
    # alone, seeds that no other suite has. A condition goes to test, with its shuffled twin, if against
    # frozen-2x2-dose10-level20, the same mask unlearned, and over the three tasks, its 95 % intervals are not below 0
    # on clean images, over the shifts and under bias fields, and one of the last two is above 0 after Holm's correction
    # over both and the three conditions; of several the one with the best sum of the three.
    "pathwise-screen": Suite(
        HALF_TASKS,
        (
            *("plain", "frozen-2x2-dose10-level20", "coop-2x2-dose10-level20"),
            *(name for name in CONDITIONS if name.startswith("pathwise-") and not name.endswith("-shuffled")),
        ),
        5,
        ("val",),
    ),
    # Five times the epochs, with positive controls: in the short trainings every augmentation costs clean score, MixUp
    # and RandAugment too. The question: does noise, learned or not, raise the *clean* score where MixUp or RandAugment
    # does? Nothing is chosen. A method raises it where the 95 % interval of its difference from plain lies above 0.
    # Joined first, then pneumonia; how many of the 8 seeds are run is what the time allows, and no score decides it.
    "long": Suite(
        ("joined-half-long", "pneumonia-half-long"),
        (
            *("plain", "mixup", "randaugment", "color-jitter", "frozen-2x2-dose10-level20", "coop-2x2-dose10-level20"),
            *("color-jitter-2x2-dose10-level20", "color-jitter-coop-2x2-dose10-level20"),
        ),
        8,
        ("val", "test"),
    ),
    # Is there a learned default that is never worse than its unlearned twin? Validation alone, seeds that no other
    # suite has; 2 of the 3 are what the time is planned for. The control is frozen-2x2-dose10-level20. Out is a
    # candidate that is significantly below it in clean, shifted or bias-field score: the 95 % t-interval over the pairs
    # of a task and a seed lies below 0. Of the rest the one with the best mean of the three goes to test, whatever that
    # mean is. Today's learned default is there for comparison and no candidate. `python -m benchmarks.study choose`
    # applies the rule.
    "entropy-screen": Suite(
        ("joined-half", "organs-half"),
        (
            *("plain", "frozen-2x2-dose10-level20", "coop-2x2-dose10-level20"),
            *(name for name in HELD if not name.endswith("-shuffled")),
        ),
        3,
        ("val",),
    ),
    # The condition that entropy-screen's rule took, with 3 seeds. At constant total noise, does the image's own
    # distribution help? The comparisons: the winner with frozen-2x2-dose10-level20, its unlearned twin, and with its
    # own masks on other images. It becomes preset="learned" if none of clean, shifted and bias field is resolved below
    # the twin in the mean over the two tasks, by the 95 % interval. Runs of plain and of the twin for these seeds are
    # there in suites fixed-std and augment under the same keys; what time leaves of them is run once more, for what
    # their masks say about the class.
    "entropy": Suite(
        ("joined-half", "organs-half"),
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
