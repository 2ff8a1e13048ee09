"""Rows of losses are followed through known operations to their images, and any other operation is refused."""

import random
import types

import pytest
import torch
import torch.nn.functional as F
from following import CLASSES, foreign, forward, told, truth
from torch import nn

from policy_noise.hooks import _rows as rows
from policy_noise.hooks._pairing import PairingError, PairingQueue

VALID = torch.tensor([True, False, True, True, False, False, True, True])
LONG = torch.tensor([3, 3, 0, 7, -1])

FOLLOWED = {
    "slice": lambda o: o[:5],
    "slice with a step": lambda o: o[1::3],
    "slice of one": lambda o: o[2:3],
    "negative slice": lambda o: o[-3:-1],
    "bool": lambda o: o[VALID],
    "long": lambda o: o[LONG],
    "long of one": lambda o: o[torch.tensor([4])],
    "none valid": lambda o: o[torch.zeros(8, dtype=torch.bool)],
    "index_select": lambda o: o.index_select(0, LONG[:4]),
    "columns by index": lambda o: o[:, torch.tensor([0, 2, 2])],
    "rows and columns by index": lambda o: o[torch.tensor([1, 5]), torch.tensor([0, 2])].unsqueeze(1),
    "chunk": lambda o: o.chunk(2)[1],
    "split with sizes": lambda o: o.split([3, 4, 1])[1],
    "split along another axis": lambda o: o.split(2, dim=1)[1],
    "unbind of views": lambda o: o.view(2, 4, -1).unbind(0)[1],
    "cat with another network": lambda o: torch.cat([foreign(3, CLASSES), o]),
    "cat of pieces": lambda o: torch.cat([o[6:], foreign(1, CLASSES), o[:1], o[2:4]]),
    "cat with one part without a graph": lambda o: torch.cat([torch.full((3, CLASSES), -1.0), o[:4]]),
    "cat along features": lambda o: torch.cat([o, o * 1], 1),
    "stack with another network": lambda o: torch.stack([o, foreign(8, CLASSES)]).flatten(0, 1),
    "stack, then the other": lambda o: torch.cat([torch.stack([foreign(8, CLASSES), o])[1], foreign(2, CLASSES)]),
    "repeat_interleave": lambda o: o.repeat_interleave(2, 0),
    "expanded and flattened": lambda o: o.unsqueeze(1).expand(8, 3, CLASSES).reshape(24, CLASSES),
    "gather classes": lambda o: o[:4].gather(1, torch.zeros(4, 1, dtype=torch.long)),
    "two halves compared": lambda o: torch.stack(o.chunk(2), 1),
    "two halves apart": lambda o: torch.cat([half.unsqueeze(1) for half in o.chunk(2)], 1),
    "select one image": lambda o: o[3],
    "squeezed": lambda o: o[:, :1].squeeze(1)[2:],
    "einsum": lambda o: torch.einsum("bc->cb", o).transpose(0, 1)[2:],
    "einsum of rows": lambda o: torch.einsum("bc,kc->bk", o[2:], torch.eye(CLASSES, requires_grad=True)),
    "classes of a hand-written cross-entropy": lambda o: o[1:].gather(1, torch.zeros(7, 1, dtype=torch.long)),
    "rows of two axes": lambda o: o.view(2, 4, -1)[:, 1:3].flatten(0, 1),
    "a token of each clip": lambda o: o.view(4, 2, -1)[:, 0],
    "repeated features": lambda o: o[3:].repeat(1, 2),
    "padded features": lambda o: F.pad(o[3:], (1, 1), value=-1.0),
    "the other side of a similarity": lambda o: (torch.eye(CLASSES, requires_grad=True) @ o[2:5].t() * 1.0).t(),
    "cast": lambda o: o.half().float()[:3],
    "log-softmax keeps rows": lambda o: o[2:5] + 0 * F.log_softmax(o[2:5], 1),
}


@pytest.mark.parametrize("move", FOLLOWED.values(), ids=FOLLOWED.keys())
def test_rows_are_followed(move):
    queue = PairingQueue(8)
    tensor = move(forward(queue, 8, CLASSES))
    (match,) = queue.find([tensor])
    assert told(match, len(tensor)) == truth(tensor)


DENSE = {
    "pixels as rows": lambda o: o.permute(0, 2, 3, 1).reshape(-1, 3),
    "pixels by flatten": lambda o: o.flatten(2).transpose(1, 2).reshape(-1, 3),
    "channels last in memory": lambda o: (
        o.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(0, 2)
    ),
    "labelled pixels": lambda o: o.permute(0, 2, 3, 1)[torch.arange(80).reshape(4, 4, 5) % 3 == 0],
    "pixels there and back": lambda o: (
        F.linear(o.permute(0, 2, 3, 1).reshape(-1, 3), torch.eye(3, requires_grad=True))
        .view(4, 4, 5, 3)[1:, 2]
        .flatten(0, 1)
    ),
    "batch and channels merged": lambda o: o.flatten(0, 1),
    "all flat": lambda o: o.reshape(-1),
    "a token": lambda o: o.flatten(2)[2:, :, 0],
    "uneven view": lambda o: o.reshape(24, 10),
}


@pytest.mark.parametrize("move", DENSE.values(), ids=DENSE.keys())
def test_pixels_are_followed_to_their_images(move):
    queue = PairingQueue(8)
    tensor = move(forward(queue, 4, 3, 4, 5))
    (match,) = queue.find([tensor])
    assert told(match, len(tensor)) == truth(tensor)


@pytest.mark.parametrize(
    "move",
    [
        lambda o: o,
        lambda o: o.float().double(),
        lambda o: o.half(),
        lambda o: o.clone().view(8, -1) / 2,
        lambda o: o[:, :4],
        lambda o: F.log_softmax(o, 1).exp(),
        lambda o: F.batch_norm(o, None, None, training=True),
        lambda o: torch.cat([o, foreign(8, 2)], 1),
        lambda o: o.t().t(),
        lambda o: nn.Linear(3, 3)(o.view(8, 2, 3)),
        lambda o: nn.LayerNorm(3)(o.view(4, 2, 2, 3)).view(8, 6),
        lambda o: F.interpolate(o.view(8, 1, 2, 3), scale_factor=2),
        lambda o: F.scaled_dot_product_attention(*[o.view(8, 1, 2, 3)] * 3),
        lambda o: F.linear(o, torch.ones(4, CLASSES, requires_grad=True), torch.zeros(4, requires_grad=True)),
        lambda o: o @ torch.randn(CLASSES, 8, requires_grad=True),
        lambda o: F.normalize(o) @ F.normalize(o).t(),
    ],
)
def test_rows_that_stay_cost_no_operation(move):
    queue = PairingQueue(8)
    tensor = move(forward(queue, 8, CLASSES))
    operations = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            operations.append(str(function))
            return function(*args, **(kwargs or {}))

    with Record():
        (match,) = queue.find([tensor])
    assert match.index is None
    assert [o for o in operations if "detach" not in o and "alias" not in o] == []


@pytest.mark.parametrize(
    "average",
    [
        lambda o: sum(o.chunk(2)) / 2,
        lambda o: torch.stack(o.chunk(2), 1).mean(1),
        lambda o: torch.stack(o.chunk(2), 1).amax(1),
        lambda o: torch.cat([part[:, None] for part in o.chunk(2)], 1).softmax(1).flatten(1),
    ],
)
def test_views_that_are_averaged_all_get_the_loss(average):
    queue = PairingQueue(8)
    (match,) = queue.find([average(forward(queue, 8, CLASSES))])
    losses, valid = match.gather(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert losses.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    assert valid.all()


@pytest.mark.parametrize(
    "pool",
    [
        lambda o: o.view(4, 2, CLASSES).mean(1),
        lambda o: torch.cat([torch.zeros(4, 1, CLASSES, requires_grad=True) * 1.0, o.view(4, 2, CLASSES)], 1).cumsum(1)[
            :, 2
        ],
        lambda o: o.view(4, 2 * CLASSES) @ torch.ones(2 * CLASSES, 3, requires_grad=True),
    ],
    ids=["mean", "after a class token", "linear"],
)
def test_frames_of_a_clip_all_get_its_loss(pool):
    queue = PairingQueue(8)
    (match,) = queue.find([pool(forward(queue, 8, CLASSES))])
    losses, _ = match.gather(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert losses.tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


class Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, order):
        ctx.order = order
        return tensor[order]

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient).index_copy(0, ctx.order, gradient), None


class Mul(torch.autograd.Function):
    """Has the name of an operation of torch, and yet moves rows."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.flip(0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.flip(0)


def put(o):
    target = torch.zeros(8, CLASSES)
    target[torch.arange(8).flip(0)] = o
    return target


def write_a_part(o):
    o = o * 1.0
    o[:4] = o[4:].clone()
    return o


ORDER = torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])
REFUSED = {
    "index_put": put,
    "a part is written": write_a_part,
    "index_copy": lambda o: torch.zeros(8, CLASSES).index_copy(0, ORDER, o),
    "index_add": lambda o: torch.zeros(8, CLASSES).index_add(0, ORDER, o),
    "scatter": lambda o: torch.zeros(8, CLASSES).scatter(0, ORDER[:, None].expand(-1, CLASSES), o),
    "embedding": lambda o: F.embedding(ORDER, o),
    "a sparse factor": lambda o: torch.sparse.mm(torch.eye(8).flip(0).to_sparse(), o),
    "a sparse factor by @": lambda o: torch.eye(8).flip(0).to_sparse() @ o,
    "a square factor that mixes rows": lambda o: foreign(8, 8) @ o,
    "rows mixed, then a right factor": lambda o: foreign(8, 8) @ o @ torch.ones(CLASSES, 3),
    "rows mixed by addmm": lambda o: torch.addmm(foreign(8, CLASSES), torch.eye(8).flip(0), o),
    "rows mixed by einsum": lambda o: torch.einsum("ij,jc->ic", foreign(8, 8), o),
    "rows mixed by bmm": lambda o: torch.bmm(foreign(1, 8, 8), o[None])[0],
    "a Function that permutes": lambda o: Permute.apply(o, ORDER),
    "a Function named as an operation": lambda o: Mul.apply(o),
    "flip": lambda o: o.flip(0),
    "roll": lambda o: o.roll(3, 0),
    "rolled flat": lambda o: o.roll(3),
    "rot90": lambda o: torch.rot90(o, 2, (0, 1)),
    "gather": lambda o: o.gather(0, ORDER[:, None].expand(-1, CLASSES)),
    "take_along_dim": lambda o: torch.take_along_dim(o, ORDER[:, None], 0),
    "take": lambda o: o.take(torch.arange(8) * CLASSES),
    "masked_select": lambda o: o.masked_select(VALID.unsqueeze(1)),
    "repeat": lambda o: o.repeat(2, 1),
    "sort": lambda o: o.sort(0).values,
    "topk": lambda o: o.topk(8, 0).values,
    "cumsum": lambda o: o.cumsum(0),
    "softmax over the batch": lambda o: o.softmax(0),
    "sum": lambda o: o.sum(),
    "mean over the batch": lambda o: o.mean(0),
    "mean over all axes": lambda o: o.mean((0, 1), keepdim=True),
    "centred": lambda o: o - o.mean(0),
    "transposed": lambda o: o.t(),
    "transposed tokens": lambda o: o.view(8, 2, 3).transpose(0, 1),
    "padded rows": lambda o: F.pad(o, (0, 0, 1, -1)),
    "as_strided": lambda o: o.as_strided((8, 2), (1, 1)),
    "diagonal": lambda o: (o @ o.t()).diagonal(),
    "columns summed": lambda o: (foreign(3, CLASSES) @ o.t()).sum(0),
    "columns of a similarity": lambda o: foreign(8, CLASSES) @ o.t(),
    "columns picked": lambda o: (foreign(8, CLASSES) @ o.t()).softmax(1).t(),
    "an axis before the batch": lambda o: (torch.ones(8, 1, 1, requires_grad=True) * o)[:, 0],
    "two parts without a graph": lambda o: torch.cat([torch.zeros(1, CLASSES), o, torch.zeros(2, CLASSES)]),
    "stacked and averaged": lambda o: torch.stack(o.chunk(2)).mean(0),
    "recurrence over frames": lambda o: nn.LSTM(CLASSES, 3, batch_first=True)(o.view(4, 2, CLASSES))[0][:, -1],
    "a compiled head": lambda o: torch.compile(nn.Linear(CLASSES, 2), backend="aot_eager")(o),
    "a checkpointed head": lambda o: torch.utils.checkpoint.checkpoint(nn.Linear(CLASSES, 2), o, use_reentrant=True),
}


@pytest.mark.parametrize("move", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_known_is_refused_and_names_the_remedy(move):
    queue = PairingQueue(8)
    tensor = move(forward(queue, 8, CLASSES))
    with pytest.raises(PairingError, match=r"8 images.*hook\.observe\(losses, index=\.\.\.\)"):
        queue.find([tensor])


def test_one_argument_that_cannot_be_followed_is_enough():
    queue = PairingQueue(8)
    output = forward(queue, 8, CLASSES)
    with pytest.raises(PairingError, match="index"):
        queue.find([output, output.flip(0)])
    (match,) = queue.find([output, output.mean(0)])  # no argument of one row per image
    assert match.index is None


def test_rows_of_a_freed_graph_are_refused():
    queue = PairingQueue(8)
    picked = forward(queue, 8, CLASSES)[LONG]
    picked.sum().backward()
    with pytest.raises(PairingError, match="index"):
        queue.find([picked])


def test_an_index_that_was_changed_in_place_is_refused():
    queue = PairingQueue(8)
    index = LONG.clone()
    picked = forward(queue, 8, CLASSES)[index]
    index.zero_()
    with pytest.raises(PairingError, match="index"):
        queue.find([picked])


def test_errors_of_the_replay_itself_are_not_hidden(monkeypatch):
    monkeypatch.setattr(rows, "_pick", lambda *_: None.missing)
    queue = PairingQueue(8)
    with pytest.raises(AttributeError, match="missing"):
        queue.find([forward(queue, 8, CLASSES)[:3]])


def test_several_forwards_share_a_loss():
    queue = PairingQueue(8)
    a, b = forward(queue, 4, CLASSES), forward(queue, 3, CLASSES)
    first, second = queue.find([torch.cat([a, b[[2, 0]]])])
    assert first.index.tolist() == [0, 1, 2, 3, -1, -1]
    assert second.index.tolist() == [-1, -1, -1, -1, 2, 0]
    losses, valid = second.gather(torch.arange(6.0))
    assert losses.tolist() == [5, 0, 4]
    assert valid.tolist() == [True, False, True]


def test_triplets_of_three_forwards():
    queue = PairingQueue(8)
    outputs = [forward(queue, 4, CLASSES) for _ in range(3)]
    matches = queue.find(outputs)
    assert [match.pending.number for match in matches] == [1, 2, 3]
    assert all(match.index is None for match in matches)


def test_triplets_of_one_forward():
    queue = PairingQueue(8)
    output = forward(queue, 6, CLASSES)
    (match,) = queue.find([output[0::3], output[1::3], output[2::3]])
    assert told(match, 2) == [[0, 1, 2], [3, 4, 5]]


def test_deep_heads_behind_a_hooked_backbone():
    queue = PairingQueue(8)
    head = nn.Sequential(*[layer for _ in range(40) for layer in (nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU())])
    (match,) = queue.find([head(forward(queue, 4, CLASSES))])
    assert match.index is None
    queue.clear()
    (match,) = queue.find([head(forward(queue, 4, CLASSES)[:2])])
    assert match.index.tolist() == [0, 1]


def test_foreign_graphs_lead_nowhere():
    queue = PairingQueue(8)
    forward(queue, 4, CLASSES)
    deep = foreign(4, CLASSES)
    for _ in range(2000):
        deep = deep + 1
    assert queue.find([deep]) == []


def test_two_queues_mark_one_output():
    first, second = PairingQueue(8), PairingQueue(8)
    output = forward(first, 4, CLASSES)
    second.push(types.SimpleNamespace(applied=torch.ones(4, dtype=torch.bool)))
    second.mark(output, second.newest)
    assert len(first.find([output])) == len(second.find([output])) == 1


def test_residual_connections_do_not_pile_up_origins():
    queue = PairingQueue(8)
    output = forward(queue, 4, CLASSES)
    for _ in range(10):
        output = output + (output * 2).tanh()
    (match,) = queue.find([output])
    assert told(match, 4) == [[0], [1], [2], [3]]


def test_only_what_leads_to_a_forward_is_replayed(monkeypatch):
    replayed = []
    replay = rows._replay
    monkeypatch.setattr(rows, "_replay", lambda step, *rest: replayed.append(step.name) or replay(step, *rest))
    queue = PairingQueue(8)
    other = foreign(4, CLASSES)
    for _ in range(20):
        other = other.sin()
    (match,) = queue.find([(forward(queue, 4, CLASSES) * other)[:3]])
    assert match.index.tolist() == [0, 1, 2]
    assert replayed == ["Mul", "Slice"]


def random_move(tensor, rng):
    """A random operation that moves rows: a view, a part, a pick or a join."""
    axis = rng.randrange(tensor.ndim)
    size = tensor.shape[axis]
    start = rng.randrange(size)
    picked = torch.tensor([rng.randrange(size) for _ in range(rng.randint(1, 4))])
    divisor = rng.choice([d for d in range(1, tensor.numel() + 1) if tensor.numel() % d == 0])
    moves = [
        lambda: tensor.narrow(axis, start, rng.randint(1, size - start)),
        lambda: tensor[start :: rng.randint(1, 3)] if axis == 0 else tensor.index_select(axis, picked),
        lambda: tensor.select(axis, start) if tensor.ndim > 1 else tensor,
        lambda: rng.choice(tensor.split(rng.randint(1, size), axis)),
        lambda: rng.choice(tensor.unbind(axis)) if tensor.ndim > 1 else tensor,
        lambda: tensor.reshape(divisor, -1),
        lambda: tensor.flatten(0, axis),
        lambda: tensor.unsqueeze(axis),
        lambda: torch.cat([tensor, foreign(2, *tensor.shape[1:]), tensor[:1]]),
        lambda: torch.stack([tensor, foreign(*tensor.shape)]),
        lambda: tensor[picked % len(tensor)],
        lambda: tensor[(tensor.detach() != start).reshape(len(tensor), -1).any(1)],
        lambda: tensor[picked % len(tensor), picked % tensor.shape[1]] if tensor.ndim > 1 else tensor,
        lambda: tensor.expand(2, *tensor.shape)[1] * 1.0,
        lambda: (tensor + tensor.minimum(tensor)) / 2,
    ]
    return rng.choice(moves)()


def test_random_chains_of_operations_are_followed_exactly_or_refused():
    rng = random.Random(0)
    followed = 0
    for _ in range(400):
        queue = PairingQueue(8)
        tensor = forward(queue, 6, 2, 3)
        for _ in range(rng.randint(1, 5)):
            moved = random_move(tensor, rng)
            tensor = moved if moved.numel() else tensor
        try:
            (match,) = queue.find([tensor])
        except PairingError:
            continue
        followed += 1
        assert told(match, len(tensor)) == truth(tensor)
    assert followed > 100
