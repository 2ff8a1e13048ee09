"""The study's classifiers."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Classifier(nn.Module):
    """A small timm network that also returns its pooled features, detached.

    Shape:
        - images: (B, 1, S, S).
        - Output: (B, num_classes) and (B, features).
    """

    def __init__(self, kind: str, size: int, num_classes: int) -> None:
        super().__init__()
        self.network: nn.Module
        if kind in ("resnet", "resnet-half"):
            from timm.models.resnet import BasicBlock, ResNet

            network = ResNet(
                BasicBlock, (1, 1, 1, 1), num_classes, 1, stem_type="deep", stem_width=8, channels=(16, 32, 64, 128)
            )
            # The stem is designed for 224 px. At 64 px the stride gives the feature maps of 32 px.
            stride = max(1, size // 32) * (2 if kind == "resnet-half" else 1)
            network.conv1 = nn.Conv2d(1, 16, 3, stride=stride, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
            self.network = network
        elif kind in ("vit", "vit-half"):
            from timm.models.vision_transformer import VisionTransformer

            patch_size = 8 if kind == "vit-half" else 4
            self.network = VisionTransformer(
                size, patch_size, in_chans=1, num_classes=num_classes, embed_dim=96, depth=4, num_heads=3
            )
        else:
            raise ValueError(f"model must be 'resnet', 'resnet-half', 'vit' or 'vit-half', got {kind!r}")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.attached(images)
        return logits, features.detach()

    def attached(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same, with the features still attached to the graph."""
        features = self.network.forward_head(self.network.forward_features(images), pre_logits=True)
        return self.network.get_classifier()(features), features


def replay_as_graphs(model: Classifier, sample: Tensor) -> None:
    """Replay forward and backward as CUDA graphs in training mode. Eval mode still uses the model's own forward."""
    torch.cuda.make_graphed_callables(model, (sample,))
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()  # in place: the warm-up did not use real images
    model.zero_grad(set_to_none=True)
