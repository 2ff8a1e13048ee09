"""How autograd's nodes move rows: each row is traced to its image, or an error is raised."""

import pytest
import torch
import torch.nn.functional as F
from following import CLASSES, foreign, forward, told, truth
from torch import nn

from policy_noise.hooks.matching import PairingError
from policy_noise.hooks.pairing import PairingQueue

VALID = torch.tensor([True, False, True, True, False, False, True, True])
LONG = torch.tensor([3, 3, 0, 7, -1])

MOVES = {
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
    "repeat": lambda o: o.repeat(2, 1),
    "repeat_interleave": lambda o: o.repeat_interleave(2, 0),
    "expanded and flattened": lambda o: o.unsqueeze(1).expand(8, 3, CLASSES).reshape(24, CLASSES),
    "flip": lambda o: o.flip(0),
    "roll": lambda o: o.roll(3, 0),
    "transposed twice": lambda o: o.t()[1:].t(),
    "gather": lambda o: o.gather(0, LONG[:4].unsqueeze(1).expand(-1, CLASSES)),
    "gather classes": lambda o: o[:4].gather(1, torch.zeros(4, 1, dtype=torch.long)),
    "masked_select": lambda o: o.masked_select(VALID.unsqueeze(1)),
    "two halves compared": lambda o: torch.stack(o.chunk(2), 1),
    "two halves apart": lambda o: torch.cat([half.unsqueeze(1) for half in o.chunk(2)], 1),
    "select one image": lambda o: o[3],
    "squeezed": lambda o: o[:, :1].squeeze(1)[2:],
    "einsum": lambda o: torch.einsum("bc->cb", o).transpose(0, 1)[2:],
    "cast": lambda o: o.half().float()[:3],
    "log-softmax keeps rows": lambda o: o[2:5] + 0 * F.log_softmax(o[2:5], 1),
    "take_along_dim": lambda o: torch.take_along_dim(o, LONG[:4].unsqueeze(1), 0),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
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
    "pixels in front": lambda o: o.permute(2, 3, 0, 1).reshape(-1, 3),
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
        lambda o: o - o.mean(0),
        lambda o: F.batch_norm(o, None, None, training=True),
        lambda o: torch.cat([o, foreign(8, 2)], 1),
        lambda o: o.t().t(),
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
        lambda o: o.view(2, 4, -1).mean(0),
        lambda o: torch.stack(o.chunk(2)).mean(0),
        lambda o: torch.stack(o.chunk(2)).amax(0),
    ],
)
def test_views_that_are_averaged_all_get_the_loss(average):
    queue = PairingQueue(8)
    (match,) = queue.find([average(forward(queue, 8, CLASSES))])
    losses, valid = match.gather(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert losses.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    assert valid.all()


@pytest.mark.parametrize("batch_first", [True, False])
def test_tokens_and_attention(batch_first):
    queue = PairingQueue(8)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first).train()
    tokens = forward(queue, 4, 5, 8)
    tokens = tokens if batch_first else tokens.transpose(0, 1)
    encoded = layer(tokens)
    (match,) = queue.find([encoded[:, 0] if batch_first else encoded[0]])
    assert told(match, 4) == [[0], [1], [2], [3]]


@pytest.mark.parametrize(
    "move",
    [
        lambda o: o.t(),
        lambda o: o.mean(),
        lambda o: o.mean(0),
        lambda o: o.sort(0).values,
        lambda o: o.cumsum(0),
        lambda o: foreign(8, 8) @ o @ torch.ones(CLASSES, 3),
        lambda o: o.as_strided((8, 2), (1, 1)),
        lambda o: torch.cat([torch.zeros(1, CLASSES), o, torch.zeros(2, CLASSES)]),
    ],
)
def test_what_cannot_be_followed_is_refused_and_names_the_remedy(move):
    queue = PairingQueue(8)
    tensor = move(forward(queue, 8, CLASSES))
    with pytest.raises(PairingError, match=r"8 images.*hook\.observe\(losses, index=\.\.\.\)"):
        queue.find([tensor])
