"""Refusing a checkpoint that is not this policy's, before anything is touched."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["check_state_dict"]


def check_state_dict(state_dict: Any, own: Mapping[str, Any]) -> None:
    """Compare a learner's saved state with the state of the learner that is to load it.

    Raises:
        ValueError: If it belongs to something else.
    """
    if isinstance(state_dict, Mapping) and own.keys() - state_dict.keys() == {"entropy_coef"}:
        raise ValueError(
            "state_dict was saved without entropy_target, and this policy has one: pass the settings that it was saved "
            "with (for preset='learned' of earlier versions reward='cooperative', entropy_target=None and "
            "center_brightness=False)"
        )
    if not isinstance(state_dict, Mapping) or own.keys() - state_dict.keys():
        found = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise ValueError(f"state_dict must hold {sorted(own)}, got {found}: it is not a policy's")
    for name, kind in (("mask", Mapping), ("optimizer", Mapping), ("moving_average", Tensor | None)):
        if not isinstance(state_dict[name], kind):
            raise ValueError(f"state_dict[{name!r}] does not fit a policy, got {type(state_dict[name]).__name__}")
    for name in ("peak_user_lr", "samples_seen", "samples_dropped"):
        if not isinstance(state_dict[name], int | float):
            raise ValueError(f"state_dict[{name!r}] must be a number, got {state_dict[name]!r}")
    shapes = {name: _shape(value) for name, value in state_dict["mask"].items()}
    expected = {name: _shape(value) for name, value in own["mask"].items()}
    if shapes != expected:
        wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
        raise ValueError(
            f"state_dict belongs to another policy: {wrong[:5]} differ in name or shape (grid_size, in_chans and "
            "policy must be those that it was saved with)"
        )
    groups, own_groups = (state["optimizer"].get("param_groups", []) for state in (state_dict, own))
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own_groups]:
        raise ValueError("state_dict belongs to another policy: its optimizer holds other parameters")
    adaptive = ["betas" in group for group in own_groups]
    if ["betas" in group for group in groups] != adaptive:
        raise ValueError(
            "state_dict belongs to a policy with another policy_optimizer: it was saved with "
            f"{'sgd' if adaptive[0] else 'adamw'!r}, and this one has {'adamw' if adaptive[0] else 'sgd'!r}"
        )


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
