"""A hook's metrics and state, which is also saved in the optimizer's state dict."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from ..learning import PolicyLearner
from . import registry
from .copies import Functor
from .optimizers import stepping_optimizer
from .pairing import PairingQueue
from .streams import Draws
from .watch import Watch, is_saved_without_policy

__all__ = ["HookState"]

STATE_KEY = "policy_noise"
"""Key of the policy in the optimizer's state dict."""


class HookState:
    """The part of :class:`policy_noise.ReinforceHook` that reports, saves and restores, and hooks the optimizer."""

    learner: PolicyLearner
    _draws: Draws
    _queue: PairingQueue
    _watch: Watch
    _size: tuple[int, ...] | None
    _stepping: torch.optim.Optimizer | None
    _optimizer_handles: list[RemovableHandle]
    _optimizer_targets: list[Any]
    _state_in_optimizer: bool

    @property
    def policy_optimizer(self) -> torch.optim.Optimizer | None:
        """The policy's own optimizer; None if there is nothing to learn."""
        return self.learner.optimizer

    @property
    def metrics(self) -> dict[str, float]:
        """Diagnostics of the last step. The keys never change. A value is NaN as long as there is no number.

        ``reward``, ``baseline``, ``advantage_std``, ``entropy`` (nats per image), ``policy_grad_norm``,
        ``entropy_coef`` (with an ``entropy_target``), the augmentation's own metrics (``mask_mean`` and ``mask_std``
        for masks, after blur and scaling), ``samples_seen`` (images of all observed batches, unmasked and unlabelled
        ones included) and ``samples_dropped`` (images whose loss was not finite). Reading the metrics waits for the
        device; a step does not.
        """
        return self.learner.metrics(self._size)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume. It can be loaded with ``torch.load(weights_only=True)``."""
        generator = self._draws.generator
        return {
            **self.learner.state_dict(),
            "generator": None if generator is None else generator.get_state(),
            "seed": self._draws.seed,
            "steps": self._draws.steps,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a :meth:`state_dict`. If it does not fit, nothing is changed.

        Raises:
            ValueError: If the state belongs to another policy, or is not a hook's.
        """
        if isinstance(state_dict, Mapping) and isinstance(state_dict.get(STATE_KEY), Mapping):
            state_dict = state_dict[STATE_KEY]
        self.learner.check_state_dict(state_dict)
        missing = {"generator", "seed", "steps"} - state_dict.keys()
        if missing:
            raise ValueError(f"state_dict must be from a hook's state_dict(), got one without {sorted(missing)}")
        if self._draws.generator is not None and state_dict["generator"] is not None:
            self._draws.generator.set_state(state_dict["generator"].cpu())
        self.learner.load_state_dict(state_dict)
        self._queue.clear()
        self._draws.restore(state_dict["seed"], state_dict["steps"])

    # -- the optimizer -------------------------------------------------------------------------------------------------

    def _hook_optimizer(self, optimizer: Any) -> None:
        stepping = stepping_optimizer(optimizer)
        self._stepping = stepping
        self._optimizer_handles = [stepping.register_step_post_hook(Functor(self._after_step))]
        saved = stepping
        if self._state_in_optimizer:
            # Most wrappers forward state_dict() to the inner optimizer. Some (SAM) inherit torch's own.
            inherits = isinstance(optimizer, torch.optim.Optimizer) and (
                type(optimizer).state_dict is torch.optim.Optimizer.state_dict
            )
            saved = optimizer if inherits else stepping
            self._optimizer_handles += [
                saved.register_state_dict_post_hook(Functor(self._save_into)),
                saved.register_load_state_dict_pre_hook(Functor(self._load_from)),
            ]
        self._optimizer_targets = [optimizer, stepping]
        for target in self._optimizer_targets:
            registry.enter(target, self)  # type: ignore[arg-type]

    def _unhook_optimizer(self) -> None:
        for handle in self._optimizer_handles:
            handle.remove()
        for target in self._optimizer_targets:
            registry.leave(target, self)  # type: ignore[arg-type]
        self._optimizer_handles, self._optimizer_targets, self._stepping = [], [], None

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return  # GradScaler calls a fused optimizer even after an overflow; it skips the step itself
        self._step(optimizer.param_groups[0])

    def _step(self, group: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _save_into(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        saver = is_saved_without_policy()
        if saver is not None and not self.learner.frozen:
            self._watch.say(
                "saver",
                f"{saver} leaves the policy out of the optimizer's state: save hook.state_dict() beside it, and load "
                "it with hook.load_state_dict().",
            )
        return {**state_dict, STATE_KEY: self.state_dict()}

    def _load_from(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict = dict(state_dict)
        if STATE_KEY in state_dict:
            self.load_state_dict(state_dict.pop(STATE_KEY))
        elif not self.learner.frozen:
            warnings.warn(
                "the optimizer's state was saved without a policy: the classifier resumes, and the policy starts from "
                "scratch",
                stacklevel=4,
            )
        return state_dict
