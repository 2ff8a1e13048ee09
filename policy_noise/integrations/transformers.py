"""Hugging Face transformers: ``Trainer(..., callbacks=[PolicyNoiseCallback()])``."""

import base64
import io
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ..factory import attach
from ..hooks.hook import ReinforceHook
from ..losses import LossSplitter
from ..utils.misc import extra
from ..utils.warn import warn

with extra(__name__, "transformers", "transformers"):
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState

__all__ = ["PolicyNoiseCallback"]

CLASSIFICATION = ("ForImageClassification", "ForSequenceClassification")
"""The ``loss_type`` of models whose loss can be computed from logits and labels alone."""


class PolicyNoiseCallback(TrainerCallback, ExportableState):
    """Train a model of the Trainer under random or learned masks.

    Image classifiers that compute their loss inside work unchanged: each image's loss is computed from ``logits`` and
    ``labels`` with the model's own loss function. The policy is saved in ``trainer_state.json``, and restored by
    ``trainer.train(resume_from_checkpoint=...)``. Training the same model again continues with the same policy. Another
    model (for example of the next fold) gets its own policy.

    Args:
        criterion: Loss module that your ``compute_loss_func`` calls, if the loss is computed outside the model.
            (With ``label_smoothing_factor`` the Trainer computes its own loss. Use
            ``nn.CrossEntropyLoss(label_smoothing=...)`` instead.)
        settings: Any setting of :func:`policy_noise.attach`. With a loss masks are learned, unless ``preset="random"``.
            Pass ``output_loss`` for models with other losses inside.

    Raises:
        ValueError: When training starts, if no loss per image can be computed.

    Example:
        >>> callback = PolicyNoiseCallback(mean=0.5, std=0.5)
        >>> trainer = Trainer(model, args, callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(self, criterion: nn.Module | None = None, **settings: Any) -> None:
        self.criterion = criterion
        self.settings = settings
        self.hook: ReinforceHook | None = None
        self._inside: _LossInside | None = None
        self._model: weakref.ref[nn.Module] | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self.hook is not None:
            self.hook.remove()  # a run that ended with an exception did not do this
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        settings = dict(self.settings)
        if self.criterion is not None:
            settings["criterion"] = self.criterion
        elif "output_loss" not in settings:
            settings["output_loss"] = self._inside = _LossInside(args, model)
        # By now a mapping by class name. Saving would fail if the mapping of a resumed checkpoint lacked this callback.
        stateful: Any = state.stateful_callbacks
        known = self._model is None or self._model() is model
        self._model = weakref.ref(model)
        saved = stateful.setdefault(type(self).__name__, self.state())["attributes"].get("policy")
        # The Trainer has already loaded the optimizer's state, so the policy's state is kept separately.
        self.hook = attach(model, optimizer, state_in_optimizer=False, **settings)
        if saved is not None and (known or state.global_step):
            stream = io.BytesIO(base64.b64decode(saved))
            self.hook.load_state_dict(torch.load(stream, map_location=model.device, weights_only=True))
        elif state.global_step:
            warn(
                "the checkpoint was saved without a policy: the classifier resumes, and the policy starts from scratch"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._inside is not None:
            self._inside.check_trained_on()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.hook is not None:
            self.hook.remove()

    def state(self) -> dict[str, Any]:
        """Return the policy as text, because trainer_state.json cannot hold tensors."""
        if self.hook is None:
            return {"args": {}, "attributes": {}}
        stream = io.BytesIO()
        torch.save(self.hook.state_dict(), stream)
        return {"args": {}, "attributes": {"policy": base64.b64encode(stream.getvalue()).decode("ascii")}}


class _LossInside:
    """Compute one loss per image from logits and labels, with the model's own loss function.

    Raises:
        ValueError: If the model's loss cannot be computed this way.
    """

    def __init__(self, args: TrainingArguments, model: nn.Module) -> None:
        if args.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {args.label_smoothing_factor}, so the Trainer computes its own loss: use "
                "compute_loss_func with a loss module, and pass that module as criterion"
            )
        if getattr(model, "loss_type", None) not in CLASSIFICATION:
            raise ValueError(
                f"criterion must be given for {type(model).__name__}, whose loss cannot be computed from logits and "
                "labels: pass criterion (a module that compute_loss_func calls) or output_loss"
            )

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return model.loss_function(labels, logits, model.config)  # type: ignore[operator]

        self._splitter = LossSplitter(loss)
        self._waiting = self._trained_on = self._checked = False

    def __call__(self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if kwargs.get("labels") is None:
            raise ValueError("the model was called without labels: pass criterion (what compute_loss_func calls)")
        if not self._checked and output["loss"].requires_grad:
            self._waiting = True
            output["loss"].register_hook(self._seen)
        return self._splitter((output["logits"], kwargs["labels"]), {}, None).values

    def _seen(self, gradient: Tensor) -> None:
        self._trained_on = True

    def check_trained_on(self) -> None:
        """Warn once, after the first step, if no gradient went through the loss that the model computed."""
        if self._waiting and not self._checked and not self._trained_on:
            warn(
                "the model computed a loss from its labels, but training does not use it (does your Trainer override "
                "compute_loss?): the policy's reward is not the loss that is trained on; pass criterion (the loss "
                "module that compute_loss calls) or output_loss to PolicyNoiseCallback"
            )
        self._checked = self._checked or self._waiting
