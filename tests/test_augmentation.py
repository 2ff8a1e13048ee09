"""A user's own augmentation: the hook gives it the same guarantees as the mask."""

import copy
import runpy
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, distributed, nn

import policy_noise
from policy_noise import Sample, StochasticAugmentation
from policy_noise.learning import PolicyLearner

BEST = 2


@dataclass(frozen=True)
class Choice(Sample):
    """Which of five actions each image got."""

    index: Tensor


class Bandit(StochasticAugmentation):
    """Adds noise of one of five strengths, one of which is 0. It has no gradient."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(5))

    def sample(self, images, generator=None):
        logits = self.logits.expand(len(images), 5)
        index = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
        log_prob = logits.log_softmax(1).gather(1, index[:, None]).squeeze(1)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        applied = torch.ones_like(index, dtype=torch.bool)
        return Choice(log_prob=log_prob, applied=applied, entropy=entropy, index=index)

    @torch.no_grad()
    def transform(self, images, sample):
        return images + 3.0 * (sample.index - BEST).view(-1, 1, 1, 1)


class Loop:
    """A classifier of bright and dark images, which any shift of the brightness misleads."""

    def __init__(self, augmentation=None, **settings):
        self.model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        self.optimizer, self.criterion = torch.optim.SGD(self.model.parameters(), lr=0.01), nn.CrossEntropyLoss()
        with torch.no_grad():
            self.model[2].weight.copy_(torch.tensor([[-3.0], [3.0]]))
            self.model[2].bias.zero_()
        settings = {"policy_lr": 0.05, **settings}
        augmentation = Bandit() if augmentation is None else augmentation
        self.hook = policy_noise.attach(
            self.model, self.optimizer, self.criterion, augmentation=augmentation, **settings
        )
        self.losses = []

    def train(self, steps, start=0):
        for step in range(start, start + steps):
            generator = torch.Generator().manual_seed(step)
            targets = torch.randint(2, (32,), generator=generator)
            images = (2.0 * targets - 1).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
            loss = self.criterion(self.model(images), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
        return self.hook.augmentation.logits.detach().clone()

    def state(self):
        return copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def test_the_policy_finds_the_best_action():
    logits = Loop().train(100)
    assert logits.softmax(0)[BEST] > 0.9
    loop = Loop(reward="adversarial")
    assert loop.train(100).softmax(0)[BEST] < 0.05
    assert loop.hook.metrics["samples_seen"] == 3200


def test_state_travels_in_the_optimizer_and_resuming_is_bit_equal():
    whole = Loop()
    expected = whole.train(12)
    first = Loop()
    first.train(6)
    state = first.state()
    torch.manual_seed(99)  # another process: its seed is not the first one's
    second = Loop()
    second.load(state)
    assert torch.equal(second.train(6, start=6), expected)
    assert second.losses == whole.losses[6:]
    assert second.hook.metrics == whole.hook.metrics


def test_evaluation_is_clean_and_a_sample_replays_itself():
    loop, images = Loop(), torch.randn(6, 1, 4, 4)
    seen = []
    loop.model[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loop.model.eval()(images)
    with torch.no_grad():
        loop.model.train()(images)
    assert seen[0] is images
    assert seen[1] is images
    augmentation = loop.hook.augmentation
    assert augmentation.eval()(images) is images
    sample = augmentation.sample(images)
    assert torch.equal(augmentation(images, sample), augmentation.train()(images, sample.detach()))
    assert torch.equal(augmentation(images, sample)[sample.index == BEST], images[sample.index == BEST])
    assert not torch.equal(augmentation(images, sample), images)


def test_images_that_are_not_applied_come_back_bit_for_bit():
    augmentation, images = Bandit(), torch.randn(6, 1, 4, 4)
    applied = torch.arange(6) % 2 == 0
    sample = Choice(log_prob=None, applied=applied, index=torch.zeros(6, dtype=torch.long))
    changed = augmentation(images, sample)
    assert torch.equal(changed[~applied], images[~applied])
    assert (changed[applied] != images[applied]).all()


def test_a_frozen_one_draws_and_learns_nothing():
    loop = Loop(frozen=True)
    assert torch.equal(loop.train(5), torch.zeros(5))
    assert loop.losses[-1] > 0.5  # it transforms nevertheless: without it the loss is 0.002


def test_the_loops_own_generators_do_not_notice():
    loop = Loop()
    before = torch.get_rng_state()
    loop.train(2)
    assert torch.equal(torch.get_rng_state(), before)


# -- several processes -------------------------------------------------------------------------------------------------


def run_rank(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    constrained = Loop(entropy_target=-0.5, policy_lr=0.01)
    drawn = []
    loop = Loop()
    transform = loop.hook.augmentation.transform
    loop.hook.augmentation.transform = lambda images, sample: (drawn.append(sample.index), transform(images, sample))[1]
    result = {
        "logits": loop.train(5),
        "drawn": torch.stack(drawn),
        "constrained": constrained.train(5),
        "coefficient": constrained.hook.learner.entropy.coefficient,
    }
    torch.save(result, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_keep_one_policy_and_one_coefficient_and_draw_apart(tmp_path):
    run_ranks(run_rank, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in ("logits", "constrained", "coefficient"):
        assert torch.equal(first[name], second[name]), name
    assert first["logits"].abs().sum() > 0
    assert first["coefficient"] != pytest.approx(0.1)
    assert not torch.equal(first["drawn"], second["drawn"])


# -- refusals ----------------------------------------------------------------------------------------------------------


def changed(**fields):
    """A bandit whose sample is changed."""

    class Changed(Bandit):
        def sample(self, images, generator=None):
            drawn = super().sample(images, generator)
            values = {"log_prob": drawn.log_prob, "applied": drawn.applied, "index": drawn.index}
            return Choice(**values | {k: f(drawn) for k, f in fields.items()})

    return Changed()


class WithoutSample(StochasticAugmentation):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(5))


class WithoutTransform(WithoutSample):
    sample = Bandit.sample


class AnotherSample(Bandit):
    def sample(self, images, generator=None):
        return {"log_prob": torch.zeros(len(images))}


@pytest.mark.parametrize(
    ("augmentation", "error", "message"),
    [
        (WithoutSample(), NotImplementedError, r"WithoutSample must define sample\(images, generator\)"),
        (WithoutTransform(), NotImplementedError, r"WithoutTransform must define transform\(images, sample\)"),
        (AnotherSample(), TypeError, r"AnotherSample\.sample must return a policy_noise\.Sample, got dict"),
        (changed(log_prob=lambda s: None), ValueError, r"must return log_prob of shape \(32,\), .* got None"),
        (changed(log_prob=lambda s: s.log_prob[1:]), ValueError, r"log_prob of shape \(32,\), .* got \(31,\)"),
        (changed(log_prob=lambda s: torch.zeros(32, 5)), ValueError, r"log_prob of shape \(32,\), .* got \(32, 5\)"),
        (changed(log_prob=lambda s: s.log_prob.detach()), ValueError, "log_prob without a graph: .* pass frozen=True"),
        (changed(applied=lambda s: s.applied[:3]), ValueError, r"applied of shape \(32,\), .* got \(3,\)"),
        (changed(applied=lambda s: s.applied.float()), ValueError, r"applied as bool, got torch\.float32"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_a_subclass_lacks_is_named(augmentation, error, message):
    with pytest.raises(error, match=message):
        Loop(augmentation).train(1)


@pytest.mark.parametrize("log_prob", [lambda s: None, lambda s: s.log_prob.detach()], ids=["none", "no graph"])
def test_a_frozen_one_needs_no_log_prob(log_prob):
    loop = Loop(changed(log_prob=log_prob), frozen=True)
    loop.train(2)
    assert loop.losses[-1] > 0.5


class WithoutEntropy(Bandit):
    def sample(self, images, generator=None):
        drawn = super().sample(images, generator)
        return Sample(log_prob=drawn.log_prob, applied=drawn.applied)

    def transform(self, images, sample):
        return images


@pytest.mark.parametrize("setting", [{"entropy_coef": 0.1}, {"entropy_target": -0.1}])
def test_an_entropy_that_is_not_known_cannot_be_held(setting):
    with pytest.raises(TypeError, match="need an entropy, which Sample does not have: return Sample"):
        Loop(WithoutEntropy(), **setting).train(1)


def test_the_papers_estimator_needs_cells():
    with pytest.raises(TypeError, match=r"estimator='paper' needs .* each cell, which Choice does not have"):
        Loop(estimator="paper").train(1)


def test_one_without_parameters_is_frozen_and_one_whose_parameters_are_is_refused():
    assert PolicyLearner(StochasticAugmentation()).frozen
    with pytest.raises(ValueError, match="Bandit has no parameter that requires a gradient"):
        PolicyLearner(Bandit().requires_grad_(False))


def test_settings_of_a_mask_are_refused_beside_an_augmentation():
    with pytest.raises(TypeError, match=r"augmentation has settings of its own: \['grid_size'\]"):
        Loop(grid_size=3)


def test_the_example_learns_to_spare_the_faint_images(capsys):
    runpy.run_path(str(Path(__file__).parents[1] / "examples/own_augmentation.py"), run_name="__main__")
    first, *_, last = (line.split() for line in capsys.readouterr().out.splitlines())
    assert first[:2] == ["step", "0:"]
    assert float(last[-1]) > 6.2  # bits: the mean of an even draw is 5
    assert 4 < float(last[5]) < 6
