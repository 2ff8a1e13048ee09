"""Losses whose rows are not the batch's, from the model's output to the policy's step."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from policy_noise import PairingError, attach

LABELLED = torch.tensor([True, False, True, True, False, False, True, False])


def plain(model, folder):
    return model


def in_ddp(model, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    return DistributedDataParallel(model)


def compiled(model, folder):
    return torch.compile(model, backend="eager")


@pytest.fixture
def world():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def observations(hook):
    """The losses of each forward's images; NaN if an image had none."""
    found = [(o.loss, o.valid) for o in hook.learner._window]
    for pending in hook._queue.scored:
        found += [match.gather(term.losses.values, term.losses.valid) for term, match in pending.terms]
    return [loss if valid is None else torch.where(valid, loss, torch.nan).detach() for loss, valid in found]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("wrap", [plain, in_ddp, compiled])
def test_labelled_rows_are_paired_behind_wrappers(make_model, batch, tmp_path, world, wrap, autocast):
    x, y = batch
    model = wrap(make_model(), tmp_path)
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, optimizer, criterion, grid_size=4, p=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(x)
        loss = criterion(output[LABELLED], y[LABELLED])
        expected = F.cross_entropy(output.detach().float(), y, reduction="none")
    (seen,) = observations(hook)
    torch.testing.assert_close(seen, expected.where(LABELLED, torch.nan), equal_nan=True)
    loss.backward()
    optimizer.step()
    assert hook.metrics["reward"] == pytest.approx(float(expected[LABELLED].mean()), rel=1e-5)


def test_images_without_a_loss_do_not_count(make_model, batch):
    """Half the images have labels. The policy's step equals that of observing their losses by hand."""
    x, y = batch
    policies = []
    for by_hand in (False, True):
        torch.manual_seed(0)
        model, criterion = make_model(), nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hook = attach(
            model, optimizer, None if by_hand else criterion, preset="learned", grid_size=4, p=1.0, policy_lr=0.1
        )
        before = copy.deepcopy(hook.augmentation.state_dict())
        for _ in range(2):
            output = model(x)
            if by_hand:
                hook.observe(F.cross_entropy(output, y, reduction="none"), valid=LABELLED)
            criterion(output[LABELLED], y[LABELLED]).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert any(not torch.equal(value, before[name]) for name, value in hook.augmentation.state_dict().items())
        policies.append(hook.augmentation.state_dict())
    torch.testing.assert_close(*policies)


def test_auxiliary_outputs_join_one_loss(make_model, batch):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = make_model(), make_model()

        def forward(self, x):
            return {"out": self.first(x), "aux": [self.second(x)]}

    (x, y), model, criterion = batch, Two(), nn.CrossEntropyLoss()
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion, grid_size=4, p=1.0)
    output = model(x)
    out, aux = output["out"], output["aux"][0]
    criterion(torch.cat([out, aux[LABELLED]]), torch.cat([y, y[LABELLED]]))
    (seen,) = observations(hook)
    first, second = (F.cross_entropy(o.detach(), y, reduction="none") for o in (out, aux))
    torch.testing.assert_close(seen, torch.where(LABELLED, (first + second) / 2, first))


@pytest.mark.parametrize("graph", [True, False])
def test_losses_are_observed_with_an_index(make_model, batch, graph):
    (x, y), model = batch, make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, optimizer, preset="learned", grid_size=4, p=1.0)
    index = torch.tensor([5, 0, 5, -1])
    losses = F.cross_entropy(model(x)[index], y[index], reduction="none")
    returned = hook.observe(losses if graph else losses.detach(), index=index)
    (seen,) = observations(hook)
    expected = torch.full((8,), torch.nan)
    expected[5], expected[0] = losses[0].detach(), losses[1].detach()
    torch.testing.assert_close(seen, expected, equal_nan=True)
    assert torch.equal(returned, losses)
    losses.mean().backward()
    optimizer.step()
    assert hook.metrics["reward"] == pytest.approx(float(losses[:2].detach().mean()), rel=1e-5)


@pytest.mark.parametrize("head", ["mean", "last", "recurrent"])
def test_frames_of_clips(make_model, batch, head):
    """Of eight frames in two clips all are rewarded, or those that the loss came from. Recurrence is refused."""
    x, model, criterion = batch[0], make_model(), nn.CrossEntropyLoss()
    targets = torch.tensor([0, 1])
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion, grid_size=4, p=1.0)
    features = model(x).view(2, 4, -1)
    if head == "recurrent":
        output = nn.LSTM(5, 5, batch_first=True)(features)[0][:, -1]
        with pytest.raises(PairingError, match="index"):
            criterion(output, targets)
        losses = F.cross_entropy(output, targets, reduction="none")
        hook.observe(losses.detach().repeat_interleave(4))
    else:
        output = features.mean(1) if head == "mean" else features[:, -1]
        criterion(output, targets)
    losses = F.cross_entropy(output, targets, reduction="none").detach()
    expected = losses.repeat_interleave(4)
    if head == "last":
        expected[[0, 1, 2, 4, 5, 6]] = torch.nan
    torch.testing.assert_close(observations(hook)[0], expected, equal_nan=True)
