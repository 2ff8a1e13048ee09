"""fastai: ``Learner(..., cbs=[PolicyNoiseCallback()])``.

``pip install 'policy_noise[fastai]'`` installs it.
"""

import copy
import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..factory import attach
from ..hooks.hook import ReinforceHook
from ..losses import LossSplitter, SampleLosses
from ..utils.misc import extra
from ..utils.model import unwrap

with extra(__name__, "fastai", "fastai"):
    from fastai.callback.core import Callback
    from fastai.callback.schedule import LRFinder, ParamScheduler
    from fastai.layers import NoneReduce
    from fastai.torch_core import to_float

__all__ = ["PolicyNoiseCallback"]


class PolicyNoiseCallback(Callback):  # type: ignore[misc]
    """Train a Learner's model under random or learned masks.

    The hook is attached when training begins and removed when ``fit`` ends. A later ``fit`` of the same model continues
    with the same policy. Another learner's model gets its own policy. ``lr_find`` trains under masks. Afterwards the
    policy is restored, like the model.

    All losses of fastai and torch work, and so does MixUp: each image's loss is computed with ``reduction="none"``, or
    else image by image. The policy steps after each optimizer step, with fastai's own optimizers and with an
    ``OptimWrapper``. Its learning rate follows that of the last parameter group, which is the one that fastai records.

    ``learn.save`` saves the model and its optimizer. Save the policy beside them with
    ``torch.save(callback.state_dict(), path)``, and call ``callback.load_state_dict(torch.load(path))`` before the next
    ``fit``.

    Args:
        settings: Any setting of :func:`policy_noise.attach`. With a loss masks are learned, unless ``preset="random"``.
            Pass the ``mean`` and ``std`` that the DataLoaders normalize with.

    Raises:
        ValueError: When training begins, if the settings ask for the paper's estimator but the loss is not a module.

    Example:
        >>> callback = PolicyNoiseCallback(mean=0.5, std=0.5)
        >>> learner = Learner(dls, model, cbs=[callback])  # doctest: +SKIP
    """

    order = 12  # after DistributedTrainer, which wraps the model, and MixUp, which replaces the loss
    _stateattrs = ("hook", "_policy", "_start", "_model", "_splitter")  # an exported Learner leaves them out

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._init_state()
        self.settings = settings

    def _init_state(self) -> None:
        super()._init_state()
        self.hook: ReinforceHook | None = None
        self._policy: Mapping[str, Any] | None = None
        self._start: dict[str, Any] | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._splitter: LossSplitter | None = None
        self._training = self._stepped = False

    def before_fit(self) -> None:
        """Remove the hook of an earlier fit that an exception ended."""
        self._remove_hook()

    def before_train(self) -> None:
        """Attach the hook in the first epoch. fastai does not call this for validation alone."""
        if self._training:
            return
        loss = self.learn.loss_func
        by_module = isinstance(loss, nn.Module)
        self._splitter = None if by_module else LossSplitter(loss)
        losses = {"criterion": loss} if by_module else {"output_loss": self._losses}
        hook = attach(self.learn.model, None, **{"state_in_optimizer": False, **losses, **self.settings})
        model = unwrap(self.learn.model)
        try:
            if hook.learner.scales_loss and not by_module:
                raise ValueError(
                    "estimator='paper' scales the loss, so the loss must be a torch.nn.Module, such as "
                    f"nn.CrossEntropyLoss(), and MixUp must not replace it; got {loss!r}"
                )
            if self._policy is not None and (self._model is None or self._model() is model):
                hook.load_state_dict(self._policy)
        except ValueError:
            hook.remove()
            raise
        self.hook, self._model, self._training = hook, weakref.ref(model), True
        finding = any(isinstance(callback, LRFinder) for callback in self.learn.cbs)
        self._start = copy.deepcopy(hook.state_dict()) if finding else None
        hook.learner.rate.peak = max(hook.learner.rate.peak, self._planned_peak())

    def before_step(self) -> None:
        """Note that a step is about to run."""
        self._stepped = True

    def after_cancel_step(self) -> None:
        """Note that the step was skipped, because the gradient overflowed."""
        self._stepped = False

    def after_step(self) -> None:
        """Step the policy after the model."""
        if self.hook is not None and self._stepped:
            self.hook.step(float(self.learn.opt.hypers[-1]["lr"]))

    def after_fit(self) -> None:
        """Remove the hook, but keep the policy."""
        self._remove_hook()

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume the policy. Empty before the first fit."""
        if self._training and self.hook is not None:
            return self.hook.state_dict()
        return dict(self._policy or {})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue with a saved policy in the next fit.

        Raises:
            ValueError: When that fit begins, if the state belongs to another policy.
        """
        self._remove_hook()
        self._policy, self._model = dict(state_dict) or None, None

    def _planned_peak(self) -> float:
        """The largest learning rate in this fit's schedule, or 0 without a schedule."""
        schedules = [
            each.scheds["lr"] for each in self.learn.cbs if isinstance(each, ParamScheduler) and "lr" in each.scheds
        ]
        rates = [schedule(place / 100) for schedule in schedules for place in range(101)]
        return max((float(rate[-1] if hasattr(rate, "__len__") else rate) for rate in rates), default=0.0)

    def _remove_hook(self) -> None:
        if self._training and self.hook is not None:
            self._policy = self.hook.state_dict() if self._start is None else self._start
            self.hook.remove()
        self._training = False

    def _losses(self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | SampleLosses:
        """Compute one loss per image, if the loss is not a module."""
        loss = self.learn.loss_func
        output, targets = to_float(output), self.learn.yb
        reduced = getattr(getattr(loss, "__self__", None), "old_lf", loss)  # MixUp wraps the learner's loss
        if not hasattr(reduced, "reduction"):
            assert self._splitter is not None
            return self._splitter((output, *targets), {}, None)
        with NoneReduce(reduced):
            values = loss(output, *targets)
        return values.as_subclass(Tensor).float().view(len(self.learn.xb[0]), -1).mean(1)
