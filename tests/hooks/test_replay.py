"""Repeated forwards (checkpointing), and steps other than the task's (attacks, GANs)."""

import inspect

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from policy_noise import RandomShading, attach
from policy_noise.hooks._draws import Draws

TELLS = "reason" in inspect.signature(torch.compiler.disable).parameters


def start(make_model, **settings):
    torch.manual_seed(0)
    model, criterion = make_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, criterion, attach(model, optimizer, criterion, **{"p": 1.0, "grid_size": 4, **settings})


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def checkpointed(model, images):
    return checkpoint(model, images, use_reentrant=False, preserve_rng_state=False)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("leaf", [False, True])
def test_a_checkpointed_model_has_the_gradients_of_a_plain_one(make_model, batch, leaf, autocast):
    """Recomputation draws nothing. It repeats the forward's masks, whatever state the generators are in."""
    found = []
    for call in (lambda model, images: model(images), checkpointed):
        model, optimizer, criterion, hook = start(make_model)
        images = batch[0].clone().requires_grad_(leaf)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = criterion(call(model, images), batch[1])
        loss.backward()
        found.append([loss.detach(), *gradients(model), *([images.grad] if leaf else [])])
        optimizer.step()
        found[-1] += [parameter.detach().clone() for parameter in hook.augmentation.parameters()]
        assert hook.metrics["samples_seen"] == 8
    for plain, repeated in zip(*found, strict=True):
        assert torch.equal(plain, repeated)


def test_a_model_in_bf16_is_checkpointed_too(make_model, batch):
    found = []
    for call in (lambda model, images: model(images), checkpointed):
        model, _, criterion, _ = start(lambda: make_model().to(torch.bfloat16))
        criterion(call(model, batch[0].to(torch.bfloat16)), batch[1]).backward()
        found.append(gradients(model))
    assert all(torch.equal(plain, repeated) for plain, repeated in zip(*found, strict=True))


def test_two_checkpointed_forwards_of_two_batches_keep_their_own_masks(make_model, batch):
    found = []
    first, second = batch[0][:4].clone(), batch[0][4:].clone()
    for call in (lambda model, images: model(images), checkpointed):
        model, _, criterion, _ = start(make_model)
        outputs = call(model, first), call(model, second)
        for output, targets in zip(outputs, batch[1].split(4), strict=True):
            criterion(output, targets).backward()
        found.append(gradients(model))
    assert all(torch.equal(plain, repeated) for plain, repeated in zip(*found, strict=True))


def test_one_batch_checkpointed_twice_is_refused(make_model, batch):
    """Several forwards drew different masks for the very same tensor (R-Drop), so it is unknown which to repeat."""
    model, _, criterion, _ = start(make_model)
    loss = sum(criterion(checkpointed(model, batch[0]), batch[1]) for _ in range(2))
    with pytest.raises(RuntimeError, match=r"give each its own copy, model\(images.clone\(\)\)"):
        loss.backward()


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    reason="older releases of torch do not tell a checkpointed forward, so such a batch is refused",
)
def test_a_plain_forward_of_the_same_batch_is_no_hindrance(make_model, batch):
    model, _, criterion, _ = start(make_model)
    criterion(model(batch[0]), batch[1])
    criterion(checkpointed(model, batch[0]), batch[1]).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model))


def test_views_that_are_copies_may_be_checkpointed_together(make_model, batch):
    found = []
    views = [batch[0].clone() for _ in range(2)]
    for call in (lambda model, images: model(images), checkpointed):
        model, _, criterion, _ = start(make_model)
        sum(criterion(call(model, view), batch[1]) for view in views).backward()
        found.append(gradients(model))
    for plain, repeated in zip(*found, strict=True):
        torch.testing.assert_close(plain, repeated)


# -- steps that are not the task's -------------------------------------------------------------------------------------


def test_an_attacks_inner_steps_are_not_rewarded(make_model, batch):
    """PGD: the attack is computed without masks, then the training step on it is masked and rewarded."""
    model, optimizer, criterion, hook = start(make_model)
    images, targets = batch
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    for _ in range(2):
        attack = torch.zeros_like(images, requires_grad=True)
        with hook.paused():
            for _ in range(3):
                (gradient,) = torch.autograd.grad(criterion(model(images + attack), targets), attack)
                attack = (attack + 0.01 * gradient.sign()).detach().requires_grad_()
                assert torch.allclose(seen[-1], images, atol=0.031)
        assert not hook._queue.scored
        optimizer.zero_grad()
        attacked = images + attack.detach()
        criterion(model(attacked), targets).backward()
        assert not torch.equal(seen[-1], attacked)
        assert len(hook._queue.scored) == 1
        optimizer.step()
    assert hook.metrics["samples_seen"] == 16


def test_a_generators_step_through_the_hooked_discriminator_is_not_rewarded(make_model, batch):
    """A GAN: real images are masked in the discriminator's step, and nothing in the generator's."""
    discriminator, criterion = make_model(classes=1), nn.BCEWithLogitsLoss()
    generator = nn.Linear(4, 3 * 32 * 32)
    steps = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (discriminator, generator)]
    hook = attach(discriminator, steps[0], criterion, p=1.0, grid_size=4)
    seen = []
    discriminator.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for _ in range(2):
        fake = generator(torch.randn(8, 4)).view(8, 3, 32, 32)
        real, false = discriminator(batch[0]), discriminator(fake.detach())
        loss = criterion(real, torch.ones_like(real)) + criterion(false, torch.zeros_like(false))
        steps[0].zero_grad()
        loss.backward()
        steps[0].step()
        before = [parameter.clone() for parameter in hook.augmentation.parameters()]
        with hook.paused():
            judged = discriminator(fake)
            steps[1].zero_grad()
            criterion(judged, torch.ones_like(judged)).backward()
        steps[1].step()
        assert seen[-1] is fake
        assert not hook._queue.scored
        assert all(torch.equal(a, b) for a, b in zip(before, hook.augmentation.parameters(), strict=True))
    assert hook.metrics["samples_seen"] == 32


def test_a_whole_graph_compiled_before_attaching_trains(make_model, batch):
    model, criterion = torch.compile(make_model(), fullgraph=True, backend="eager"), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, optimizer, criterion)
    criterion(model(batch[0]), batch[1]).backward()
    optimizer.step()
    assert hook.metrics["samples_seen"] == 8


@pytest.mark.skipif(not TELLS, reason="older releases of Dynamo show no reason")
def test_a_whole_graph_compiled_after_attaching_says_why_not(make_model, batch):
    torch._dynamo.reset()  # its cache ignores hooks
    model, *_ = start(make_model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="compile the model first, then attach"):
        compiled(batch[0])


def test_all_draws_of_a_step_and_of_each_hook_differ():
    images = torch.rand(2, 1, 8, 8)
    actions = []
    for number in range(3):
        draws = Draws(RandomShading(p=1.0), None, number)
        for _ in range(20):
            actions += [draws.draw(images, with_graph=False).action.flatten() for _ in range(4)]
            draws.advance()
    assert len(torch.stack(actions).unique(dim=0)) == len(actions)
