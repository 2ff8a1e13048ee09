"""A hook that does nothing says so: one warning for each cause, within ten steps."""

import logging
import sys
import warnings
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["Watch", "is_saved_without_policy"]

logger = logging.getLogger("policy_noise")

PATIENCE = 5
"""Steps without a masked batch after which something is wrong."""
FOREIGN_STEPS = 5
"""Steps of another optimizer with the model's parameters, without one of the hooked optimizer."""
SAVERS = ("torch.distributed.checkpoint", "composer.")
"""Modules that take parts out of an optimizer's state dict and leave the rest."""


class Watch:
    """Counts what a hook sees, and warns of what it never does.

    Args:
        model: The hooked model, if there is one.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model
        self.evaluating = 0
        self.without_gradients = 0
        self._masked = False
        self._idle_steps = 0
        self._foreign_steps = 0
        self._said: set[str] = set()

    def say(self, key: str, message: str) -> None:
        """Warn once of each thing."""
        if key not in self._said:
            self._said.add(key)
            warnings.warn(f"policy_noise: {message}", stacklevel=4)

    def masked(self) -> None:
        """A batch was masked."""
        self._masked = True

    def first_step(self, describe: Callable[[], str]) -> None:
        """Log once what is hooked."""
        if "info" not in self._said:
            self._said.add("info")
            logger.info("policy_noise: %s", describe())

    def stepped(self, *, paused: bool) -> None:
        """The hooked optimizer stepped."""
        self._foreign_steps = 0
        self._idle_steps = 0 if self._masked or paused else self._idle_steps + 1
        self._masked = False
        if self.model is None or self._idle_steps < PATIENCE:
            return
        name = type(self.model).__name__
        if self.evaluating:
            cause = f"{name} runs in eval mode: call model.train() before training"
        elif self.without_gradients:
            cause = f"{name} runs without gradients (torch.no_grad, inference_mode)"
        else:
            cause = (
                f"{name} was never called as a module. Call model(x), not model.forward(x) or forward_features; hook "
                "the module that the loop calls (the wrapper of DDP or torch.compile, not the one inside, and not the "
                "original of a copy)"
            )
        self.say("idle", f"{PATIENCE} optimizer steps passed and no image was masked. {cause}.")

    def foreign_step(self, optimizer: torch.optim.Optimizer, own: torch.optim.Optimizer | None) -> bool:
        """Another optimizer stepped: whether it trains the hooked model in the hooked one's place by now."""
        if optimizer is own or self.model is None:
            return False
        known = {id(parameter) for parameter in self.model.parameters()}
        if not any(id(p) in known for group in optimizer.param_groups for p in group["params"]):
            return False
        self._foreign_steps += 1
        if self._foreign_steps < FOREIGN_STEPS:
            return False
        self.say(
            "foreign",
            f"{type(optimizer).__name__} has stepped {FOREIGN_STEPS} times with parameters of "
            f"{type(self.model).__name__}, and the hooked optimizer has not: the policy does not learn. Call "
            "hook.rebind(optimizer) after an optimizer is made anew.",
        )
        return True

    def attached(self, optimizer: torch.optim.Optimizer | None, *, wrapped: bool, resumable: bool) -> None:
        """Look at model and optimizer once, when the hook is made."""
        if optimizer is None:
            return
        if self.model is not None and not wrapped:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            own = [p for p in self.model.parameters() if p.requires_grad]
            if own and not any(id(p) in held for p in own):
                self.say(
                    "foreign parameters",
                    f"the optimizer holds no parameter of {type(self.model).__name__}: pass the optimizer that trains "
                    "this model.",
                )
        if resumable and optimizer.state:
            self.say(
                "late",
                "the optimizer has a state already. If that was loaded from a checkpoint, the policy starts from "
                "scratch: attach before optimizer.load_state_dict(...), or call hook.load_state_dict(checkpoint[...]) "
                "with the same state.",
            )


def is_saved_without_policy() -> str | None:
    """The library that is reading an optimizer's state and will leave the policy out; None where all is kept."""
    frame = sys._getframe(1)
    for _ in range(16):
        if frame.f_back is None:
            return None
        frame = frame.f_back
        name = frame.f_globals.get("__name__", "")
        if name.startswith(SAVERS):
            return name.split(".")[0] if name.startswith("composer") else "torch.distributed.checkpoint"
    return None
