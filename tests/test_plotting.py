"""Pictures of masks and of a policy's training."""

import math

import pytest
import torch

from policy_noise import PolicyNoiseMask, RandomShading, Sample, StochasticAugmentation
from policy_noise.plotting import plot_masks, plot_metrics

pytest.importorskip("matplotlib")

IMAGES = torch.rand(3, 1, 24, 24, generator=torch.Generator().manual_seed(0))


def rows(figure):
    """Row labels from top to bottom."""
    return [label for axes in figure.axes if (label := axes.get_ylabel()) and "factor" not in label]


def shown(figure, row, column=0):
    """The picture in a place."""
    return figure.axes[row * len(IMAGES) + column].get_images()[0].get_array()


def test_random_masks_are_shown_draw_by_draw():
    assert rows(plot_masks(RandomShading(), IMAGES)) == ["image", "mask", "masked", "mask", "masked"]
    assert rows(plot_masks(RandomShading(), IMAGES, draws=1)) == ["image", "mask", "masked"]


def test_learned_masks_have_their_mean_too():
    assert rows(plot_masks(PolicyNoiseMask(1), IMAGES, draws=1)) == ["image", "mean of 64 masks", "mask", "masked"]


def test_a_masked_image_is_the_image_times_the_mask():
    figure = plot_masks(RandomShading(p=0.0, mean=0.0, std=1.0), IMAGES, draws=1, mean=0.0, std=1.0)
    image, mask, masked = (torch.from_numpy(shown(figure, row).data) for row in range(3))
    assert not torch.allclose(mask, torch.ones_like(mask))  # masked although p is 0
    assert torch.allclose((image * mask).clamp(0, 1), masked, atol=1e-5)


def test_masks_of_a_seed_are_the_same_and_leave_the_generators_alone():
    before = torch.get_rng_state()
    first, second = (shown(plot_masks(RandomShading(), IMAGES, seed=3), 1) for _ in range(2))
    other = shown(plot_masks(RandomShading(), IMAGES, seed=4), 1)
    assert (first == second).all()
    assert not (first == other).all()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays_as_it_was(training):
    mask = PolicyNoiseMask(1).train(training)
    plot_masks(mask, IMAGES, draws=1)
    assert mask.training is training


def test_other_augmentations_show_the_transformed_images():
    class Invert(StochasticAugmentation):
        def sample(self, images, generator=None):
            return Sample(log_prob=None, applied=torch.zeros(len(images), dtype=torch.bool))

        def transform(self, images, sample):
            return 1 - images

    figure = plot_masks(Invert(), IMAGES, draws=1, mean=0.0, std=1.0)
    assert rows(figure) == ["image", "masked"]
    assert torch.allclose(torch.from_numpy(shown(figure, 1).data), 1 - IMAGES[0, 0])


def test_a_backbones_statistics_stay_as_they_were():
    mask = PolicyNoiseMask(in_chans=1, policy="test_resnet")
    before = {name: value.clone() for name, value in mask.state_dict().items()}
    plot_masks(mask, torch.randn(2, 1, 32, 32), draws=1)
    assert all(torch.equal(value, before[name]) for name, value in mask.state_dict().items())


def test_titles_may_hold_any_sign(tmp_path):
    plot_masks(RandomShading(), IMAGES, ["$a$b", "c$\udcff", "{d^"], draws=1).savefig(tmp_path / "titles.png")


def test_titles_stand_above_the_images():
    figure = plot_masks(RandomShading(), IMAGES, ["a", "b", "c"], draws=1)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": IMAGES[0]}, "images must have shape"),
        ({"titles": ["a"]}, "titles must be one per image, got 1 for 3"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"mean": 0.5}, "mean and std belong together"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_masks(RandomShading(), **{"images": IMAGES, **arguments})


def test_metrics_have_a_panel_each_and_gaps_where_there_is_no_number():
    history = [{"step": 10 * i, "reward": -1.0 / (i + 1), "baseline": math.nan, "mask_std": 0.1} for i in range(4)]
    del history[1]["mask_std"]
    figure = plot_metrics(history)
    assert [axes.get_title("left") for axes in figure.axes] == ["reward", "masks"]
    reward, masks = (axes.get_lines()[0] for axes in figure.axes)
    assert list(reward.get_xdata()) == [0, 10, 20, 30]
    assert math.isnan(masks.get_ydata()[1])


def test_a_baseline_that_equals_the_reward_does_not_hide_it():
    history = [{"reward": 1.0 / (i + 1), "baseline": 1.0 / (i + 1), "entropy": -0.1} for i in range(4)]
    reward, entropy = plot_metrics(history, entropy_target=-0.3).axes
    assert [line.get_label() for line in reward.get_lines()] == ["reward"]
    assert [line.get_label() for line in entropy.get_lines()] == ["entropy", "target"]
    history[3]["baseline"] = 0.9
    assert len(plot_metrics(history).axes[0].get_lines()) == 2


def test_a_history_without_metrics_is_refused():
    with pytest.raises(ValueError, match=r"history must hold some of hook\.metrics"):
        plot_metrics([{"loss": 1.0}])
