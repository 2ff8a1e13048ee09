"""A draw of masks: its fields, and what is learned from it."""

import dataclasses

import torch

from policy_noise import PolicyNoiseMask


def test_values_are_the_same_with_and_without_a_graph():
    sample = PolicyNoiseMask(grid_size=3).sample(torch.randn(4, 3, 24, 24))
    detached = sample.detach()
    assert sample.log_prob.requires_grad
    for field in dataclasses.fields(sample):
        value, plain = getattr(sample, field.name), getattr(detached, field.name)
        assert (plain is None and value is None) or (torch.equal(plain, value) and not plain.requires_grad)
    torch.testing.assert_close(sample.cell_log_prob().sum(1), sample.log_prob)
