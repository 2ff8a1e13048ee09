"""Policy networks: from a batch of images to the two concentrations of a Beta distribution for each cell.

A policy is any module whose ``forward(images)`` returns the *logarithms* of alpha and beta, two tensors
(B, 1, G, G). :class:`policy_noise.PolicyNoiseMask` exponentiates and bounds them.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BackbonePolicy", "SpatialPolicy", "StaticPolicy", "create_policy"]

Grid = tuple[int, ...]

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
AVERAGE: dict[int, Callable[..., Tensor]] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


CHANNELS_LAST_PIXELS = 128 * 128
"""Image size, in pixels, from which channels-last makes a backbone faster on a CPU. Below it, it makes it slower."""


class SpatialPolicy(nn.Module):
    """A small convolutional policy with a learned map of positions.

    Three small convolutions look at an area-averaged thumbnail with four pixels per cell along each axis. A summary of
    the whole image and a learned map of positions are added, and a 1x1 head follows. The norm is GroupNorm, because
    BatchNorm would couple the log-probabilities of a batch's images. The head starts at zero: both parameters of every
    cell start at exp(``init_log_concentration``).

    Args:
        in_chans: Channels of the images.
        grid_size: Cells along each axis.
        width: Channels of the convolutions.
        max_log_concentration: Bound L of the output, L tanh(raw / L). It is smooth, so that no cell gets stuck.
        init_log_concentration: Initial value of both logarithms, within the bound; 0 is the uniform distribution.

    Shape:
        - images: (B, in_chans, H, W), or (B, in_chans, D, H, W) for a grid of three axes. Any size.
        - Output: two tensors ``(B, 1, *grid_size)``, each within +-max_log_concentration.

    Example:
        >>> log_concentration1, log_concentration0 = SpatialPolicy(3, (2, 2))(torch.rand(4, 3, 32, 32))
        >>> log_concentration1.shape
        torch.Size([4, 1, 2, 2])
    """

    def __init__(
        self,
        in_chans: int,
        grid_size: Grid,
        width: int = 16,
        max_log_concentration: float = 3.0,
        init_log_concentration: float = 0.0,
    ) -> None:
        super().__init__()
        conv = CONV[len(grid_size)]
        self.thumbnail_size = tuple(4 * cells for cells in grid_size)
        self.max_log_concentration = max_log_concentration
        self.stem = nn.Sequential(
            conv(in_chans, width, 3, stride=2, padding=1),
            nn.GroupNorm(4, width),
            nn.SiLU(),
            conv(width, width, 3, stride=2, padding=1),
            nn.GroupNorm(4, width),
            nn.SiLU(),
            conv(width, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.SiLU(),
        )
        self.context = nn.Linear(width, width)
        self.head = conv(width, 2, 1)
        self.place = nn.Parameter(torch.zeros(1, 2, *grid_size))
        nn.init.zeros_(self.head.weight)
        raw = max_log_concentration * math.atanh(init_log_concentration / max_log_concentration)
        nn.init.constant_(self.head.bias, raw)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            # The policy needs no gradient for the images. One bad pixel must not spoil the other samples' gradients.
            thumbnail = _area_average(images, self.thumbnail_size)
            thumbnail = torch.nan_to_num(thumbnail, 0.0, 0.0, 0.0).clamp(-1e4, 1e4)
        x = self.stem(thumbnail)
        summary = self.context(x.flatten(2).mean(-1))
        x = F.silu(x + summary.view(*summary.shape, *[1] * (x.ndim - 2)))
        raw = self.head(x) + self.place
        bound = self.max_log_concentration
        log_concentration1, log_concentration0 = (bound * torch.tanh(raw / bound)).chunk(2, dim=1)
        return log_concentration1, log_concentration0


def _area_average(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Adaptive average pooling in fp32.

    If the size divides the image's, one axis is averaged after the other. This is faster than the pooling kernel,
    because it reads memory in order.
    """
    if any(pixels % cells for pixels, cells in zip(images.shape[2:], size, strict=True)):
        return AVERAGE[len(size)](images, size).float()
    for axis in range(2, images.ndim):
        cells = size[axis - 2]
        if images.shape[axis] != cells:
            images = images.unflatten(axis, (cells, -1)).mean(axis + 1, dtype=torch.float32)
    return images.float()


class StaticPolicy(nn.Module):
    """The same distribution for every image: one learnable pair of concentrations per cell, and no network.

    When learned, it is the control that shows whether looking at the image helps. When frozen, it is plain Beta noise.

    Args:
        grid_size: Cells along each axis.
        concentration1: Initial alpha.
        concentration0: Initial beta.

    Shape:
        - images: (B, C, H, W) or (B, C, D, H, W).
        - Output: two tensors ``(B, 1, *grid_size)``.

    Example:
        >>> log_concentration1, log_concentration0 = StaticPolicy((2, 2))(torch.rand(4, 3, 32, 32))
        >>> log_concentration1.shape, log_concentration1.unique()  # uniform noise at the start
        (torch.Size([4, 1, 2, 2]), tensor([0.], grad_fn=<Unique2Backward0>))
    """

    def __init__(self, grid_size: Grid, concentration1: float = 1.0, concentration0: float = 1.0) -> None:
        super().__init__()
        start = torch.tensor([concentration1, concentration0]).log().view(2, *[1] * len(grid_size))
        self.log_concentration = nn.Parameter(start.expand(2, *grid_size).clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        batch = self.log_concentration.unsqueeze(1).expand(2, images.shape[0], *self.log_concentration.shape[1:])
        return batch[0].unsqueeze(1), batch[1].unsqueeze(1)


class BackbonePolicy(nn.Module):
    """The paper's policy: a timm backbone on the full image, two MLP heads and moving averages of their outputs.

    Each head is (Linear, BatchNorm, ReLU) twice, then Linear to the grid. With heads h(x) and a base b,

        log alpha = decay * b + (1 - decay) * h(x),        b <- momentum * b + (1 - momentum) * mean over the batch of h

    with decay 0.9 and momentum 0.99. The output uses the base from before its update. b starts uniform in [0, 1). The
    bases are buffers, so they are in the state dict and move with the module.

    Args:
        backbone: Any timm model name; created from scratch.
        in_chans: Channels of the images.
        grid_size: Cells along the two axes.
        hidden_features: Width of the heads.
        decay: Share of the base in the output.
        momentum: Momentum of the moving average.

    Shape:
        - images: (B, in_chans, H, W).
        - Output: two tensors ``(B, 1, *grid_size)``.

    Raises:
        ValueError: If timm has no such backbone, or the grid does not have two axes.

    Example:
        >>> policy = BackbonePolicy("test_resnet", in_chans=3, grid_size=(8, 8))
        >>> policy(torch.rand(2, 3, 64, 64))[0].shape
        torch.Size([2, 1, 8, 8])
    """

    base_concentration1: Tensor
    base_concentration0: Tensor

    def __init__(
        self,
        backbone: str,
        in_chans: int,
        grid_size: Grid,
        hidden_features: int = 512,
        decay: float = 0.9,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        import timm  # slow to import, as is einops.layers with older torch; only this policy needs them
        from einops.layers.torch import Rearrange

        if len(grid_size) != 2:
            raise ValueError(f"policy={backbone!r} needs a grid of two axes, got grid_size={grid_size}")
        if not timm.is_model(backbone):
            raise ValueError(
                f"policy must be 'spatial', 'static', a module or the name of a timm model, got {backbone!r}"
            )
        self.backbone = timm.create_model(backbone, pretrained=False, num_classes=0, in_chans=in_chans)
        # Some models (mobilenetv3) keep a projection before the classifier, whose width is the output's.
        features = int(getattr(self.backbone, "head_hidden_size", self.backbone.num_features))  # type: ignore[arg-type]
        cells = math.prod(grid_size)

        def head() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(features, hidden_features),
                nn.BatchNorm1d(hidden_features),
                nn.ReLU(inplace=True),
                nn.Linear(hidden_features, hidden_features),
                nn.BatchNorm1d(hidden_features),
                nn.ReLU(inplace=True),
                nn.Linear(hidden_features, cells),
                Rearrange("b (g w) -> b 1 g w", g=grid_size[0]),
            )

        self.head1 = head()
        self.head0 = head()
        self.decay = decay
        self.momentum = momentum
        self.register_buffer("base_concentration1", torch.rand(1, 1, *grid_size))
        self.register_buffer("base_concentration0", torch.rand(1, 1, *grid_size))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = torch.nan_to_num(images.float(), 0.0, 0.0, 0.0)
        if images.device.type == "cpu" and images.shape[2] * images.shape[3] >= CHANNELS_LAST_PIXELS:
            images = images.contiguous(memory_format=torch.channels_last)
        # One image has no batch statistics, so a batch of one uses the running ones.
        with _running_statistics(self) if self.training and len(images) == 1 else nullcontext():
            features = self.backbone(images)
            outputs = self.head1(features), self.head0(features)
        return (
            self._mix(outputs[0], self.base_concentration1),
            self._mix(outputs[1], self.base_concentration0),
        )

    def _mix(self, head: Tensor, base: Tensor) -> Tensor:
        mixed = self.decay * base + (1 - self.decay) * head
        if self.training:
            with torch.no_grad():
                # Updating in place is safe: autograd did not save the base for the formula above.
                base.lerp_(head.mean(dim=0, keepdim=True), 1 - self.momentum)
        return mixed


@contextmanager
def _running_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm use its running statistics inside the block."""
    norms = [part for part in module.modules() if isinstance(part, BATCH_NORMS) and part.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def create_policy(policy: "str | nn.Module", in_chans: int, grid_size: Grid) -> nn.Module:
    """Make a policy from its name.

    Args:
        policy: ``"spatial"``, ``"static"`` or the name of a timm backbone. A module is returned as it is.
        in_chans: Channels of the images.
        grid_size: Cells along each axis.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is neither a name nor a module.
    """
    if isinstance(policy, nn.Module):
        return policy
    if not isinstance(policy, str):
        raise TypeError(f"policy must be a name or a torch.nn.Module, got {type(policy).__name__}")
    if policy == "spatial":
        return SpatialPolicy(in_chans, grid_size)
    if policy == "static":
        return StaticPolicy(grid_size)
    return BackbonePolicy(policy, in_chans, grid_size)
