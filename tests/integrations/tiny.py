"""Pieces that the integration tests share: a tiny network, tiny data, and what "it learned" means."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from policy_noise import ReinforceHook

SETTINGS = {"grid_size": 4}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.deterministic = True


class TinyNet(nn.Module):
    """A classifier of a few hundred weights. Its BatchNorm shows whether validation saw a mask."""

    def __init__(self, in_chans: int = 3, classes: int = 4, dims: int = 2) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.block1 = nn.Sequential(conv(in_chans, 8, 3, stride=2, padding=1), norm(8), nn.ReLU())
        self.block2 = nn.Sequential(conv(8, 8, 3, stride=2, padding=1), norm(8), nn.ReLU())
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block2(self.block1(x)).flatten(2).mean(-1))


def tiny_data() -> TensorDataset:
    """32 images in [-1, 1] of four classes that differ in brightness."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (32,), generator=generator)
    images = torch.randn(32, 3, 16, 16, generator=generator) * 0.3 + targets.view(-1, 1, 1, 1) * 0.2
    return TensorDataset(images.clamp(-1, 1), targets)


class Watch:
    """Remembers what a network was given in training and in validation."""

    def __init__(self, network: nn.Module) -> None:
        self.training: list[Tensor] = []
        self.validation: list[Tensor] = []
        # Inside the hooked module, so that it sees the masked images and not the loop's.
        network.register_forward_pre_hook(self._remember)

    def _remember(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        (self.training if module.training else self.validation).append(args[0].detach().clone())


def parameters_equal(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks hold the same numbers, buffers included."""
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def policy_vector(hook: ReinforceHook) -> Tensor:
    """All of a policy's weights in one vector."""
    return nn.utils.parameters_to_vector(hook.augmentation.parameters()).detach().clone()


def assert_moved(before: Tensor, hook: ReinforceHook) -> None:
    after = policy_vector(hook)
    assert after.isfinite().all()
    assert not torch.equal(before, after)


def assert_masked(seen: list[Tensor], images: Tensor) -> None:
    """The network saw some clean images and some masked ones (p = 0.5)."""
    clean = {tuple(image.flatten().tolist()) for image in images}
    rows = [tuple(image.flatten().tolist()) in clean for batch in seen for image in batch]
    assert any(rows)
    assert not all(rows)


def assert_clean(seen: list[Tensor], images: Tensor) -> None:
    clean = {tuple(image.flatten().tolist()) for image in images}
    assert seen
    assert all(tuple(image.flatten().tolist()) in clean for batch in seen for image in batch)
