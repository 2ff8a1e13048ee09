"""One line to add to a training loop."""

import inspect
import sys
from typing import Any

import torch
from torch import nn

from .hook import ReinforceHook
from .learner import PolicyLearner
from .mask import PolicyNoiseMask
from .presets import get_preset

__all__ = ["attach"]


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module | None = None,
    *,
    preset: str = "default",
    **overrides: Any,
) -> ReinforceHook:
    """Train a classifier under a learned noise mask: build the mask for a model and hook it on.

    The number of channels and the device are read from the model, and for timm models the images' mean and standard
    deviation from ``pretrained_cfg``; a model whose first convolution is three-dimensional gets a grid of three axes.
    Attach before a checkpoint's optimizer state is loaded, before the first call of a compiled model, and with several
    processes after the process group is there. ``hook.remove()`` leaves the heated model.

    Args:
        model: The module that the loop calls with images. A timm task is taken apart: its network says the channels,
            and its criterion is hooked.
        optimizer: The loop's optimizer, or a known wrapper of it.
        criterion: The loss module that the loop calls; None for losses that are no module, with ``hook.observe``, and
            for timm tasks.
        preset: ``"default"``, ``"augment"`` (which learns nothing and needs no criterion) or ``"paper"``.
        overrides: Any argument of :class:`PolicyNoiseMask`, :class:`ReinforceHook` or its learner.

    Returns:
        The hook, already at work.

    Raises:
        TypeError: If an argument is of the wrong kind or an override is unknown.
        ValueError: If a value is out of its range, or the model does not say how many channels it takes.
        RuntimeError: If a hook is attached already.

    Example:
        >>> import timm, policy_noise
        >>> model = timm.create_model("resnet10t", num_classes=5)
        >>> optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
        >>> hook = policy_noise.attach(model, optimizer, criterion)
        >>> hook.mask.in_chans
        3
        >>> hook.remove()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    settings = get_preset(preset)
    mask_names = _keywords(PolicyNoiseMask.__init__)
    hook_names = _keywords(ReinforceHook.__init__) | _keywords(PolicyLearner.__init__)
    unknown = overrides.keys() - mask_names - hook_names
    if unknown:
        raise TypeError(f"attach got unknown overrides {sorted(unknown)}; known are {sorted(mask_names | hook_names)}")
    mask_settings = {**settings.mask, **{k: v for k, v in overrides.items() if k in mask_names}}
    hook_settings = {**settings.hook, **{k: v for k, v in overrides.items() if k in hook_names}}
    if hook_settings.get("lr_ratio") is not None and "lr" not in overrides:
        hook_settings["lr"] = None
    elif overrides.get("lr") is not None and "lr_ratio" not in overrides:
        hook_settings["lr_ratio"] = None

    network = model
    tasks = sys.modules.get("timm.task")  # loaded where a task exists
    if tasks is not None and isinstance(model, tasks.TrainingTask):
        from .integrations.timm import task_network, task_rewards

        network = task_network(model)
        if criterion is None and "output_loss" not in hook_settings:
            hook_settings |= task_rewards(model)
    if criterion is not None:
        hook_settings["criterion"] = criterion
    inner = unwrap(network)
    conv = _first_conv(inner)
    if "in_chans" not in mask_settings:
        if conv is None:
            raise ValueError(
                f"in_chans cannot be read from {type(inner).__name__}, which has no convolution: pass "
                "attach(..., in_chans=...)"
            )
        mask_settings["in_chans"] = conv.in_channels
    if isinstance(conv, nn.Conv3d):
        cells = mask_settings.get("grid_size", inspect.signature(PolicyNoiseMask).parameters["grid_size"].default)
        mask_settings["grid_size"] = (cells,) * 3 if isinstance(cells, int) else cells
    if "mean" not in mask_settings and "std" not in mask_settings:
        mask_settings |= _normalization(inner, mask_settings["in_chans"])
    mask = PolicyNoiseMask(**mask_settings)
    parameter = next(model.parameters(), None)
    if parameter is not None:
        mask.to(parameter.device)
    return ReinforceHook(mask, optimizer, model=model, **hook_settings)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside wrappers of DDP, FSDP and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _keywords(function: Any) -> set[str]:
    skipped = {"self", "mask", "optimizer", "model", "criterion"}
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - skipped


def _first_conv(model: nn.Module) -> nn.Conv2d | nn.Conv3d | None:
    """The convolution that sees the images, by timm's record of it where there is one."""
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    for name in (first,) if isinstance(first, str) else (first or ()):
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return module
    return next((module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)


def _normalization(model: nn.Module, in_chans: int) -> dict[str, Any]:
    """Mean and std of a timm model's data configuration, where they belong to its number of channels."""
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean"), config.get("std")
    if mean is None or std is None or len(mean) != in_chans or len(std) != in_chans:
        return {}
    return {"mean": mean, "std": std}
