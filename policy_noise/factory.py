"""One line to add to a training loop."""

import sys
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from .augmentation import StochasticAugmentation
from .hooks._draws import derived_seed, own_randomness
from .hooks._registry import hooks_on, stepping_optimizer
from .hooks.hook import ReinforceHook
from .losses import LossSplitter, is_hookable
from .masks import PolicyNoiseMask, RandomShading
from .presets import get_preset
from .settings import LearnerSettings, PolicySettings, Settings, ShadingSettings
from .utils.model import image_channels, normalization, takes_volumes, unwrap
from .utils.warn import warn

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack  # torch requires it

__all__ = ["attach"]


MASK = ShadingSettings.__annotations__.keys() | PolicySettings.__annotations__.keys()
"""Names of the settings that a mask takes, and not the hook."""
POLICY = 1
"""Place of the policy's first weights among the streams; draws begin with the rank, the step and the draw."""


def attach(
    model: nn.Module,
    optimizer: Any,
    criterion: nn.Module | None = None,
    *,
    preset: str | None = None,
    augmentation: StochasticAugmentation | None = None,
    replace: bool = False,
    **settings: Unpack[Settings],
) -> ReinforceHook:
    """Train a classifier under random or learned masks: build a mask for the model and attach a hook.

    ``attach(model, optimizer)`` shades the training images at random. ``attach(model, optimizer, criterion)`` learns
    the masks from the losses. ``preset`` says it outright.

    The device, and for learned masks the number of channels, are read from the model. For timm models the images' mean
    and standard deviation are read from ``pretrained_cfg``. A model whose first convolution is three-dimensional gets a
    grid of three axes.

    Attach before you load a checkpoint's optimizer state and before the first call of a compiled model. With several
    processes, attach after ``init_process_group``. ``hook.remove()`` takes the hook off, and so does the end of a
    ``with`` block.

    Args:
        model: The module that the loop calls with images. Of a timm task the channels are read from its network, and
            if masks are learned its criterion is hooked.
        optimizer: The loop's optimizer, or a wrapper of it. None for loops that have no torch optimizer: call
            ``hook.step()`` after each of their steps.
        criterion: The loss module that the loop calls. If your loss is a function, pass ``preset="learned"`` instead
            and call ``hook.observe(losses)`` with shape (B,). ``preset="random"`` needs none.
        preset: ``"random"`` (random masks, nothing learned), ``"learned"`` (an adversarial policy whose entropy is held
            near a target) or ``"paper"``. By default ``"learned"`` with a criterion or an ``output_loss``, else
            ``"random"``. Settings that you pass take the place of the preset's; :mod:`policy_noise.presets` lists
            them.
        augmentation: Use this augmentation instead of a mask. The preset and the settings of masks do not apply then.
            If it has parameters, they are learned: its policy is cooperative and its entropy is free, unless you pass
            ``reward`` or ``entropy_target``.
        replace: Take the place of the model's earlier hook. Without it only a hook that the model has with another
            optimizer is replaced, with a warning: Lightning's Tuner makes one optimizer, ``fit`` the next. Hooks of
            other models stay.
        **settings: Any argument of :class:`RandomShading` or :class:`PolicyNoiseMask`, of :class:`ReinforceHook` or its
            learner; see :mod:`policy_noise.settings`. A fixed ``entropy_coef`` also takes the place of the preset's
            ``entropy_target``.

    Returns:
        The hook, which is already active. After an error everything is hooked as before.

    Raises:
        TypeError: If an argument is of the wrong kind or a setting is unknown.
        ValueError: If a value is out of its range, or masks are to be learned and the model does not say how many
            channels it takes.
        RuntimeError: If a hook is attached already, with this optimizer.

    Example:
        >>> import timm, policy_noise
        >>> model = timm.create_model("resnet10t", num_classes=5)
        >>> optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
        >>> hook = policy_noise.attach(model, optimizer, criterion)
        >>> hook.augmentation.in_chans
        3
        >>> hook.remove()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {_kind_of(model)}")
    if augmentation is not None and not isinstance(augmentation, StochasticAugmentation):
        raise TypeError(f"augmentation must be a StochasticAugmentation, got {_kind_of(augmentation)}")
    overrides: dict[str, Any] = dict(settings)
    _check_names(overrides)
    told = preset is not None
    mask_settings = {name: value for name, value in overrides.items() if name in MASK}
    hook_settings = {name: value for name, value in overrides.items() if name not in MASK}
    if augmentation is None:
        by_loss = criterion is not None or overrides.get("output_loss") is not None
        preset = preset or ("learned" if by_loss else "random")
        hook_settings = {**get_preset(preset).hook, **hook_settings}
        learned = preset != "random"
    elif mask_settings:
        raise TypeError(f"augmentation has settings of its own: {sorted(mask_settings)} would have no effect")
    else:
        learned = next(augmentation.parameters(), None) is not None
    if not learned:
        _check_random(overrides, told=told)
    if hook_settings.get("policy_lr_ratio") is not None and "policy_lr" not in overrides:
        hook_settings["policy_lr"] = None
    elif overrides.get("policy_lr") is not None and "policy_lr_ratio" not in overrides:
        hook_settings["policy_lr_ratio"] = None
    if overrides.get("entropy_coef") and "entropy_target" not in overrides:
        hook_settings["entropy_target"] = None
    network = model
    tasks = sys.modules.get("timm.task")  # loaded where a task exists
    if tasks is not None and isinstance(model, tasks.TrainingTask):
        trained = getattr(model, "trainable_module", None)
        network = trained if isinstance(trained, nn.Module) else model
        if learned and criterion is None and "output_loss" not in hook_settings:
            hook_settings |= _task_rewards(model)
    if criterion is not None:
        hook_settings["criterion"] = criterion
    if augmentation is None:
        augmentation = _build(unwrap(network), preset, mask_settings)
    parameter = next(model.parameters(), None)
    if parameter is not None:
        augmentation.to(parameter.device)
    earlier = _earlier_hooks(model, optimizer, replace=replace)
    for hook in earlier:
        hook.remove()
    try:
        hook = ReinforceHook(augmentation, optimizer, model=model, **hook_settings)
    except BaseException:
        for hook in earlier:
            hook._activate()
        raise
    if earlier and not replace:
        warn(
            f"the earlier hook of {type(model).__name__}, with another optimizer, was replaced and its policy "
            "discarded. Keep it: hook.rebind(optimizer) instead of attach. Silence this: replace=True."
        )
    return hook


def _earlier_hooks(model: nn.Module, optimizer: Any, *, replace: bool) -> list[ReinforceHook]:
    """The hooks that a new one takes the place of."""
    on_model = hooks_on(model)
    on_optimizer = [] if optimizer is None else hooks_on(stepping_optimizer(optimizer))
    if replace:
        return [*on_model, *(hook for hook in on_optimizer if hook not in on_model and hook._overlaps(model))]
    return [] if optimizer is None or any(hook in on_optimizer for hook in on_model) else on_model


def _build(network: nn.Module, preset: str | None, overrides: dict[str, Any]) -> StochasticAugmentation:
    random = preset == "random"
    settings = {**get_preset(preset or "learned").mask, **overrides}
    if "in_chans" not in settings:
        try:
            settings["in_chans"] = image_channels(network)
        except ValueError:
            if not random:
                raise
    if takes_volumes(network):
        cells = settings.get("grid_size", RandomShading().grid_size[0] if random else 2)
        settings["grid_size"] = (cells,) * 3 if isinstance(cells, int) else cells
    if "mean" not in settings and "std" not in settings:
        settings |= normalization(network, settings.get("in_chans"))
    if random:
        settings.pop("in_chans", None)
        return RandomShading(**settings)
    # The loop's generators must not notice that there is a policy.
    with own_randomness(torch.device("cpu"), derived_seed(torch.initial_seed(), POLICY)):
        return PolicyNoiseMask(**settings)


def _check_names(settings: dict[str, Any]) -> None:
    for name in settings:
        if name not in Settings.__annotations__:
            close = get_close_matches(name, Settings.__annotations__, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "policy_noise.settings lists them all"
            raise TypeError(f"attach got an unknown setting {name!r}: {hint}")


def _check_random(settings: dict[str, Any], *, told: bool) -> None:
    """Refuse settings of policies for masks that are not learned."""
    policy = PolicySettings.__annotations__.keys() - {"in_chans"}
    without_effect = sorted(settings.keys() & (policy | LearnerSettings.__annotations__.keys() | {"loss_method"}))
    if without_effect and not (without_effect == ["frozen"] and settings["frozen"]):
        remedy = "preset='learned'" if told else "a criterion, or preset='learned' and call hook.observe(losses)"
        raise TypeError(
            f"{', '.join(without_effect)} would have no effect, because random masks are not learned: pass {remedy}"
        )


def _kind_of(value: Any) -> str:
    """Its type, for messages."""
    return f"the class: pass {value.__name__}(...)" if isinstance(value, type) else type(value).__name__


def _task_rewards(task: nn.Module) -> dict[str, Any]:
    """Return the hook arguments that give one loss per sample for one of timm's training tasks.

    A task holds network and criterion. One call of it is a forward pass with its loss. It is the right module to hook:
    timm compiles, wraps and copies (EMA) the network inside, and validates with that network alone.

    Mixup and CutMix come before the task, so the mixed image is masked, and the reward is the loss on the mixed
    targets. With AugMix splits every view gets its own mask. The Jensen-Shannon loss couples an image's views, so each
    of their masks is rewarded with the image's whole loss. A distillation task's teacher sees the masked image too, and
    the reward is the loss on the targets.

    A criterion that is a module is hooked. A plain function, or timm's JsdCrossEntropy (whose forward hooks never run),
    is called once more with the task's ``"output"``.

    Raises:
        ValueError: If the task has no ``criterion``.
    """
    criterion = getattr(task, "criterion", None)
    if not callable(criterion):
        raise ValueError(
            f"criterion of {type(task).__name__} is {criterion!r}, which cannot be called: pass criterion or "
            "output_loss to attach"
        )
    if isinstance(criterion, nn.Module) and is_hookable(criterion):
        return {"criterion": criterion}

    splitter = LossSplitter(criterion)

    def output_loss(output: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        target = kwargs["target"] if "target" in kwargs else args[1]
        # A distillation task's loss has more terms, so do not compare with it: evaluate the criterion itself.
        return splitter((output["output"], target), {}, None).values

    return {"output_loss": output_loss}
