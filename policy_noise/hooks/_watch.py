"""Warn if a hook has no effect: one warning per cause, within ten steps."""

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..utils.warn import Once

__all__ = ["Watch"]

logger = logging.getLogger("policy_noise")

PATIENCE = 5
"""Warn after this many steps without a masked batch."""
FOREIGN_STEPS = 5
"""Warn after this many steps in which another optimizer, not the hooked one, trains the model's parameters."""


class Watch:
    """Count a hook's events, and warn if one that should happen does not.

    Args:
        model: The hooked model, if there is one.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model
        self._copied = False
        self._masked = self._ever_masked = False
        self._evaluated = self._ran_without_gradients = False
        self._evaluating_steps = self._gradientless_steps = 0
        self._idle_steps = 0
        self._foreign_steps: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()
        self._copy_steps = 0
        self._described = False
        self._once = Once()

    def say(self, cause: str, message: str) -> None:
        """Warn once for each cause."""
        self._once.warn(cause, message)

    def was_copied(self) -> None:
        """Note that the hooked model was copied."""
        self._copied = True

    def masked(self) -> None:
        """Note that a batch was masked, or left unmasked on purpose."""
        self._masked = self._ever_masked = True

    def skipped(self, *, evaluating: bool, without_gradients: bool) -> None:
        """Note that a batch was left unmasked, and why."""
        self._evaluated |= evaluating
        self._ran_without_gradients |= without_gradients

    @property
    def suspects_copy(self) -> bool:
        """Whether the hooked model was copied, and never called itself."""
        return self._copied and not self._ever_masked

    def transformed(self) -> None:
        """Warn that the model was called under a torch.func transform."""
        self.masked()
        self.say(
            "functorch",
            "the model runs under torch.func transforms, where nothing is masked or learned: call "
            "hook.apply(images) before the transform and hook.observe(losses) after it, or compute gradients with "
            "loss.backward().",
        )

    def several_inputs(self, names: Sequence[Any]) -> None:
        """Warn that several inputs look like images, of which the first is masked."""
        self.say(
            "inputs",
            f"the inputs {', '.join(map(repr, names))} look like images, and {names[0]!r} alone is masked: pass "
            f"input_name={names[0]!r} if that is meant, else input_name={tuple(names)!r}, which gives each a mask (or "
            "all the same with shared_mask=True).",
        )

    def first_step(self, describe: Callable[[], str]) -> None:
        """Log, once, what is hooked."""
        if not self._described:
            self._described = True
            logger.info("policy_noise: %s", describe())

    def stepped(self, *, paused: bool) -> None:
        """Note a step of the hooked optimizer, and warn if no batch was masked for several steps."""
        self._foreign_steps.clear()
        self._idle_steps = 0 if self._masked or paused else self._idle_steps + 1
        self._masked = False
        # Evaluation between epochs is normal. A cause must be seen at each of these steps.
        self._evaluating_steps = self._evaluating_steps + 1 if self._evaluated else 0
        self._gradientless_steps = self._gradientless_steps + 1 if self._ran_without_gradients else 0
        self._evaluated = self._ran_without_gradients = False
        if self.model is None or self._idle_steps < PATIENCE:
            return
        name = type(self.model).__name__
        if self._evaluating_steps >= PATIENCE:
            cause = f"{name} runs in eval mode: call model.train() before training"
        elif self._gradientless_steps >= PATIENCE:
            cause = f"{name} runs without gradients (torch.no_grad, inference_mode)"
        else:
            cause = (
                f"{name} was never called as a module. Call model(x), not model.forward(x) or forward_features; hook "
                "the module that the loop calls (the wrapper of DDP or torch.compile, not the one inside, and not the "
                "original of a copy)"
            )
        self.say("idle", f"{PATIENCE} optimizer steps passed, but no image was masked. {cause}.")

    def foreign_step(self, optimizer: torch.optim.Optimizer, own: torch.optim.Optimizer | None) -> bool:
        """Note a step of another optimizer. Returns True if it trains the hooked model in place of the hooked one."""
        if optimizer is own or self.model is None:
            return False
        known = {id(parameter) for parameter in self.model.parameters()}
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        if not any(id(p) in known for p in trained):
            self._copy_step(trained)
            return False
        # With one optimizer for each layer the others step once between two steps of the hooked one.
        self._foreign_steps[optimizer] = self._foreign_steps.get(optimizer, 0) + 1
        if self._foreign_steps[optimizer] < FOREIGN_STEPS:
            return False
        self.say(
            "foreign",
            f"{type(optimizer).__name__} has stepped {FOREIGN_STEPS} times with parameters of "
            f"{type(self.model).__name__}, but the hooked optimizer has not: the policy does not learn. Call "
            "hook.rebind(optimizer) after making a new optimizer.",
        )
        return True

    def _copy_step(self, trained: list[nn.Parameter]) -> None:
        """Note a step on another model. If it looks like a copy of the hooked model, which is never called, warn."""
        if self.model is None or not self.suspects_copy:
            return
        shapes = sorted(p.shape for p in self.model.parameters() if p.requires_grad)
        if sorted(p.shape for p in trained) != shapes:
            return
        self._copy_steps += 1
        if self._copy_steps >= FOREIGN_STEPS:
            self.say(
                "copy",
                f"a copy of {type(self.model).__name__} is trained, but the hooked model is never called: copies have "
                "no hooks. Attach to the copy.",
            )

    def attached(self, optimizer: torch.optim.Optimizer | None, *, wrapped: bool, resumable: bool) -> None:
        """Check model and optimizer once, when the hook is made."""
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
        if resumable and any(_has_stepped(state) for state in optimizer.state.values()):
            self.say(
                "late",
                "the optimizer already has a state. If it was loaded from a checkpoint, the policy starts from "
                "scratch: attach before optimizer.load_state_dict(...), or call hook.load_state_dict(checkpoint[...]) "
                "with the same state.",
            )


def _has_stepped(state: Any) -> bool:
    """Whether a parameter's state comes from a step. Some optimizers (Adagrad, Adahessian) have one from the start."""
    return bool(state.get("step", any(isinstance(value, torch.Tensor) for value in state.values())))
