"""Reading from a model which images it takes."""

import pytest
import timm
import torch
from torch import nn

from policy_noise.utils.model import image_channels, takes_volumes

FAMILIES = [
    "resnet10t",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "swin_tiny_patch4_window7_224",
    "regnetx_002",
    "levit_128s",
    "hrnet_w18_small",
    "tresnet_m",
]


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_channels_of_timms_families(name, in_chans):
    try:
        with torch.device("meta"):
            model = timm.create_model(name, in_chans=in_chans)
    except RuntimeError:  # older releases of torch and timm read values while they build a model
        model = timm.create_model(name, in_chans=in_chans)
    if name == "tresnet_m":  # a space-to-depth comes before its first convolution
        with pytest.raises(ValueError, match=r"in_chans cannot be read from TResNet: .*Pass attach\(\.\.\., in_chans="):
            image_channels(model)
    else:
        assert image_channels(model) == in_chans


class DepthFirst(nn.Module):
    """A network for RGB and depth that registers the depth's branch first."""

    def __init__(self, depth=1):
        super().__init__()
        self.depth = nn.Sequential(nn.Conv2d(depth, 4, 3), nn.ReLU())
        self.colour = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def test_branches_that_disagree_ask_for_the_channels():
    with pytest.raises(ValueError, match=r"DepthFirst, whose branches begin with convolutions of \[1, 3\] channels"):
        image_channels(DepthFirst())
    assert image_channels(DepthFirst(depth=3)) == 3


def test_a_model_without_a_convolution_asks_too():
    with pytest.raises(ValueError, match=r"Linear, which has no convolution: pass attach\(\.\.\., in_chans=\.\.\.\)"):
        image_channels(nn.Linear(4, 4))


@pytest.mark.parametrize("channels", [5, 13])
def test_many_channels_of_a_plain_model_are_taken_as_they_are(channels):
    assert image_channels(nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Conv2d(8, 8, 3))) == channels


def test_volumes_are_told_by_the_first_convolution():
    assert takes_volumes(nn.Sequential(nn.Conv3d(1, 2, 3)))
    assert not takes_volumes(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv3d(2, 2, 3)))
