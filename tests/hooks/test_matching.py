"""From one loss per row to one loss per image of a forward."""

import pytest
import torch
from following import CLASSES, forward

from policy_noise.hooks.matching import Match, PairingError
from policy_noise.hooks.pairing import PairingQueue


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
