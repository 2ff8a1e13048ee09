"""The study's names in words."""

import pytest

from benchmarks.study.conditions import CONDITIONS
from benchmarks.study.names import condition_in_words, measure_in_words, task_in_words
from benchmarks.study.results import MEASURES
from benchmarks.study.tasks import TASKS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("frozen-2x2-dose10-level20", "random, 2 x 2, pattern .10, brightness .20"),
        ("frozen-2x2-dose10-half-level", "random, 2 x 2, pattern .10, brightness .05"),
        ("frozen-1x1-dose20-level", "random, brightness .20"),
        ("frozen-smooth-s50-p100", "random, smooth, strength 50 %, on all images"),
        ("coop-dose20-shuffled", "learned, low loss, pattern .20, masks swapped"),
        ("adv-2x2-dose10-entropy075-centred", "learned, high loss, 2 x 2, pattern .10, entropy -.075, centred"),
        ("relative-adv", "learned, high loss (relative)"),
        ("bias-field-throughout", "random bias field, to the end"),
        ("color-jitter-2x2-dose10", "ColorJitter, then random, 2 x 2, pattern .10"),
    ],
)
def test_conditions_in_words(name, words):
    assert condition_in_words(name) == words


@pytest.mark.parametrize(("names", "in_words"), [(CONDITIONS, condition_in_words), (MEASURES, measure_in_words)])
def test_no_two_share_their_words(names, in_words):
    assert len({in_words(name) for name in names}) == len(names)


def test_tasks_are_named_without_the_size_of_their_feature_maps():
    assert task_in_words("joined-full-half") == "joined full"
    assert all("half" not in task_in_words(name) for name in TASKS)
