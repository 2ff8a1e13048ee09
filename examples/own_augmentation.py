"""Train a random transform of your own, here one without a gradient: reducing each image to a few bits.

Images with bold stripes survive any rounding; faint stripes vanish. The policy looks at an image and draws a number of
bits. From the classifier's loss alone it learns to keep more bits of the faint images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import policy_noise


@dataclass(frozen=True)
class Bits(policy_noise.Sample):
    bits: Tensor  # bits that each image keeps, (B,)


class Posterize(policy_noise.StochasticAugmentation):
    def __init__(self) -> None:
        super().__init__()
        self.policy = make_network(7)

    def chances(self, images: Tensor) -> torch.distributions.Categorical:  # of keeping 2, 3, ... 8 bits
        return torch.distributions.Categorical(logits=self.policy(10 * (images - images.mean((2, 3), keepdim=True))))

    def sample(self, images: Tensor, generator: torch.Generator | None = None) -> Bits:
        chances = self.chances(images)
        index = torch.multinomial(chances.probs, 1, generator=generator).squeeze(1)
        applied = torch.ones_like(index, dtype=torch.bool)
        return Bits(log_prob=chances.log_prob(index), entropy=chances.entropy(), applied=applied, bits=index + 2)

    def transform(self, images: Tensor, sample: Bits) -> Tensor:
        steps = (2**sample.bits - 1).view(-1, 1, 1, 1)
        return (images * steps).round() / steps


def make_network(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs))


if __name__ == "__main__":
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.InstanceNorm2d(1), make_network(2)), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    hook = policy_noise.attach(model, optimizer, criterion, augmentation=Posterize(), entropy_coef=0.5)
    for step in range(301):
        lying, faint = torch.rand(2, 64) < 0.5
        stripes = (torch.arange(16) // 2 % 2 - 0.5).repeat(64, 1, 16, 1)
        stripes[lying] = stripes[lying].mT
        images = 0.4 + 0.2 * torch.rand(64, 1, 1, 1) + torch.where(faint, 0.03, 0.6).view(-1, 1, 1, 1) * stripes
        optimizer.zero_grad()
        criterion(model(images), lying.long()).backward()
        optimizer.step()
        if step % 100 == 0:
            bits = hook.augmentation.chances(images).probs @ torch.arange(2.0, 9.0)
            print(f"step {step}: bold images keep {bits[~faint].mean():.1f} bits, faint ones {bits[faint].mean():.1f}")
