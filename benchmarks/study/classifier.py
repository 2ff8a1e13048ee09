"""The study's classifier."""

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn


class Classifier(nn.Module):
    """A small timm ResNet of four basic blocks.

    Args:
        size: Side of the images. From 64 px on the stem has a larger stride: feature maps stay as large as at 32 px.
        num_classes: Number of classes.
        half: Halve the feature maps' side, which is a quarter of the work.
        normalize: First bring each image to mean 0 and standard deviation 1, whatever it was normalized by before.

    Shape:
        - images: (B, 1, S, S).
        - Output: (B, num_classes).
    """

    def __init__(self, size: int, num_classes: int, *, half: bool = True, normalize: bool = False) -> None:
        super().__init__()
        network = ResNet(
            BasicBlock, (1, 1, 1, 1), num_classes, 1, stem_type="deep", stem_width=8, channels=(16, 32, 64, 128)
        )
        stride = max(1, size // 32) * (2 if half else 1)  # timm's own stem is designed for 224 px
        network.conv1 = nn.Conv2d(1, 16, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
        self.network = network
        self.normalize = normalize

    def forward(self, images: Tensor) -> Tensor:
        if self.normalize:
            images = F.layer_norm(images, images.shape[1:]).contiguous(memory_format=torch.channels_last)
        return self.network(images)
