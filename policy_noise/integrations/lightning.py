"""Lightning: ``Trainer(callbacks=[PolicyNoiseCallback("model", "criterion")])``."""

import weakref
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from ..factory import attach
from ..hooks.hook import ReinforceHook
from ..utils.misc import extra
from ..utils.warn import warn

with extra(__name__, "Lightning", "lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["PolicyNoiseCallback"]


class PolicyNoiseCallback(Callback):
    """Train a LightningModule under random or learned masks.

    The hook is attached when fitting starts and removed when it ends. A later ``fit`` of the same module continues with
    the same policy. Another module (for example of the next fold) gets its own policy. The policy is saved in the
    callback's part of the checkpoint, whatever the strategy does with optimizer states.

    Automatic and manual optimization, accumulation and precision plugins work unchanged.

    Args:
        model: Name of the submodule that takes the images, such as ``"model"`` or ``"net.backbone"``. ``""`` is the
            LightningModule itself, for a ``training_step`` that calls ``self(x)``. Strategies that wrap it (DDP) call
            it with whole batches, so there you must name a submodule.
        criterion: Name of the loss module that ``training_step`` calls. If omitted, call
            ``callback.hook.observe(losses)`` with losses of shape (B,), or pass ``output_loss``.
        optimizer: Which of the module's optimizers trains that submodule, by its index in ``configure_optimizers``.
        log_metrics: Log ``hook.metrics`` as ``policy_noise/...`` beside your own, every ``log_every_n_steps``.
        settings: Any setting of :func:`policy_noise.attach`. With a loss masks are learned, unless ``preset="random"``.

    Raises:
        ValueError: When fitting starts, if there is no such submodule or optimizer.

    Example:
        >>> callback = PolicyNoiseCallback("model", "criterion")
        >>> trainer = Trainer(callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str,
        criterion: str | None = None,
        optimizer: int = 0,
        *,
        log_metrics: bool = False,
        **settings: Any,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.log_metrics = log_metrics
        self.settings = settings
        self.hook: ReinforceHook | None = None
        self._state: dict[str, Any] | None = None
        self._module: weakref.ref[LightningModule] | None = None
        self._pause: AbstractContextManager[None] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The optimizers exist by now, and their checkpoint is not loaded yet.
        if not 0 <= self.optimizer < len(trainer.optimizers):
            raise ValueError(
                f"optimizer must be an index into the {len(trainer.optimizers)} optimizers of configure_optimizers, "
                f"got {self.optimizer}"
            )
        if not self.model and trainer.strategy.model is not pl_module:
            raise ValueError(
                f"model='' cannot be hooked under {type(trainer.strategy).__name__}, which calls the LightningModule "
                "with whole batches: name the submodule that takes the images"
            )
        self.hook = attach(
            _submodule(pl_module, "model", self.model),
            trainer.optimizers[self.optimizer],
            None if self.criterion is None else _submodule(pl_module, "criterion", self.criterion),
            state_in_optimizer=False,
            **self.settings,
        )
        known = self._module is None or self._module() is pl_module
        self._module = weakref.ref(pl_module)
        if self._state is not None and (known or trainer.ckpt_path is not None):
            self.hook.load_state_dict(self._state)
        elif trainer.ckpt_path is not None:
            warn(
                f"{trainer.ckpt_path} was saved without a policy: the classifier resumes, and the policy starts "
                "from scratch"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # StochasticWeightAveraging runs one more epoch for BatchNorm's statistics, in training mode with gradients on.
        measuring = bool(getattr(trainer.fit_loop, "_skip_backward", False))
        if self.hook is not None and measuring and self._pause is None:
            self._pause = self.hook.paused()
            self._pause.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Reading the metrics waits for the device, so read them only when Lightning logs.
        due = trainer.global_step % trainer.log_every_n_steps == 0 or trainer.global_step == 1  # type: ignore[attr-defined]
        if self.log_metrics and self.hook is not None and due:
            pl_module.log_dict({f"policy_noise/{name}": float(value) for name, value in self.hook.metrics.items()})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hook()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_hook()

    def _remove_hook(self) -> None:
        if self._pause is not None:
            self._pause.__exit__(None, None, None)
            self._pause = None
        if self.hook is not None:
            self._state = self.hook.state_dict()
            self.hook.remove()

    @property
    def state_key(self) -> str:
        """The key differs by model and optimizer, so that several callbacks keep their own policies."""
        return self._generate_state_key(model=self.model, optimizer=self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.hook is None else self.hook.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict


def _submodule(module: nn.Module, argument: str, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        names = [child for child, _ in module.named_children()]
        raise ValueError(
            f"{argument} must name a submodule of {type(module).__name__} (such as {names}), got {name!r}"
        ) from error
