"""Masks with a policy that has been trained a little, and learners that have seen samples."""

import torch


def moved(mask):
    """A mask whose policy has moved from its start, where the gradients of the head's input are all zero."""
    with torch.no_grad():
        for parameter in mask.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mask


def observed(learner, sizes=(5, 3), bad=()):
    """Samples of some batches and their losses, observed."""
    samples, losses = [], []
    for size in sizes:
        sample = learner.augmentation.sample(torch.rand(size, 3, 32, 32))
        loss = torch.rand(size) * 3
        learner.observe(sample, loss)
        samples.append(sample)
        losses.append(loss)
    for batch, index, value in bad:
        losses[batch][index] = value
    return samples, losses
