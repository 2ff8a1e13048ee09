"""The method on one page: masks that learn, in plain PyTorch. ``policy_noise.attach`` takes the same steps."""

import math

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import nn
from torch.distributions import Beta

from policy_noise.policy import SpatialPolicy  # three convolutions that give the logarithms of alpha and beta


class LearnedShading(nn.Module):
    def __init__(self, in_chans=3, grid=2, p=0.5, pattern_std=0.1, brightness_std=0.2):
        super().__init__()
        self.policy, self.grid, self.p = SpatialPolicy(in_chans, (grid, grid)), grid, p
        self.pattern_std, self.brightness_std = pattern_std, brightness_std

    def forward(self, images, action=None, applied=None):
        alpha, beta = (value.clamp(math.log(0.05), math.log(100)).exp() for value in self.policy(images))
        cells = Beta(alpha, beta)  # one distribution for each cell of each image
        action = cells.sample().clamp(1e-6, 1 - 1e-6) if action is None else action
        self.applied = torch.rand(len(images)) < self.p if applied is None else applied
        self.log_prob, self.entropy = (each.sum((1, 2, 3)) for each in (cells.log_prob(action), cells.entropy()))
        with torch.no_grad():
            size, sigma = images.shape[2:], tuple(pixels / (3 * self.grid) for pixels in images.shape[2:])
            kernel = tuple(max(3, 2 * math.floor(13 / 6 * s / 2) + 1) for s in sigma)
            mask = gaussian_blur2d(F.interpolate(action, size), kernel, sigma, border_type="reflect")
            mean, lowest = mask.mean((1, 2, 3), keepdim=True), action.amin((1, 2, 3), keepdim=True)
            deviation = (mask - mean).square().mean((1, 2, 3), keepdim=True).sqrt() / self.pattern_std
            mask = 1 + (mask - mean) / torch.maximum(deviation, (mean - lowest).clamp(min=1e-3))  # never negative
            z = (action - alpha / (alpha + beta)).mean((1, 2, 3), keepdim=True) * math.sqrt(12 * self.grid**2)
            mask = mask * (self.brightness_std * z.clamp(-3, 3)).exp()
            mask = torch.where(self.applied.view(-1, 1, 1, 1), mask, 1.0)
            black = images.amin((2, 3), keepdim=True)
            return black + mask * (images - black)


def policy_loss(shade, losses, entropy_coef):
    """REINFORCE: a mask that raised the loss gets likelier. Each loss is compared with the mean of the others."""
    loss, n = losses.detach()[shade.applied], int(shade.applied.sum())
    advantage = (loss - loss.mean()) * n / (n - 1) / loss.std(correction=0)
    return -(advantage * shade.log_prob[shade.applied]).mean() - entropy_coef * shade.entropy[shade.applied].mean()


def train_step(model, optimizer, shade, policy_optimizer, images, targets, entropy_coef=0.1, **draw):
    losses = F.cross_entropy(model(shade(images, **draw)), targets, reduction="none")
    optimizer.zero_grad()
    losses.mean().backward()  # trains the classifier: the mask is detached
    optimizer.step()
    policy_optimizer.zero_grad()
    policy_loss(shade, losses, entropy_coef).backward()  # trains the policy: the losses are detached
    policy_optimizer.step()
    entropy = shade.entropy.mean().item() / shade.grid**2  # hold it near -0.075 nats per cell
    return min(max(entropy_coef * math.exp(0.5 * (-0.075 - entropy)), 0.01), 20.0)
