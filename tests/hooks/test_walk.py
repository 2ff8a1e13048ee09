"""Walking through autograd graphs to the forwards that losses came from."""

import types

import pytest
import torch
from following import CLASSES, foreign, forward, told
from torch import nn

from policy_noise.hooks import walk
from policy_noise.hooks.matching import PairingError
from policy_noise.hooks.pairing import PairingQueue
from policy_noise.utils import compat


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
    second.mark(output, masked=True)
    assert len(first.find([output])) == len(second.find([output])) == 1


def test_without_node_shapes_rows_that_stay_are_followed_and_moves_refused(monkeypatch):
    monkeypatch.setattr("policy_noise.hooks.walk.node_shapes", lambda node: compat.node_shapes(object()))
    queue = PairingQueue(8)
    output = forward(queue, 4, CLASSES)
    head = nn.Sequential(nn.Linear(CLASSES, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    assert queue.find([output])[0].index is None
    assert queue.find([head(output).float()[:, :1]])[0].index is None
    with pytest.raises(PairingError, match="index"):
        queue.find([output[:2]])


def test_residual_connections_do_not_pile_up_origins():
    queue = PairingQueue(8)
    output = forward(queue, 4, CLASSES)
    for _ in range(10):
        output = output + output.flip(0).flip(0)
    (match,) = queue.find([output])
    assert told(match, 4) == [[0], [1], [2], [3]]


def test_only_what_leads_to_a_forward_is_replayed(monkeypatch):
    replayed = []
    replay = walk._replay
    monkeypatch.setattr(walk, "_replay", lambda node, *rest: replayed.append(node.name()) or replay(node, *rest))
    queue = PairingQueue(8)
    other = foreign(4, CLASSES)
    for _ in range(20):
        other = other.sin()
    (match,) = queue.find([(forward(queue, 4, CLASSES) * other)[:3]])
    assert match.index.tolist() == [0, 1, 2]
    assert replayed == ["MulBackward0", "SliceBackward0"]
