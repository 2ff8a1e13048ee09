"""Which loss belongs to which masked batch."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from following import CLASSES, forward
from torch import nn

from policy_noise import PairingError, PolicyNoiseMask, ReinforceHook, attach
from policy_noise.hooks._pairing import Match, PairingQueue
from policy_noise.utils.misc import tensors_in


@pytest.fixture
def loop(make_model):
    """A hooked model with its parts, the samples that were drawn and the (sample, loss) pairs that were observed."""

    class Loop:
        def __init__(self, **arguments):
            self.model, self.criterion = make_model(), nn.CrossEntropyLoss()
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            self.mask = PolicyNoiseMask(p=1.0)
            self.hook = ReinforceHook(
                self.mask, self.optimizer, model=self.model, criterion=self.criterion, **arguments
            )
            self.drawn, self.observed = [], []
            draw, observe = self.mask.sample, self.hook.learner.observe

            def sample(*args):
                self.drawn.append(draw(*args))
                return self.drawn[-1]

            def record(sample, loss, valid=None):
                self.observed.append((sample, loss))
                return observe(sample, loss, valid)

            self.mask.sample, self.hook.learner.observe = sample, record

        def pairs(self):
            """Numbers of the draws, in the order in which their losses came."""
            samples = [sample for sample, _ in self.observed] + [pending.sample for pending in self.hook._queue.scored]
            return [next(i for i, s in enumerate(self.drawn) if s is sample) for sample in samples]

    return Loop


def images(count=4):
    return torch.randn(count, 3, 32, 32)


def labels(count=4):
    return torch.randint(5, (count,))


def test_losses_in_swapped_order_find_their_batch(loop):
    loop = loop()
    first, second = loop.model(images()), loop.model(images())
    targets = labels(), labels()
    (loop.criterion(second, targets[1]) + loop.criterion(first, targets[0])).backward()
    assert loop.pairs() == [1, 0]
    loop.optimizer.step()
    for (_, loss), output, target in zip(loop.observed, (second, first), targets[::-1], strict=True):
        torch.testing.assert_close(loss, F.cross_entropy(output, target, reduction="none").detach())


def test_a_forward_without_a_loss_is_passed_over(loop):
    loop = loop()
    loop.model(images())
    loop.criterion(loop.model(images()), labels())
    assert loop.pairs() == [1]


def test_many_steps_each_with_a_forward_without_a_loss(loop):
    loop = loop(max_pending=3)
    for _ in range(6):
        loop.model(images())
        loop.criterion(loop.model(images()), labels()).backward()
        loop.optimizer.step()
    assert loop.pairs() == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize(
    "between",
    [
        lambda output: output.float(),
        lambda output: output.double(),
        lambda output: output[:, :4],
        lambda output: output[torch.arange(len(output))],
        lambda output: output.clone().view(-1, 5) / 0.5,
        lambda output: F.log_softmax(output, 1).exp().clamp(min=1e-6).log(),
        lambda output: torch.cat([output, output], 1)[:, :5],
    ],
)
def test_what_stands_between_output_and_criterion(loop, between):
    loop = loop()
    first, second = loop.model(images()), loop.model(images())
    targets = torch.randint(4, (4,))
    loop.criterion(between(second), targets)
    loop.criterion(between(first), targets)
    assert loop.pairs() == [1, 0]


def test_losses_without_a_graph_mean_the_oldest_if_they_are_observed_by_hand(loop):
    loop = loop()
    first, second = loop.model(images()), loop.model(images())
    loop.criterion(second.detach(), labels())  # nothing is trained on it
    for output in (first, second):
        loop.hook.observe(F.cross_entropy(output.detach(), labels(), reduction="none"))
    assert loop.pairs() == [0, 1]


def test_a_second_loss_of_the_same_batch_is_not_another_batchs(loop):
    loop = loop()
    first, second = loop.model(images()), loop.model(images())
    loop.criterion(first, labels())
    loop.criterion(first, labels())
    loop.criterion(second, labels())
    assert loop.pairs() == [0, 1]


def test_observed_functions_find_their_batch_too(loop):
    loop = loop()
    first, second = loop.model(images()), loop.model(images())
    for output in (second, first):
        loop.hook.observe(F.cross_entropy(output, labels(), reduction="none"))
    assert loop.pairs() == [1, 0]


@pytest.mark.parametrize("how", ["eval", "paused", "mask"])
def test_a_loss_of_an_unmasked_forward_is_not_the_waiting_batchs(loop, how):
    """A loop that forgets no_grad: the loss must not be matched with this forward."""
    loop = loop()
    waiting = loop.model(images())
    if how == "eval":
        loop.model.eval()
    if how == "mask":
        loop.mask.eval()
    if how == "paused":
        with loop.hook.paused():
            output = loop.model(images(6))
    else:
        output = loop.model(images(6))
    loop.criterion(output, labels(6))
    assert loop.pairs() == []
    loop.model.train()
    loop.criterion(waiting, labels())
    assert loop.pairs() == [0]


def test_nested_outputs(make_model):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_model()

        def forward(self, x):
            output = self.inner(x)
            return {"logits": output, "more": [output * 2, (output + 1,)]}

    model, criterion = Two(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = ReinforceHook(PolicyNoiseMask(), optimizer, model=model, criterion=criterion)
    first, second = model(images(4)), model(images(6))
    criterion(second["more"][1][0], labels(6))
    criterion(first["logits"], labels(4))
    assert [len(pending) for pending in hook._queue.scored] == [6, 4]


def test_tensors_in_finds_them_all():
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    found = list(tensors_in({"a": a, "b": [b, ("text", c, None)], "c": 3}))
    assert [int(tensor) for tensor in found] == [0, 1, 2]


def test_forwards_without_losses_are_refused_in_the_end(loop):
    loop = loop(max_pending=3)
    for _ in range(3):
        loop.model(images())
    refused = images()
    random = torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(
            PairingError, match=r"no loss was observed for the first 3 masked forwards .*max_pending=3.*paused"
        ):
            loop.model(refused)
    assert len(loop.drawn) == 3
    assert torch.equal(torch.get_rng_state(), random)


def test_forwards_without_losses_are_refused_also_with_steps_between(loop):
    loop = loop(max_pending=3)
    for _ in range(3):
        F.cross_entropy(loop.model(images()), labels()).backward()
        loop.optimizer.step()
    with pytest.raises(PairingError):
        loop.model(images())


def test_paused_forwards_need_no_loss(loop):
    loop = loop(max_pending=2)
    with loop.hook.paused():
        for _ in range(5):
            loop.model(images())
    loop.criterion(loop.model(images()), labels())
    assert loop.pairs() == [0]


def test_a_mask_from_before_a_step_is_not_learned_from(loop):
    """Its graph belongs to weights that have been updated since."""
    loop = loop()
    early = loop.model(images())
    loop.criterion(loop.model(images()), labels()).backward()
    loop.optimizer.step()
    loop.criterion(early, labels())
    assert loop.pairs() == [1]


def test_another_networks_loss_is_not_credited_to_a_waiting_batch():
    """A peer or a teacher calls the hooked criterion while a masked batch waits."""
    torch.manual_seed(0)
    model, peer = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
    hook = attach(model, optimizer, criterion, in_chans=1, grid_size=4)
    images, targets = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    output = model(images)
    criterion(peer(images), targets)
    assert not hook._queue.scored
    criterion(output, targets)
    assert len(hook._queue.scored) == 1


def test_a_forward_without_a_loss_is_told_once(loop):
    loop = loop(max_pending=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            loop.model(images())
            loop.criterion(loop.model(images()), labels()).backward()
            loop.optimizer.step()
    assert sum("a masked forward had no loss" in str(w.message) for w in caught) == 1


def test_gather_averages_the_rows_of_an_image():
    queue = PairingQueue(8)
    forward(queue, 3, CLASSES)
    match = Match(queue.newest, torch.tensor([0, 0, 2, -1]))
    losses, valid = match.gather(torch.tensor([1.0, 3.0, 5.0, 100.0]))
    assert losses.tolist() == [2, 0, 5]
    assert valid.tolist() == [True, False, True]
    losses, valid = match.gather(torch.tensor([1.0, torch.nan, 5.0, 1.0]), torch.tensor([True, False, False, True]))
    assert losses.tolist() == [1, 0, 0]
    assert valid.tolist() == [True, False, False]
    with pytest.raises(PairingError, match="4 rows"):
        match.gather(torch.zeros(5))


def test_an_index_is_given():
    queue = PairingQueue(8)
    a = forward(queue, 3, CLASSES)
    assert queue.given(torch.tensor([2, -1]), 2)[0].index.tolist() == [2, -1]
    forward(queue, 4, CLASSES)
    with pytest.raises(PairingError, match="2 wait"):
        queue.given([0, 1], 2)
    assert queue.given([0, 1], 2, [a.mean(0)])[0].pending.number == 1
    matches = queue.given([(0, [0, -1]), (-1, [-1, 3])], 2)
    assert [match.pending.number for match in matches] == [1, 2]
    with pytest.raises(ValueError, match=r"-1 .* to 3, got 0 to 4"):
        queue.given([(1, [0, 4])], 2)
    with pytest.raises(ValueError, match="2 losses"):
        queue.given([(1, [0])], 2)
    with pytest.raises(TypeError, match="integers"):
        queue.given([(1, [0.5, 1.0])], 2)
    with pytest.raises(ValueError, match="forward 2"):
        queue.given([(2, [0, 1])], 2)
