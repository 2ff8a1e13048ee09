"""The hook in training loops: what it does not change, what it learns, saving, copying and misuse."""

import copy
import gc
import io
import itertools
import math
import pickle
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from policy_noise import PairingError, PolicyNoiseMask, ReinforceHook, attach
from policy_noise.presets import get_preset


class Loop:
    """A plain training loop and its one added line."""

    def __init__(self, model, *, user_lr=0.1, seed=0, mask=None, optimizer=None, **arguments):
        torch.manual_seed(seed)
        self.model, self.criterion = model, nn.CrossEntropyLoss()
        self.optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=user_lr, momentum=0.9)
        self.mask = PolicyNoiseMask(**{"p": 1.0, **(mask or {})})
        self.hook = ReinforceHook(self.mask, self.optimizer, model=model, criterion=self.criterion, **arguments)

    def step(self, images, targets):
        loss = self.criterion(self.model(images), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def policy(self):
        return copy.deepcopy(self.mask.state_dict())


def assert_same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def seen_by(model):
    """The input that reaches a model after its pre-hooks."""
    seen = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    return seen, handle


# -- what it leaves alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_loss_and_gradients_are_those_of_the_masked_batch(make_model, batch, batch_norm, autocast):
    """Two steps agree bit for bit."""
    images, targets = batch
    loop = Loop(make_model(batch_norm=batch_norm))
    seen, _ = seen_by(loop.model)
    plain = make_model(batch_norm=batch_norm)
    plain.load_state_dict(loop.model.state_dict())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = loop.criterion(loop.model(images), targets)
        loop.optimizer.zero_grad()
        loss.backward()
        assert not torch.equal(seen[-1], images)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            expected = nn.CrossEntropyLoss()(plain(seen[-1]), targets)
        optimizer.zero_grad()
        expected.backward()
        assert torch.equal(loss, expected)
        assert_same([p.grad for p in loop.model.parameters()], [p.grad for p in plain.parameters()])
        loop.optimizer.step()
        optimizer.step()
    assert_same(loop.model.state_dict(), plain.state_dict())


def test_the_papers_loss_and_gradient_are_scaled(make_model, batch):
    """The factor is the mean over images of log sum_j p_j(a_j), computed here from the concentrations."""
    images, targets = batch
    settings = get_preset("paper")
    loop = Loop(make_model(), mask={**settings.mask, "grid_size": 8, "kernel_size": 5, "sigma": 2.0}, **settings.hook)
    seen, _ = seen_by(loop.model)
    policy = copy.deepcopy(loop.mask.policy)
    loss = loop.criterion(loop.model(images), targets)
    loss.backward()
    features = policy.backbone(images)
    alpha = (0.9 * policy.base_concentration1 + 0.1 * policy.head1(features)).exp()
    beta = (0.9 * policy.base_concentration0 + 0.1 * policy.head0(features)).exp()
    (pending,) = loop.hook._queue.scored
    sample = pending.sample
    density = torch.distributions.Beta(alpha, beta).log_prob(sample.action).exp()
    factor = density.flatten(1).sum(1).log().mean().detach()

    plain = make_model()
    plain.load_state_dict(loop.model.state_dict())
    expected = F.cross_entropy(plain(seen[0]), targets)
    expected.backward()
    torch.testing.assert_close(loss, factor * expected)
    for own, other in zip(loop.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, factor * other.grad)
    masked = images * loop.mask.render(sample, (32, 32))
    torch.testing.assert_close(seen[0], masked)


def test_nothing_of_the_policy_is_in_the_model_or_its_optimizer(make_model, batch):
    model = make_model()
    keys, count = model.state_dict().keys(), len(list(model.parameters()))
    loop = Loop(model)
    loop.step(*batch)
    assert model.state_dict().keys() == keys
    assert len(list(model.parameters())) == count
    assert len(loop.optimizer.param_groups) == 1
    assert len(loop.optimizer.param_groups[0]["params"]) == count


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_reaches_the_model(make_model, batch, memory_format):
    loop = Loop(make_model())
    seen, _ = seen_by(loop.model)
    loop.step(batch[0].to(memory_format=memory_format), batch[1])
    assert seen[0].is_contiguous(memory_format=memory_format)


def test_eval_mode_is_the_plain_model(make_model, batch):
    images, targets = batch
    loop = Loop(make_model(batch_norm=True))
    loop.step(images, targets)
    plain = make_model(batch_norm=True)
    plain.load_state_dict(loop.model.state_dict())
    loop.model.eval()
    plain.eval()
    random = torch.get_rng_state()
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            assert torch.equal(loop.model(images), plain(images))
    assert torch.equal(torch.get_rng_state(), random)


def test_gradients_off_means_no_mask(make_model, batch):
    loop = Loop(make_model())
    seen, _ = seen_by(loop.model)
    with torch.no_grad():
        loop.model(batch[0])
    assert torch.equal(seen[0], batch[0])


def test_the_hooked_modules_mode_decides_and_not_the_masks(make_model, batch):
    loop = Loop(make_model())
    seen, _ = seen_by(loop.model)
    loop.model.eval()
    loop.model(batch[0])
    assert torch.equal(seen[0], batch[0])
    assert loop.mask.training
    loop.model.train()
    loop.model(batch[0])
    assert not torch.equal(seen[1], batch[0])


def test_validation_in_the_middle_of_training_changes_nothing(make_model, batch):
    """Between a forward and its loss, between two microbatches, and between two steps."""
    images, targets = batch
    results = []
    for validates in (False, True):
        loop = Loop(make_model())
        loop.model.load_state_dict(_weights(make_model))

        def validate(loop=loop, validates=validates):
            if validates:
                loop.model.eval()
                with torch.no_grad():
                    loop.criterion(loop.model(images[:5]), targets[:5])
                loop.model.train()

        torch.manual_seed(3)
        for _ in range(3):
            loop.optimizer.zero_grad()
            for _ in range(2):
                output = loop.model(images)
                validate()
                loop.criterion(output, targets).backward()
                validate()
            loop.optimizer.step()
            validate()
        results.append((loop.model.state_dict(), loop.policy(), loop.hook.metrics))
    assert_same(*results)


def _weights(make_model):
    torch.manual_seed(11)
    return make_model().state_dict()


def test_paused_neither_masks_nor_observes(make_model, batch):
    images, targets = batch
    loop = Loop(make_model())
    seen, _ = seen_by(loop.model)
    before = loop.policy()
    with loop.hook.paused(), loop.hook.paused():
        assert loop.hook.apply(images) is images
        loop.step(images, targets)
        losses = F.cross_entropy(loop.model(images), targets, reduction="none")
        assert loop.hook.observe(losses) is losses
    assert torch.equal(seen[0], images)
    assert loop.hook.metrics["samples_seen"] == 0
    assert_same(loop.policy(), before)
    loop.step(images, targets)
    assert not torch.equal(seen[-1], images)
    assert loop.hook.metrics["samples_seen"] == 8


def test_paused_ends_also_after_an_error(make_model, batch):
    loop = Loop(make_model())
    with pytest.raises(KeyError), loop.hook.paused():
        raise KeyError
    assert loop.hook.apply(batch[0]) is not batch[0]


def test_unmasked_images_reach_the_model_bit_for_bit(make_model, batch):
    loop = Loop(make_model(), mask={"p": 0.5})
    seen, _ = seen_by(loop.model)
    loop.model(batch[0])
    applied = loop.hook._queue.newest.sample.applied
    assert 0 < applied.sum() < 8
    assert torch.equal(seen[0][~applied], batch[0][~applied])
    assert (seen[0][applied] != batch[0][applied]).flatten(1).any(1).all()


@pytest.mark.parametrize("size", [(28, 28), (33, 57), (224, 224)])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_sizes_and_channels(make_model, in_chans, size):
    loop = Loop(make_model(in_chans), mask={"in_chans": in_chans})
    before = loop.policy()
    loop.step(torch.randn(4, in_chans, *size), torch.arange(4))
    assert loop.hook.metrics["samples_seen"] == 4
    assert any(not torch.equal(value, before[name]) for name, value in loop.policy().items())


def test_remove_leaves_no_trace(make_model, batch):
    images, targets = batch
    loop = Loop(make_model())
    loop.step(images, targets)
    loop.hook.remove()
    loop.hook.remove()
    before = loop.policy()
    seen, _ = seen_by(loop.model)
    loop.step(images, targets)
    assert torch.equal(seen[0], images)
    assert_same(loop.policy(), before)
    assert loop.optimizer.state_dict().keys() == {"state", "param_groups"}
    assert not loop.criterion._forward_hooks
    again = ReinforceHook(PolicyNoiseMask(), loop.optimizer, model=loop.model, criterion=loop.criterion)
    loop.step(images, targets)
    assert again.metrics["samples_seen"] == 8


# -- what it learns ----------------------------------------------------------------------------------------------------

TARGET = 0.9
RELEVANT = torch.arange(64) % 4 == 1


def bandit(steps, observe, *, policy_lr, policy_optimizer="adamw", **arguments):
    """Mean of the relevant cells' distributions after training on a loss that is known.

    Images of ones, one pixel a cell and no blur: what comes out of the model are the actions, and the loss of an
    image is the mean squared distance of its 16 relevant cells from the target.
    """
    mask = PolicyNoiseMask(
        1,
        8,
        kernel_size=1,
        sigma=1.0,
        policy="static",
        p=1.0,
        mean_preserving=False,
        pattern_std=None,
        brightness_std=0.0,
        black=0.0,
    )
    model = nn.Identity()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    hook = ReinforceHook(
        mask, optimizer, model=model, policy_lr=policy_lr, policy_optimizer=policy_optimizer, **arguments
    )
    images = torch.ones(32, 1, 8, 8)
    for _ in range(steps):
        actions = model(images).flatten(1)
        hook.observe(observe((actions[:, RELEVANT] - TARGET).square().mean(1)))
        optimizer.step()
    sample = mask.sample(images[:1])
    mean = (sample.concentration1 / (sample.concentration1 + sample.concentration0)).flatten()
    return mean[RELEVANT].mean().item(), mean[~RELEVANT].mean().item()


def test_the_bandit_is_learned():
    relevant, others = bandit(200, lambda loss: loss, policy_lr=4.5e-2)
    assert relevant > 0.87
    assert abs(others - 0.5) < 0.1


def test_the_bandit_is_unlearned_by_an_adversary():
    assert bandit(100, lambda loss: loss, policy_lr=3e-2, reward="adversarial")[0] < 0.35


@pytest.mark.parametrize(
    ("scalar", "arguments"),
    [
        (False, {"estimator": "paper"}),
        (True, {}),
        (True, {"baseline": "none", "normalize_advantage": False, "policy_optimizer": "sgd"}),
    ],
    ids=["the published surrogate", "one scalar for the batch", "one scalar, no baseline, the paper's optimizer"],
)
def test_wrong_estimators_stay_near_one_half(scalar, arguments):
    observe = (lambda loss: loss.mean().expand_as(loss)) if scalar else (lambda loss: loss)
    relevant, _ = bandit(200, observe, policy_lr=4.5e-2, **arguments)
    assert abs(relevant - 0.5) < 0.1


def test_a_classifier_learns_under_its_mask(make_model):
    loop = Loop(make_model(1, 2), user_lr=0.05, mask={"in_chans": 1})
    torch.manual_seed(5)
    for _ in range(60):
        targets = torch.randint(2, (16,))
        images = torch.randn(16, 1, 16, 16)
        images[:, :, :8] += 2.0 * targets.view(-1, 1, 1, 1)
        last = loop.step(images, targets)
    assert last < 0.3
    assert math.isfinite(loop.hook.metrics["policy_grad_norm"])


# -- mixed precision and skipped steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_scaler_and_skipped_steps(make_model, batch, dtype, fused):
    """A step that the scaler skips moves no policy, and its samples count in the next one that is taken.

    An ordinary optimizer is not called at all; a fused one is called and skips by itself.
    """
    images, targets = batch
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    loop = Loop(model, optimizer=optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    policies, seen = [loop.policy()], []
    for factor in (1.0, math.inf, 1.0):
        with torch.autocast("cpu", dtype=dtype):
            loss = loop.criterion(model(images), targets) * factor
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        policies.append(loop.policy())
        seen.append((loop.hook.metrics["samples_seen"], len(loop.hook._queue.scored)))
    assert scaler.get_scale() == 4.0
    assert seen == [(8, 0), (8, 1), (24, 0)]
    moved = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in itertools.pairwise(policies)]
    assert moved == [True, False, True]


def test_half_precision_images(make_model, batch):
    loop = Loop(make_model().to(torch.bfloat16))
    seen, _ = seen_by(loop.model)
    loop.step(batch[0].to(torch.bfloat16), batch[1])
    assert seen[0].dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in loop.mask.parameters())
    assert loop.hook.metrics["policy_grad_norm"] > 0


# -- numbers that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["spatial", "test_resnet"])
def test_a_bad_image_costs_its_sample_alone(make_model, batch, policy):
    """The loop skips the step, as a scaler does. The policy learns from the other images in the next step."""
    images, targets = batch
    bad = images.clone()
    bad[3, 1, 5, 5] = math.nan
    loop = Loop(make_model(), mask={"policy": policy})
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for step in range(6):
            loss = loop.criterion(loop.model(bad if step % 2 else images), targets)
            loop.optimizer.zero_grad()
            loss.backward()
            if torch.isfinite(loss):
                loop.optimizer.step()
        loop.step(images, targets)
    assert sum("non-finite loss" in str(warning.message) for warning in record) == 1
    assert loop.hook.metrics["samples_dropped"] == 3
    assert loop.hook.metrics["samples_seen"] == 56
    assert all(math.isfinite(value) for value in loop.hook.metrics.values())
    assert all(torch.isfinite(value).all() for value in loop.policy().values())
    assert all(torch.isfinite(value).all() for value in loop.model.state_dict().values())


@pytest.mark.filterwarnings("ignore:.*non-finite loss")
def test_a_policy_outlives_its_classifier(make_model, batch):
    images, targets = batch
    loop = Loop(make_model())
    loop.step(images, targets)
    before = loop.policy()
    loop.step(images * math.nan, targets)  # the classifier's weights are NaN from here on
    loop.step(images, targets)
    assert all(torch.isfinite(value).all() for value in loop.policy().values())
    assert all(torch.isfinite(value).all() for value in before.values())
    assert loop.hook.metrics["samples_dropped"] == 16


# -- learning from one step in several ---------------------------------------------------------------------------------


def test_only_every_kth_window_is_learned_from(make_model, batch):
    """Its steps equal those of a policy that always learns. In between nothing changes and nothing is kept."""
    loop = Loop(make_model(), update_every=3)
    policies, states, seen = [loop.policy()], [], []
    for _ in range(7):
        images, targets = batch
        loss = loop.criterion(loop.model(images[:4]), targets[:4]) + loop.criterion(loop.model(images[4:]), targets[4:])
        seen.append(len(loop.hook._queue.scored))
        assert len(loop.hook._queue) == 0
        loss.backward()
        loop.optimizer.step()
        policies.append(loop.policy())
        states.append(copy.deepcopy(loop.hook.policy_optimizer.state_dict()["state"]))
    assert seen == [2, 0, 0, 2, 0, 0, 2]
    for step in range(7):
        moved = any(not torch.equal(policies[step][name], policies[step + 1][name]) for name in policies[0])
        assert moved == (step % 3 == 0)
        if step % 3:
            assert_same(states[step], states[step - 1])
    assert loop.hook.metrics["samples_seen"] == 24


def test_a_learned_step_is_that_of_a_policy_that_always_learns(make_model, batch):
    """Classifier, policy and random numbers are the same with and without a step that does not learn."""
    start = make_model().state_dict()
    policies = []
    for update_every in (1, 2):
        generator = torch.Generator().manual_seed(5)
        loop = Loop(make_model(), update_every=update_every, generator=generator)
        loop.model.load_state_dict(start)
        loop.step(*batch)
        if update_every == 2:
            loop.step(*batch)
        loop.model.load_state_dict(start)
        generator.manual_seed(6)
        loop.step(*batch)
        policies.append(loop.policy())
    assert_same(*policies)


def test_masks_of_a_step_that_is_let_pass_are_drawn_as_ever(make_model, batch):
    start, losses = make_model().state_dict(), []
    for update_every in (1, 4):
        loop = Loop(make_model(), update_every=update_every, policy_lr=0.0)
        loop.model.load_state_dict(start)
        torch.manual_seed(3)
        losses.append([loop.step(*batch) for _ in range(6)])
    assert_same(*losses)
    loop.model(batch[0])
    assert not loop.hook._queue.newest.sample.log_prob.requires_grad


@pytest.mark.parametrize("way", ["observe", "output_loss"])
def test_steps_are_let_pass_however_losses_come(make_model, batch, way):
    images, targets = batch
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []

    def loss_of(output, args, kwargs):
        calls.append(output)
        return F.cross_entropy(output, targets, reduction="none")

    arguments = {"output_loss": loss_of} if way == "output_loss" else {}
    hook = ReinforceHook(PolicyNoiseMask(p=1.0), optimizer, model=model, update_every=2, **arguments)
    for step in range(4):
        loss = F.cross_entropy(model(images), targets, reduction="none")
        if way == "observe":
            if step == 1:
                with pytest.raises(ValueError, match=r"per_sample_loss must have shape \(8,\)"):
                    hook.observe(loss.mean())
            assert torch.equal(hook.observe(loss), loss)
        assert len(hook._queue) == 0
        loss.mean().backward()
        optimizer.step()
    assert hook.metrics["samples_seen"] == 16
    assert len(calls) == (2 if way == "output_loss" else 0)


def test_a_resumed_training_learns_from_the_same_steps(make_model, batch):
    start = make_model().state_dict()

    def run(cut):
        loop = Loop(make_model(), update_every=3)
        loop.model.load_state_dict(start)
        for step in range(8):
            if step == cut:
                state = copy.deepcopy((loop.model.state_dict(), loop.optimizer.state_dict(), torch.get_rng_state()))
                loop = Loop(make_model(), seed=7, update_every=3)
                loop.model.load_state_dict(state[0])
                loop.optimizer.load_state_dict(state[1])
                torch.set_rng_state(state[2])
            loop.step(*batch)
        return loop.policy()

    whole = run(None)
    for cut in (2, 3, 4):
        assert_same(run(cut), whole)


def test_the_rate_knows_peaks_of_steps_that_were_let_pass(make_model, batch):
    loop = Loop(make_model(), update_every=2, policy_lr=0.02)
    for user_lr in (0.1, 0.4, 0.2):
        loop.optimizer.param_groups[0]["lr"] = user_lr
        loop.step(*batch)
    assert loop.hook.policy_optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


# -- learning from no step ---------------------------------------------------------------------------------------------


def test_a_frozen_mask_is_drawn_without_a_graph_and_reports_what_a_learned_one_does(make_model, batch):
    start, found = make_model().state_dict(), {}
    for frozen in (False, True):
        loop = Loop(make_model(), frozen=frozen)
        loop.model.load_state_dict(start)
        before = loop.policy()
        torch.manual_seed(3)
        output = loop.model(batch[0])
        assert loop.hook._queue.newest.sample.log_prob.requires_grad == (not frozen)
        losses = F.cross_entropy(output, batch[1], reduction="none")
        with loop.hook.paused():
            loop.criterion(output, batch[1]).backward()
        loop.hook.observe(losses)
        loop.optimizer.step()
        found[frozen] = loop.hook.metrics
        assert all(torch.equal(value, loop.policy()[name]) for name, value in before.items()) == frozen
    gradients = [found[frozen].pop("policy_grad_norm") for frozen in (False, True)]
    assert gradients[0] > 0 == gradients[1]
    # The learned one's mask is rendered from the same draw.
    assert found[False] == pytest.approx(found[True])


def test_a_frozen_mask_needs_no_losses(make_model, batch):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = ReinforceHook(PolicyNoiseMask(p=1.0, policy="static"), optimizer, model=model, frozen=True, max_pending=2)
    for accumulated in (1, 1, 1, 5):
        for _ in range(accumulated):
            F.cross_entropy(model(batch[0]), batch[1]).backward()
        assert 1 <= len(hook._queue) <= 2
        optimizer.step()
        assert len(hook._queue) == 0
    assert {name for name, value in hook.metrics.items() if value == 0} == {"samples_seen", "samples_dropped"}


def test_a_frozen_mask_is_that_of_a_static_policy(make_model, batch):
    """A spatial policy starts as Beta(1, 1) everywhere, so the cheaper static one draws the same masks."""
    masked = []
    for policy in ("spatial", "static"):
        torch.manual_seed(0)
        mask = PolicyNoiseMask(policy=policy)
        torch.manual_seed(1)
        masked.append(mask(batch[0]))
    assert torch.equal(*masked)


# -- copies and checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("kind", ["deepcopy", "pickle", "save"])
def test_copies_of_a_hooked_model_are_inert(make_model, batch, kind, waiting):
    images, _ = batch
    loop = Loop(make_model())
    if waiting:
        loop.model(images)
    if kind == "deepcopy":
        twin = copy.deepcopy(loop.model)
    elif kind == "pickle":
        twin = pickle.loads(pickle.dumps(loop.model))
    else:
        file = io.BytesIO()
        torch.save(loop.model, file)
        assert file.tell() < 50_000  # no policy inside
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    seen, _ = seen_by(twin)
    pending = len(loop.hook._queue)
    output = twin.train()(images)
    assert torch.equal(seen[0], images)
    assert len(loop.hook._queue) == pending
    copy.deepcopy(loop.criterion)(output, torch.arange(8) % 5)
    assert not loop.hook._queue.scored
    assert len(pickle.dumps(loop.criterion)) < 5_000


def test_a_copied_model_can_be_hooked_itself(make_model, batch):
    loop = Loop(make_model())
    twin = Loop(copy.deepcopy(loop.model))
    twin.step(*batch)
    assert (twin.hook.metrics["samples_seen"], loop.hook.metrics["samples_seen"]) == (8, 0)


def test_a_copied_optimizer_is_inert(make_model, batch):
    loop = Loop(make_model())
    loop.step(*batch)
    before = loop.policy()
    twin = copy.deepcopy(loop.optimizer)
    twin.step()
    assert twin.state_dict().keys() == {"state", "param_groups"}
    assert_same(loop.policy(), before)


@pytest.mark.parametrize("way", ["hook", "optimizer"])
@pytest.mark.parametrize("own_generator", [False, True])
def test_a_resumed_training_goes_on_bit_for_bit(make_model, batch, own_generator, way):
    """Save to a file that holds only tensors and plain numbers."""

    def start(seed):
        generator = torch.Generator().manual_seed(seed) if own_generator else None
        arguments = {"generator": generator, "state_in_optimizer": way == "optimizer"}
        return Loop(make_model(), seed=seed, mask={"p": 0.7}, baseline="moving_average", **arguments)

    loop = start(1)
    for _ in range(3):
        loop.step(*batch)
    state = {"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict(), "rng": torch.get_rng_state()}
    if way == "hook":
        state["hook"] = loop.hook.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    expected = [loop.step(*batch) for _ in range(3)]

    other = start(2)
    other.step(*batch)
    state = torch.load(file, weights_only=True)
    other.model.load_state_dict(state["model"])
    other.optimizer.load_state_dict(state["optimizer"])
    if way == "hook":
        other.hook.load_state_dict(state["hook"])
    torch.set_rng_state(state["rng"])
    assert_same([other.step(*batch) for _ in range(3)], expected)
    assert_same(other.model.state_dict(), loop.model.state_dict())
    assert_same(other.policy(), loop.policy())
    assert other.hook.metrics == loop.hook.metrics


def test_the_policy_travels_in_the_optimizers_state(make_model, batch):
    loop = Loop(make_model())
    loop.step(*batch)
    state = loop.optimizer.state_dict()
    assert state.keys() == {"state", "param_groups", "policy_noise"}
    assert_same(state["policy_noise"]["mask"], loop.policy())

    plain = torch.optim.SGD(make_model().parameters(), lr=0.3)
    plain.load_state_dict(state)  # a plain optimizer ignores it
    assert plain.param_groups[0]["lr"] == 0.1
    assert plain.state_dict().keys() == {"state", "param_groups"}

    other = Loop(make_model(), seed=4)
    before = other.policy()
    with pytest.warns(UserWarning, match="saved without a policy"):
        other.optimizer.load_state_dict(plain.state_dict())
    assert_same(other.policy(), before)
    other.optimizer.load_state_dict(state)
    assert_same(other.policy(), loop.policy())
    assert state.keys() == {"state", "param_groups", "policy_noise"}


def test_state_out_of_the_optimizer(make_model, batch, recwarn):
    loop = Loop(make_model(), state_in_optimizer=False)
    loop.step(*batch)
    state = loop.optimizer.state_dict()
    assert state.keys() == {"state", "param_groups"}
    loop.optimizer.load_state_dict(state)
    assert not recwarn.list


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_apply_and_observe_by_hand_are_the_hooks(make_model, batch):
    images, targets = batch
    hooked, manual = Loop(make_model()), Loop(make_model())
    manual.hook.remove()
    manual.model.load_state_dict(hooked.model.state_dict())
    manual.mask.load_state_dict(hooked.mask.state_dict())
    manual.hook = ReinforceHook(manual.mask, manual.optimizer)
    torch.manual_seed(3)
    for _ in range(3):
        hooked.step(images, targets)
    torch.manual_seed(3)
    for _ in range(3):
        losses = F.cross_entropy(manual.model(manual.hook.apply(images)), targets, reduction="none")
        loss = manual.hook.observe(losses).mean()
        manual.optimizer.zero_grad()
        loss.backward()
        manual.optimizer.step()
    torch.testing.assert_close(manual.model.state_dict(), hooked.model.state_dict())
    torch.testing.assert_close(manual.policy(), hooked.policy(), rtol=1e-4, atol=1e-6)


def test_observe_gives_the_papers_scaled_loss(make_model, batch):
    images, targets = batch
    loop = Loop(make_model(), estimator="paper")
    losses = F.cross_entropy(loop.model(images), targets, reduction="none")
    sample = loop.hook._queue.newest.sample
    factor = sample.cell_log_prob().exp().sum(1).log().mean().detach()
    torch.testing.assert_close(loop.hook.observe(losses), factor * losses)


def test_observed_losses_may_come_without_a_graph(make_model, batch):
    images, targets = batch
    loop = Loop(make_model())
    output = loop.model(images)
    with torch.no_grad():
        loop.hook.observe(F.cross_entropy(output, targets, reduction="none"))
    assert loop.hook.learner.observations == 1


@pytest.mark.parametrize("name", ["pixels", 1])
def test_the_named_input_is_masked(batch, name):
    class Model(nn.Module):
        def forward(self, first, second=None, *, pixels=None):
            return first, second, pixels

    model = Model()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    hook = ReinforceHook(PolicyNoiseMask(p=1.0), optimizer, model=model, input_name=name)
    images = batch[0]
    outputs = model(images, images, pixels=images)
    assert [torch.equal(output, images) for output in outputs] == [True, name != 1, name == 1]
    hook.remove()
    ReinforceHook(PolicyNoiseMask(p=1.0), optimizer, model=model)
    outputs = model(torch.zeros(8, dtype=torch.long), images)  # the first input that can be images
    assert not torch.equal(outputs[1], images)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"augmentation": nn.Identity()}, TypeError, "augmentation must be a StochasticAugmentation, got Identity"),
        ({"optimizer": nn.Linear(2, 2)}, TypeError, r"optimizer must be a torch\.optim\.Optimizer.*Linear"),
        ({"model": lambda x: x}, TypeError, r"model must be a torch\.nn\.Module, got function"),
        ({"criterion": F.cross_entropy}, TypeError, r"criterion must be a torch\.nn\.Module, got function.*observe"),
        ({"criterion": nn.CrossEntropyLoss}, TypeError, r"got the class: pass CrossEntropyLoss\(\)"),
        ({"model": nn.DataParallel(nn.Identity())}, TypeError, "DataParallel: .*use DistributedDataParallel"),
        ({"max_pending": 0}, ValueError, "max_pending must be at least 1, got 0"),
        ({"baseline": "median"}, ValueError, "baseline must be .*'median'"),
        ({"policy_lr": -1.0}, ValueError, r"lr must not be negative, got -1\.0"),
        ({"output_loss": F.cross_entropy}, TypeError, "output_loss replaces criterion"),
    ],
)
def test_arguments_are_refused_and_nothing_is_hooked(make_model, change, error, message):
    model, criterion = make_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = {
        "augmentation": PolicyNoiseMask(),
        "optimizer": optimizer,
        "model": model,
        "criterion": criterion,
        **change,
    }
    with pytest.raises(error, match=message):
        ReinforceHook(**arguments)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert not criterion._forward_hooks
    assert not optimizer._optimizer_step_post_hooks


class Sized(nn.Module):
    """A module whose truth value is False."""

    def __len__(self):
        return 0

    def forward(self, x):
        return x.mean()


@pytest.mark.parametrize("make", [None, Sized])
def test_a_model_that_is_hooked_already_is_refused(make_model, make):
    model, criterion = (make_model(), nn.CrossEntropyLoss()) if make is None else (make(), make())
    ReinforceHook(
        PolicyNoiseMask(),
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1),
        model=model,
        criterion=criterion,
    )
    other = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(RuntimeError, match=r"model is hooked already: call policy_noise.detach"):
        ReinforceHook(PolicyNoiseMask(), optimizer, model=model, criterion=other)
    assert (len(model._forward_pre_hooks), len(criterion._forward_hooks)) == (1, 1)
    assert not other._forward_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("pair", ["wrapper of it", "part of it", "neither has a model"])
def test_an_optimizer_has_no_two_hooks_that_would_mask_twice(make_model, pair):
    model = make_model()
    wrapper = nn.Sequential(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = {
        "wrapper of it": (model, wrapper),
        "part of it": (wrapper, model),
        "neither has a model": (None, None),
    }[pair]
    ReinforceHook(PolicyNoiseMask(), optimizer, model=first)
    with pytest.raises(RuntimeError, match=r"is hooked already: call policy_noise.detach"):
        ReinforceHook(PolicyNoiseMask(), optimizer, model=second)
    assert len(optimizer._optimizer_step_post_hooks) == 1


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.randn(3, 32, 32), TypeError, r"no floating-point tensor of 4 axes among \['\(3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, r"no floating-point tensor.*torch\.uint8"),
        (torch.randn(2, 1, 32, 32), ValueError, r"with C = 3, got \(2, 1, 32, 32\)"),
        (torch.randn(2, 3, 1, 1), ValueError, r"grid_size \(2, 2\) does not fit images of size \(1, 1\)"),
    ],
)
def test_images_are_refused_and_nothing_has_moved(make_model, batch, images, error, message):
    loop = Loop(make_model())
    loop.step(*batch)
    before, random = loop.hook.state_dict(), torch.get_rng_state()
    for _ in range(20):  # none of them waits for a loss
        with pytest.raises(error, match=message):
            loop.model(images)
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(loop.hook.state_dict(), before)
    loop.step(*batch)


def test_a_replica_of_data_parallel_is_refused_by_name(make_model, batch):
    loop = Loop(make_model())
    with pytest.raises(RuntimeError, match=r"replica of DataParallel.*use DistributedDataParallel"):
        loop.model._replicate_for_data_parallel()(batch[0])


@pytest.mark.parametrize("arguments", [{}, {"criterion": nn.MSELoss}, {"optimizer": "Adam"}])
def test_a_wrong_rebind_changes_nothing(make_model, batch, arguments):
    loop = Loop(make_model())
    if arguments:
        with pytest.raises(TypeError):
            loop.hook.rebind(**arguments)
    else:
        loop.hook.rebind()
    loop.step(*batch)
    assert loop.hook.metrics["samples_seen"] == 8


@pytest.mark.parametrize("name", [3, -1, "pixel_values"])
def test_an_input_that_is_not_there_is_refused(make_model, batch, name):
    loop = Loop(make_model(), input_name=name)
    with pytest.raises(TypeError, match=f"input_name is {name!r}, but the model was called with 1 positional"):
        loop.model(batch[0])


def test_observe_without_a_masked_batch_is_refused(make_model, batch):
    images, targets = batch
    loop = Loop(make_model())
    with pytest.raises(RuntimeError, match="observe was called but no masked batch waits"):
        loop.hook.observe(torch.zeros(8))
    losses = F.cross_entropy(loop.model(images), targets, reduction="none")
    loop.hook.observe(losses)
    with pytest.raises(RuntimeError, match="observe was called but no masked batch waits"):
        loop.hook.observe(losses)
    assert loop.hook.learner.observations == 1


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        (torch.tensor(1.0), ValueError, r"per_sample_loss must have shape \(8,\).* got \(\)"),
        (torch.zeros(7), ValueError, r"per_sample_loss must have shape \(8,\).* got \(7,\)"),
        (torch.zeros(8, 1), ValueError, r"per_sample_loss must have shape \(8,\).* got \(8, 1\)"),
        (0.5, TypeError, r"per_sample_loss must be a tensor of shape \(B,\), got float"),
    ],
)
def test_observe_refuses_and_the_batch_goes_on_waiting(make_model, batch, losses, error, message):
    images, targets = batch
    loop = Loop(make_model())
    output = loop.model(images)
    with pytest.raises(error, match=message):
        loop.hook.observe(losses)
    loop.hook.observe(F.cross_entropy(output, targets, reduction="none"))
    assert loop.hook.learner.observations == 1


@pytest.mark.parametrize(
    "break_it",
    [
        lambda state: {},
        lambda state: None,
        lambda state: nn.Linear(2, 2).state_dict(),
        lambda state: {**state, "mask": PolicyNoiseMask(grid_size=5).state_dict()},
        lambda state: {**state, "mask": PolicyNoiseMask(policy="static").state_dict()},
        lambda state: {name: value for name, value in state.items() if name != "seed"},
        lambda state: {**state, "optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1).state_dict()},
    ],
)
@pytest.mark.parametrize("way", ["hook", "optimizer"])
def test_a_foreign_state_is_refused_and_nothing_has_moved(make_model, batch, break_it, way):
    loop = Loop(make_model(), generator=torch.Generator().manual_seed(0))
    loop.step(*batch)
    before = copy.deepcopy(loop.optimizer.state_dict())
    foreign = break_it(copy.deepcopy(before["policy_noise"]))
    load, state = loop.hook.load_state_dict, foreign
    if way == "optimizer":
        load, state = loop.optimizer.load_state_dict, {**before, "policy_noise": foreign}
    with pytest.raises(ValueError, match="state_dict"):
        load(state)
    assert_same(loop.optimizer.state_dict(), before)


# -- a loop that nobody wrote for this package -------------------------------------------------------------------------


def train(model, optimizer, criterion, batches, *, dtype, accumulate=2):
    """Mixed precision, accumulation, clipping, a schedule by step, an EMA copy and validation, but no mask."""
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16, init_scale=2.0**8)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=len(batches) // accumulate)
    ema = None
    history = []
    for number, (images, targets) in enumerate(batches):
        with torch.autocast("cpu", dtype=dtype):
            loss = criterion(model(images.to(memory_format=torch.channels_last)), targets) / accumulate
        scaler.scale(loss).backward()
        history.append(loss.item() * accumulate)
        if (number + 1) % accumulate:
            continue
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if ema is None:
            ema = copy.deepcopy(model).eval().requires_grad_(False)
        with torch.no_grad():
            for average, value in zip(ema.parameters(), model.parameters(), strict=True):
                average.lerp_(value, 0.2)
            model.eval()
            criterion(model(images), targets)
            model.train()
    return ema, history


@pytest.mark.parametrize(("dtype", "preset"), [(torch.float16, "learned"), (torch.bfloat16, "paper")])
def test_a_loop_that_nobody_wrote_for_this_package(make_model, dtype, preset, recwarn):
    model = make_model(1, 2, batch_norm=True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(60):
        targets = torch.randint(2, (16,), generator=generator)
        images = torch.randn(16, 1, 16, 16, generator=generator)
        images[:, :, :8] += 2.0 * targets.view(-1, 1, 1, 1)
        batches.append((images, targets))
    small = {"policy": "test_resnet", "grid_size": 4, "kernel_size": 3, "sigma": 1.0} if preset == "paper" else {}

    hook = attach(model, optimizer, criterion, preset=preset, **small)  # the one added line
    before = copy.deepcopy(hook.augmentation.state_dict())

    ema, history = train(model, optimizer, criterion, batches, dtype=dtype)
    assert hook.metrics["samples_seen"] == 60 * 16
    assert any(not torch.equal(value, before[name]) for name, value in hook.augmentation.state_dict().items())
    assert hook.policy_optimizer.param_groups[0]["lr"] < 1e-4  # it has followed the schedule to its end
    assert sum(history[-10:]) < 0.8 * sum(history[:10])
    hook.remove()
    images, targets = batches[0]
    for network in (model, ema):
        assert (network.eval()(images).argmax(1) == targets).float().mean() > 0.9
    assert not [str(w.message) for w in recwarn if "policy" in str(w.message)]


def test_pairing_errors_name_themselves(make_model, batch):
    loop = Loop(make_model(), max_pending=2)
    for _ in range(2):
        loop.model(batch[0])
    with pytest.raises(PairingError, match="max_pending=2"):
        loop.model(batch[0])
    assert issubclass(PairingError, RuntimeError)


def test_a_hook_keeps_neither_model_nor_optimizer_alive(make_model, batch):
    loop = Loop(make_model())
    loop.step(*batch)
    model, hook = weakref.ref(loop.model), weakref.ref(loop.hook)
    del loop
    gc.collect()
    assert model() is None
    assert hook() is None
