"""MONAI and ignite: ``SupervisedTrainer(..., train_handlers=[PolicyNoiseHandler()])``."""

import weakref
from typing import Any

from torch import nn

from ..factory import attach
from ..hooks.hook import ReinforceHook
from ..utils.misc import extra

with extra(__name__, "MONAI and ignite", "monai"):
    from ignite.engine import Engine, Events

__all__ = ["PolicyNoiseHandler"]


class PolicyNoiseHandler:
    """Train the network of MONAI's SupervisedTrainer under random or learned masks.

    Volumes get a mask with three axes. The policy is saved in the optimizer's state: put this handler before a
    ``CheckpointLoader`` in ``train_handlers``, and let the savers save the optimizer. Losses with a ``reduction``
    (DiceLoss, FocalLoss) and sums of them (DiceCELoss) give one loss per volume. A second run of the same network
    continues with the same policy. Another network (for example of the next fold) gets its own policy.

    For your own ignite engine, pass its network, optimizer and loss. MONAI's trainer has them as attributes.

    Args:
        network: The module that is called with images; by default ``engine.network``.
        optimizer: By default ``engine.optimizer``.
        loss_function: A module; by default ``engine.loss_function``.
        settings: Any setting of :func:`policy_noise.attach`. With a loss masks are learned, unless ``preset="random"``.

    Example:
        >>> handler = PolicyNoiseHandler(grid_size=4)
        >>> trainer = SupervisedTrainer(..., train_handlers=[handler])  # doctest: +SKIP
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        optimizer: Any = None,
        loss_function: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.loss_function = loss_function
        self.settings = settings
        self.hook: ReinforceHook | None = None
        self._network: weakref.ref[nn.Module] | None = None

    def attach(self, engine: Engine) -> None:
        """Register with an engine. The hook is attached when the engine starts, because it may have no network yet."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._stop)

    def _start(self, engine: Engine) -> None:
        self._stop(engine)  # a run that ended with an exception did not do this
        network = engine.network if self.network is None else self.network  # type: ignore[attr-defined]
        known = self._network is not None and self._network() is network
        self._network = weakref.ref(network)
        state = self.hook.state_dict() if self.hook is not None and known else None
        self.hook = attach(
            network,
            engine.optimizer if self.optimizer is None else self.optimizer,  # type: ignore[attr-defined]
            engine.loss_function if self.loss_function is None else self.loss_function,  # type: ignore[attr-defined]
            **self.settings,
        )
        if state is not None:
            self.hook.load_state_dict(state)

    def _stop(self, engine: Engine) -> None:
        if self.hook is not None:
            self.hook.remove()
