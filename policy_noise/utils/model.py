"""Read from a model which images it takes: channels, axes, normalization."""

from typing import Any

import torch
from torch import nn

from .compat import compiled_from

__all__ = ["image_channels", "normalization", "takes_volumes", "unwrap"]

FEW = 4
"""Images rarely have more channels than this."""


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's module from inside the wrappers of DDP, FSDP and torch.compile.

    A module of one's own that has weights beside its attribute ``module`` is no wrapper.
    """
    while True:
        inner = compiled_from(model) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module) or _tensors_of(model) - _tensors_of(inner):
            return model
        model = inner


def _tensors_of(model: nn.Module) -> set[int]:
    return {id(tensor) for tensor in (*model.parameters(), *model.buffers())}


def image_channels(model: nn.Module) -> int:
    """Return the number of image channels: those of the first convolution, which timm's configuration may name.

    More than four channels may not be the image's, for example if the model starts with space-to-depth. timm's
    configuration is then compared, and the model is tried on tensors without data. Branches that begin with different
    numbers of channels may have different inputs; then the answer is unknown.

    Raises:
        ValueError: If the number cannot be determined.
    """
    name = type(model).__name__
    conv = _first_conv(model)
    if conv is None:
        raise ValueError(
            f"in_chans cannot be read from {name}, which has no convolution: pass attach(..., in_chans=...)"
        )
    found = conv.in_channels
    recorded = _config(model).get("input_size")
    expected = recorded[0] if isinstance(recorded, tuple | list) and recorded else None
    if expected is None:
        others = sorted({found, *_first_convs_of_branches(model)})
        if len(others) > 1:
            raise ValueError(
                f"in_chans cannot be read from {name}, whose branches begin with convolutions of {others} channels: "
                "pass attach(..., in_chans=...)"
            )
        return found
    if found <= FEW or found == expected or _accepts(model, found, recorded):
        return found
    raise ValueError(
        f"in_chans cannot be read from {name}: its first convolution has {found} channels, but its pretrained_cfg says "
        f"{expected}. Pass attach(..., in_chans=...)"
    )


def takes_volumes(model: nn.Module) -> bool:
    """Whether the first convolution has three axes."""
    return isinstance(_first_conv(model), nn.Conv3d)


def normalization(model: nn.Module, in_chans: int | None) -> dict[str, Any]:
    """Mean and std from a timm model's configuration. Empty if there are none for this number of channels."""
    config = _config(model)
    mean, std = config.get("mean"), config.get("std")
    if mean is None or std is None or len(std) != len(mean) or len(mean) != (in_chans or len(mean)):
        return {}
    return {"mean": mean, "std": std}


def _first_conv(model: nn.Module) -> nn.Conv2d | nn.Conv3d | None:
    """The convolution that sees the images: the one that timm's configuration names, else the first registered."""
    first = _config(model).get("first_conv")
    for name in (first,) if isinstance(first, str) else (first or ()):
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return module
    return next((module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)


def _config(model: nn.Module) -> dict[str, Any]:
    return getattr(model, "pretrained_cfg", None) or {}


def _first_convs_of_branches(model: nn.Module) -> set[int]:
    """Channels of the first convolution of each child module, without those that images rarely have."""
    channels = set()
    for child in model.children():
        conv = next((module for module in child.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)
        if conv is not None and conv.in_channels <= FEW:
            channels.add(conv.in_channels)
    return channels


def _accepts(model: nn.Module, channels: int, recorded: Any) -> bool:
    """Whether a forward pass on meta tensors works with this number of channels."""
    state = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    images = torch.empty(2, channels, *recorded[1:], device="meta")
    try:
        with torch.no_grad():
            torch.func.functional_call(model, state, (images,))
    except Exception:
        return False
    return True
