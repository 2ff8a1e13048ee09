"""How the policy is trained: windows, estimators, schedules, state, and several processes."""

import copy
import io
import math
import warnings

import pytest
import torch
import torch.distributed as dist
from policies import moved, observed
from ranks import run_ranks
from torch import nn

from policy_noise import MaskSample, PolicyNoiseMask, attach
from policy_noise import functional as PF
from policy_noise.learning import PolicyLearner

BASELINES = ["leave_one_out", "batch", "moving_average", "none"]


def make_mask(seed=0, **arguments):
    """A mask whose policy looks at the image."""
    torch.manual_seed(seed)
    mask = PolicyNoiseMask(**{"in_chans": 1, "grid_size": 4, "p": 1.0, **arguments})
    with torch.no_grad():
        for parameter in mask.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mask


def make_learner(mask=None, **arguments):
    """A learner whose step moves the weights by exactly the gradient."""
    settings = {"policy_optimizer": "sgd", "policy_lr": 1.0, **arguments}
    return PolicyLearner(make_mask() if mask is None else mask, **settings)


def score(mask, images, action, applied=None):
    """A sample with given actions, as if the mask's policy had drawn them."""
    drawn = mask.sample(images, torch.Generator().manual_seed(0))
    first, second = drawn.concentration1, drawn.concentration0
    log_prob = PF.beta_log_prob(action, first, second).flatten(1).sum(1)
    fields = {"action": action, "concentration1": first, "concentration0": second, "log_prob": log_prob}
    fields["applied"] = torch.ones(len(images), dtype=torch.bool) if applied is None else applied
    return MaskSample(**fields, entropy=drawn.entropy)


def weights(learner):
    return torch.cat([parameter.detach().flatten() for parameter in learner.parameters])


# -- the window --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        *({"baseline": b, "normalize_advantage": n, "entropy_coef": 0.01} for b in BASELINES for n in (True, False)),
        {"reward": "adversarial"},
        {"estimator": "paper"},
    ],
    ids=str,
)
def test_accumulated_microbatches_are_the_big_batch(arguments):
    """The same actions and losses, in one batch or in uneven parts, for two steps."""
    images, action = torch.randn(2, 12, 1, 16, 16), torch.rand(2, 12, 1, 4, 4)
    loss, applied = 3 + torch.rand(2, 12), torch.rand(2, 12) < 0.7
    if arguments.get("estimator") == "paper":
        # The paper masks all images and multiplies each batch's own scalar: equal ones, as one batch has.
        loss, applied = torch.full_like(loss, 2.0), torch.ones_like(applied)
    results = []
    for sizes in ([12], [5, 1, 6], [1] * 12):
        learner = make_learner(**{"policy_lr": 0.01, **arguments})
        for step in range(2):
            for rows in torch.arange(12).split(sizes):
                sample = score(learner.augmentation, images[step, rows], action[step, rows], applied[step, rows])
                learner.observe(sample, loss[step, rows])
            learner.step({"lr": 1.0})
        results.append(weights(learner))
    moved = (results[0] - weights(make_learner())).abs().max()
    assert moved > 1e-4
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=float(1e-4 * moved))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("baseline", ["leave_one_out", "batch", "none"])
def test_a_step_is_the_surrogates_gradient(baseline, normalize):
    learner = make_learner(baseline=baseline, normalize_advantage=normalize, entropy_coef=0.02)
    sample = learner.augmentation.sample(torch.randn(9, 1, 16, 16))
    loss = torch.rand(9)
    surrogate = PF.reinforce_loss(
        sample.log_prob,
        loss,
        baseline=baseline,
        normalize=normalize,
        entropy=sample.entropy,
        entropy_coef=0.02,
    )
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(surrogate, learner.parameters, retain_graph=True)])
    expected = weights(learner) - gradient
    learner.observe(sample, loss)
    learner.step({"lr": 1.0})
    torch.testing.assert_close(weights(learner), expected, rtol=1e-4, atol=1e-6)
    assert learner.metrics(None)["policy_grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)


def test_the_papers_step_is_its_formulas_gradient():
    """SGD with momentum 0.9 and weight decay 1e-4, at a tenth of the classifier's rate."""
    learner = PolicyLearner(
        make_mask(),
        estimator="paper",
        policy_optimizer="sgd",
        policy_lr=None,
        policy_lr_ratio=0.1,
        policy_weight_decay=1e-4,
    )
    momentum = torch.zeros_like(weights(learner))
    for user_lr in (0.1, 0.1, 0.01):
        sample = learner.augmentation.sample(torch.randn(6, 1, 16, 16))
        loss = torch.rand(6)
        density = torch.distributions.Beta(sample.concentration1, sample.concentration0).log_prob(sample.action).exp()
        surrogate = density.flatten(1).sum(1).log().mean() * loss.mean()
        gradient = torch.autograd.grad(surrogate, learner.parameters, retain_graph=True)
        before = weights(learner)
        momentum = 0.9 * momentum + torch.cat([g.flatten() for g in gradient]) + 1e-4 * before
        learner.observe(sample, loss)
        torch.testing.assert_close(learner.loss_scale(sample), density.flatten(1).sum(1).log().mean().detach())
        learner.step({"lr": user_lr})
        torch.testing.assert_close(weights(learner), before - 0.1 * user_lr * momentum, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("others", ["none", "unmasked", "broken"])
def test_one_sample_that_counts_is_compared_with_the_moving_average(baseline, normalize, others):
    """The only sample of its window, or beside samples without a mask or a finite loss."""
    learner = make_learner(baseline=baseline, normalize_advantage=normalize)
    learner.frozen = True
    learner.observe(learner.augmentation.sample(torch.randn(8, 1, 16, 16)), torch.full((8,), 2.0))
    learner.step({"lr": 1.0})  # the average moves, and the policy does not
    learner.frozen = False
    count = 1 if others == "none" else 3
    applied, loss = torch.ones(count, dtype=torch.bool), torch.full((count,), 5.0)
    if others == "unmasked":
        applied[1:] = False
    if others == "broken":
        loss[1:] = torch.tensor([math.nan, math.inf])
    images, action = torch.randn(count, 1, 16, 16), torch.rand(count, 1, 4, 4)
    sample = score(learner.augmentation, images, action, applied)
    gradient = torch.autograd.grad(sample.log_prob[0], learner.parameters, retain_graph=True)
    gradient = torch.cat([g.flatten() for g in gradient])
    before = weights(learner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner.observe(sample, loss)
        learner.step({"lr": 1.0})
    expected = before - (5.0 if baseline == "none" else 3.0) * gradient
    torch.testing.assert_close(weights(learner), expected, rtol=1e-3, atol=1e-5)


def test_the_moving_average_starts_at_the_first_loss():
    learner = make_learner(baseline="moving_average", baseline_momentum=0.9, frozen=True)
    images = torch.randn(4, 1, 16, 16)
    none = torch.zeros(4, dtype=torch.bool)
    learner.observe(score(learner.augmentation, images, torch.rand(4, 1, 4, 4), none), torch.full((4,), 9.0))
    learner.step({"lr": 1.0})
    averages = []
    for value in (5.0, 6.0, 6.0):
        learner.observe(learner.augmentation.sample(images), torch.full((4,), value))
        learner.step({"lr": 1.0})
        averages.append(-learner.metrics(None)["baseline"])
    assert averages == pytest.approx([5.0, 5.0, 5.1])


def test_a_window_without_a_sample_that_counts_moves_nothing():
    learner = make_learner()
    before = weights(learner)
    sample = score(
        learner.augmentation, torch.randn(4, 1, 16, 16), torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.bool)
    )
    learner.observe(sample, torch.rand(4))
    learner.step({"lr": 1.0})
    learner.step({"lr": 1.0})
    assert torch.equal(weights(learner), before)


@pytest.mark.parametrize("labelled", [False, True])
def test_batches_in_which_no_image_has_a_loss_are_told_once(labelled):
    """Five in a row; a batch in between with one label is enough to say nothing."""
    learner = make_learner()
    images, action = torch.randn(2, 1, 16, 16), torch.rand(2, 1, 4, 4)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for batch in range(8):
            valid = torch.tensor([labelled and batch % 4 == 3, False])
            learner.observe(score(learner.augmentation, images, action), torch.zeros(2), valid)
            learner.step({"lr": 1.0})
    assert len(record) == (not labelled)
    assert labelled or "no image of the last 5 batches has a loss" in str(record[0].message)


def test_losses_that_are_not_finite_are_dropped_and_counted_with_one_warning():
    learner, twin = make_learner(), make_learner()
    images, action = torch.randn(6, 1, 16, 16), torch.rand(6, 1, 4, 4)
    loss = torch.tensor([1.0, math.nan, 3.0, math.inf, 0.5, -math.inf])
    kept = torch.isfinite(loss)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(2):
            learner.observe(score(learner.augmentation, images, action), loss)
            learner.step({"lr": 1.0})
    assert [str(warning.message)[:35] for warning in record] == ["policy_noise: 3 samples with a non-"]
    for _ in range(2):
        twin.observe(score(twin.augmentation, images[kept], action[kept]), loss[kept])
        twin.step({"lr": 1.0})
    torch.testing.assert_close(weights(learner), weights(twin), rtol=1e-4, atol=1e-5)
    assert learner.metrics(None)["samples_dropped"] == 6
    assert learner.metrics(None)["samples_seen"] == 12


def test_a_constant_loss_teaches_nothing():
    learner = make_learner()
    before = weights(learner)
    learner.observe(learner.augmentation.sample(torch.randn(16, 1, 16, 16)), torch.full((16,), 2.0))
    learner.step({"lr": 1.0})
    torch.testing.assert_close(weights(learner), before, rtol=0, atol=1e-5)


def test_a_frozen_policy_stays_and_reports():
    learner = make_learner(frozen=True)
    before = weights(learner)
    learner.observe(learner.augmentation.sample(torch.randn(16, 1, 16, 16)), torch.rand(16))
    learner.step({"lr": 1.0})
    assert torch.equal(weights(learner), before)
    assert learner.metrics((16, 16))["policy_grad_norm"] > 0


def test_metrics_are_what_they_say():
    learner = make_learner()
    sample = learner.augmentation.sample(torch.randn(8, 1, 16, 16))
    loss = torch.arange(8.0)
    learner.observe(sample, loss)
    learner.step({"lr": 1.0})
    metrics = learner.metrics((16, 16))
    rendered = learner.augmentation.render(sample.detach(), (16, 16))
    expected = {
        "reward": -3.5,
        "baseline": -3.5,
        "loss_std": loss.std(correction=0).item(),
        "entropy": sample.entropy.mean().item(),
        "mask_mean": rendered.mean().item(),
        "mask_std": rendered.std().item(),
        "samples_seen": 8,
        "samples_dropped": 0,
    }
    assert metrics.keys() == {*expected, "policy_grad_norm"}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_observations_without_steps_are_let_go_with_one_warning():
    learner = make_learner()
    sample = learner.augmentation.sample(torch.randn(1, 1, 16, 16))
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(300):
            learner.observe(sample, torch.zeros(1))
    assert ["observations passed without an optimizer step" in str(w.message) for w in record] == [True]
    assert learner.observations == 256


@pytest.mark.parametrize("loss", [torch.tensor(1.0), torch.zeros(3), torch.zeros(4, 1), 1.0])
def test_a_loss_of_the_wrong_shape_is_refused(loss):
    learner = make_learner()
    sample = learner.augmentation.sample(torch.randn(4, 1, 16, 16))
    with pytest.raises(ValueError, match=r"per_sample_loss must have shape \(4,\)"):
        learner.observe(sample, loss)
    assert learner.observations == 0


# -- learning rate -----------------------------------------------------------------------------------------------------


def rates(learner, user_lrs):
    for user_lr in user_lrs:
        learner.observe(learner.augmentation.sample(torch.randn(2, 1, 16, 16)), torch.rand(2))
        learner.step({"lr": user_lr})
        yield learner.optimizer.param_groups[0]["lr"]


def test_the_rate_follows_the_users():
    assert list(rates(make_learner(policy_lr=None, policy_lr_ratio=0.1), [0.1, 0.01, 0.5])) == pytest.approx(
        [0.01, 0.001, 0.05]
    )
    assert list(rates(make_learner(policy_lr=0.02), [0.4, 0.1, 0.8, 0.2])) == pytest.approx([0.02, 0.005, 0.02, 0.005])
    assert list(rates(make_learner(policy_lr=0.02, follow_schedule=False), [0.4, 0.1])) == [0.02, 0.02]


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"policy_optimizer": "adamw", "baseline": "moving_average"}], ids=str)
@pytest.mark.parametrize("policy", ["spatial", "static", "test_resnet"])
def test_a_resumed_learner_goes_on_bit_for_bit(policy, arguments):
    def go_on(learner, steps, user_lr):
        for _ in range(steps):
            learner.observe(learner.augmentation.sample(torch.randn(6, 1, 16, 16)), torch.rand(6))
            learner.step({"lr": user_lr})

    learner = make_learner(make_mask(policy=policy), **arguments)
    go_on(learner, 2, 0.1)
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    torch.manual_seed(7)
    go_on(learner, 2, 0.05)
    other = make_learner(make_mask(seed=9, policy=policy), **arguments)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.manual_seed(7)
    go_on(other, 2, 0.05)
    for name, value in learner.augmentation.state_dict().items():
        assert torch.equal(value, other.augmentation.state_dict()[name]), name
    assert learner.metrics(None) == other.metrics(None)


def broken(state, **changes):
    return {**state, **changes}


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda s: {}, r"state_dict must hold .*got \[\]"),
        (lambda s: None, "state_dict must hold .*NoneType"),
        (lambda s: nn.Linear(2, 2).state_dict(), r"state_dict must hold .*\['bias', 'weight'\]"),
        (lambda s: make_learner(make_mask(grid_size=5)).state_dict(), "belongs to another policy.*policy.place"),
        (lambda s: make_learner(make_mask(policy="static")).state_dict(), "belongs to another policy"),
        (lambda s: make_learner(policy_optimizer="adamw").state_dict(), "policy_optimizer.*'adamw'.*'sgd'"),
        (lambda s: broken(s, mask=3), r"state_dict\['mask'\].*int"),
        (lambda s: broken(s, mask={**s["mask"], "policy.place": 3}), "policy.place"),
        (lambda s: broken(s, optimizer={}), "its optimizer holds other parameters"),
        (lambda s: broken(s, optimizer=[1]), r"state_dict\['optimizer'\].*list"),
        (lambda s: broken(s, moving_average="high"), r"state_dict\['moving_average'\].*str"),
        (lambda s: broken(s, peak_user_lr=None), r"state_dict\['peak_user_lr'\].*None"),
    ],
)
def test_a_foreign_state_is_refused_and_nothing_has_moved(break_it, message):
    learner = make_learner()
    learner.observe(learner.augmentation.sample(torch.randn(6, 1, 16, 16)), torch.rand(6))
    learner.step({"lr": 0.1})
    learner.observe(learner.augmentation.sample(torch.randn(6, 1, 16, 16)), torch.rand(6))
    before = copy.deepcopy(learner.state_dict())
    with pytest.raises(ValueError, match=message):
        learner.load_state_dict(break_it(copy.deepcopy(before)))
    torch.testing.assert_close(learner.state_dict(), before, rtol=0, atol=0)
    assert learner.observations == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "pathwise"}, "estimator must be .*'pathwise'"),
        ({"reward": "competitive"}, "reward must be .*'competitive'"),
        ({"baseline": "median"}, "baseline must be .*'median'"),
        ({"policy_optimizer": "lion"}, "policy_optimizer must be .*'lion'"),
        ({"policy_lr": None}, "exactly one of policy_lr and policy_lr_ratio"),
        (
            {"policy_lr": 0.1, "policy_lr_ratio": 0.1},
            r"exactly one of policy_lr and policy_lr_ratio .*policy_lr=0\.1 and policy_lr_ratio=0\.1",
        ),
        ({"policy_lr": -0.1}, r"policy_lr must not be negative, got -0\.1"),
        ({"policy_lr": math.nan}, "policy_lr must not be negative, got nan"),
        ({"entropy_coef": -1.0}, r"entropy_coef must not be negative, got -1\.0"),
        ({"baseline_momentum": 1.0}, r"baseline_momentum must lie in \[0, 1\), got 1\.0"),
        ({"estimator": "paper", "reward": "adversarial"}, "estimator='paper' .*reward='adversarial'"),
        ({"update_every": 0}, "update_every must be a positive integer, got 0"),
        ({"update_every": 1.5}, r"update_every must be a positive integer, got 1\.5"),
        ({"estimator": "paper", "update_every": 2}, "estimator='paper' scales .* update_every=1, got 2"),
        ({"estimator": "paper", "entropy_coef": 0.1}, "estimator='paper' .* and an entropy bonus"),
    ],
)
def test_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_learner(**arguments)


def test_a_mask_without_a_policy_to_train_is_refused():
    with pytest.raises(ValueError, match="PolicyNoiseMask has no parameter that requires a gradient"):
        make_learner(make_mask().requires_grad_(False))


# -- several processes -------------------------------------------------------------------------------------------------

CASES = [
    *({"baseline": b, "normalize_advantage": n, "entropy_coef": 0.01} for b in BASELINES for n in (True, False)),
    {"reward": "adversarial"},
    {"estimator": "paper"},
]
SIZES = {0: [[5, 3], [4], [1], [6]], 1: [[2], [], [], [1, 2]]}
"""Batch sizes of each rank in four steps: uneven, one rank without samples, one sample in total, uneven."""


def observe_rank(learner, rank, step):
    """The data of a rank in a step. It does not depend on the process that makes it."""
    for number, size in enumerate(SIZES[rank][step]):
        generator = torch.Generator().manual_seed(1000 * rank + 10 * step + number)
        images = torch.randn(size, 1, 16, 16, generator=generator)
        action = PF.sample_beta(torch.ones(size, 1, 4, 4), torch.ones(size, 1, 4, 4), generator)
        loss = 3 + torch.rand(size, generator=generator)
        applied = torch.ones(size, dtype=torch.bool)
        if size > 2:
            applied[1], loss[2] = False, math.nan
        if learner.scales_loss:
            loss = torch.full((size,), 2.0)  # one scalar for all, as one process has
        learner.observe(score(learner.augmentation, images, action, applied), loss)


def follow_cases(ranks):
    """Weights after each step of each case, for the ranks that this process simulates."""
    results = []
    for case in CASES:
        learner = make_learner(**{"policy_lr": 0.01, **case})
        for step in range(4):
            for rank in ranks:
                observe_rank(learner, rank, step)
            learner.step({"lr": 1.0})
            results.append(weights(learner))
    return results


def train_attached(rank, seed, **arguments):
    """A few steps of a hooked classifier on this rank's data, a resume, and a few more: actions and policies."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
    hook = attach(model, optimizer, criterion, grid_size=4, p=1.0, **arguments)
    actions, draw = [], hook.augmentation.sample

    def sample(*args):
        actions.append((drawn := draw(*args)).action)
        return drawn

    hook.augmentation.sample = sample
    generator = torch.Generator().manual_seed(rank)

    def steps(count):
        for _ in range(count):
            images = torch.randn(6, 1, 16, 16, generator=generator)
            loss = criterion(model(images), torch.randint(3, (6,), generator=generator))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    steps(4)
    policies = [copy.deepcopy(hook.augmentation.state_dict())]
    states = [hook.state_dict()]
    dist.broadcast_object_list(states)  # rank 0's checkpoint resumes all ranks
    hook.load_state_dict(states[0])
    steps(2)
    policies.append(hook.augmentation.state_dict())
    return {"actions": torch.stack(actions), "policies": policies}


def run_rank(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    result = {
        "cases": follow_cases([rank]),
        "seeded alike": train_attached(rank, 0),
        "seeded apart": train_attached(rank, rank),
        "with buffers": train_attached(rank, rank, policy="test_resnet"),
        "every third": train_attached(rank, rank, update_every=3),
    }
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(run_rank, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.filterwarnings("ignore:.*non-finite loss")
def test_two_ranks_take_the_step_of_the_joined_window(two_ranks):
    """All baselines, with and without normalisation, four steps, a rank without samples in two of them."""
    start = weights(make_learner())
    for case, joined, first, second in zip(
        [case for case in CASES for _ in range(4)], follow_cases([0, 1]), *(r["cases"] for r in two_ranks), strict=True
    ):
        assert torch.equal(first, second), case
        torch.testing.assert_close(
            first - start, joined - start, rtol=2e-3, atol=2e-4 * float((joined - start).abs().max()), msg=str(case)
        )


@pytest.mark.parametrize("seeds", ["seeded alike", "seeded apart", "with buffers", "every third"])
def test_ranks_share_one_policy_and_draw_different_masks(two_ranks, seeds):
    first, second = (result[seeds] for result in two_ranks)
    for own, others in zip(first["policies"], second["policies"], strict=True):
        for name, value in own.items():
            assert torch.equal(value, others[name]), name
    assert first["actions"].shape == (6, 6, 1, 4, 4)
    for own, others in zip(first["actions"], second["actions"], strict=True):
        assert not torch.isclose(own, others).any(dim=(1, 2, 3)).all()


def gradients_of(function, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(function, parameters, retain_graph=True)])


@pytest.mark.parametrize("sizes", [(8,), (5, 3)])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.05])
@pytest.mark.parametrize("reward", ["cooperative", "adversarial"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("baseline", ["leave_one_out", "batch", "none", "moving_average"])
def test_weights_handed_to_autograd_give_the_gradient_of_the_surrogate(
    baseline, normalize, reward, entropy_coef, sizes
):
    mask = moved(PolicyNoiseMask(p=0.7, grid_size=4))
    learner = PolicyLearner(
        mask, baseline=baseline, normalize_advantage=normalize, reward=reward, entropy_coef=entropy_coef, frozen=True
    )
    learner._moving_average = torch.tensor(1.3)
    samples, losses = observed(learner, sizes, bad=[(0, 1, torch.nan)])
    loss, log_prob, entropy, applied = (
        torch.cat(parts)
        for parts in zip(
            *((x, s.log_prob, s.entropy, s.applied) for s, x in zip(samples, losses, strict=True)), strict=True
        )
    )
    expected = gradients_of(
        PF.reinforce_loss(
            log_prob,
            loss,
            baseline=1.3 if baseline == "moving_average" else baseline,
            normalize=normalize,
            reward=reward,
            entropy=entropy,
            entropy_coef=entropy_coef,
            valid=applied & loss.isfinite(),
        ),
        learner.parameters,
    )
    with pytest.warns(UserWarning, match="non-finite"):
        learner.step({"lr": 0.1})
    result = learner._last.gradient
    assert expected.abs().sum() > 0
    torch.testing.assert_close(result, expected)


def test_entropy_in_the_metrics_is_that_of_the_whole_window():
    learner = PolicyLearner(moved(PolicyNoiseMask(grid_size=4)))
    samples, _ = observed(learner)
    learner.step({"lr": 0.1})
    expected = torch.cat([sample.entropy for sample in samples]).mean().item()
    assert learner.metrics(None)["entropy"] == pytest.approx(expected)
