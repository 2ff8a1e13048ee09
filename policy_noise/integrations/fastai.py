"""fastai: ``Learner(..., cbs=[PolicyNoiseCallback()])``."""

from typing import Any

from torch import nn

from ..factory import attach
from ..hooks.hook import ReinforceHook

try:
    from fastai.callback.core import Callback
    from fastai.optimizer import OptimWrapper
except ImportError as error:
    raise ImportError("policy_noise.integrations.fastai needs fastai: pip install fastai") from error

__all__ = ["PolicyNoiseCallback"]


class PolicyNoiseCallback(Callback):  # type: ignore[misc]
    """Train a Learner's model under a learned noise mask.

    fastai's own optimizers are no torch optimizers: the policy steps after each of their steps, with their learning
    rate. An ``OptimWrapper`` is looked through. The policy is kept from one ``fit`` to the next.

    Args:
        settings: Any setting of :func:`policy_noise.attach`.

    Example:
        >>> learner = Learner(dls, model, cbs=[PolicyNoiseCallback(grid_size=4)])  # doctest: +SKIP
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.hook: ReinforceHook | None = None

    def before_fit(self) -> None:
        """Attach, with the policy of the fit before."""
        self.after_fit()  # a fit that an exception ended has not come to it
        state = None if self.hook is None else self.hook.state_dict()
        loss = self.learn.loss_func
        criterion = loss if isinstance(loss, nn.Module) else getattr(loss, "func", loss)
        optimizer = self.learn.opt if isinstance(self.learn.opt, OptimWrapper) else None
        self.by_hand = optimizer is None
        self.hook = attach(self.learn.model, optimizer, criterion, **self.settings)
        if state is not None:
            self.hook.load_state_dict(state)

    def before_step(self) -> None:
        """Expect a step."""
        self.cancelled = False

    def after_cancel_step(self) -> None:
        """No step came."""
        self.cancelled = True

    def after_step(self) -> None:
        """Step the policy where no torch optimizer does."""
        if self.hook is not None and self.by_hand and not self.cancelled:
            self.hook.step(self.learn.opt.hypers[-1]["lr"])

    def after_fit(self) -> None:
        """Take the hook off."""
        if self.hook is not None:
            self.hook.remove()
