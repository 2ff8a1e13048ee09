"""Compute one loss per sample from any criterion, and check them against the loss that the criterion returned."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .agreement import TOLERANCE, Agreement, agree, agree_weighted, pools, supervised
from .batch import HALF, Call, Structures, devices_of, loss_of
from .isolation import Snapshot, evaluator, is_stateless
from .ways import Parts, from_reducer, leave_one_out, one_by_one, unreduced, vectorized

__all__ = ["CriterionError", "LossSplitter", "SampleLosses", "per_sample_loss"]

Way = Callable[[Any, Call, Snapshot | None, bool], Parts | None]

REDUCTION = "reduction='none'"
WAYS: dict[str, Way] = {
    REDUCTION: unreduced,
    "the library's unreduced terms": from_reducer,
    "one sample at a time (vmap)": vectorized,
    "one sample at a time (loop)": one_by_one,
}
OBSERVE = (
    "if it can give unreduced losses (reduction='none', a reducer), train on their mean and call hook.observe(losses) "
    "with one loss per image, shape (B,), instead of hooking the criterion"
)


LOOKS = 3
"""Number of comparisons for criteria that may have a state. A fresh state can hide that the samples are coupled."""


class CriterionError(RuntimeError):
    """No loss per sample can be computed from a criterion."""


@dataclass(frozen=True)
class SampleLosses:
    """One loss per sample.

    Args:
        values: The losses, detached, in fp32; 0 for samples without supervision.
        valid: False for samples without supervision (all their labels are ignored, or their mask is empty). None if all
            samples count.

    Shape:
        - values: (N,).
        - valid: (N,), bool.
    """

    values: Tensor
    valid: Tensor | None


@dataclass(frozen=True)
class _Plan:
    way: str
    only_finite: bool
    looks: int


class LossSplitter:
    """Compute one loss per sample from a criterion, and check it on the first call of each shape.

    These ways are tried in turn: the criterion's own ``reduction="none"``, averaged over all axes but the batch
    (pixels, labels); the unreduced terms of pytorch-metric-learning; the criterion on each sample alone. The first way
    whose samples give the loss of the batch (as their mean, their sum or with the criterion's own weights) is used for
    calls of these shapes. For criteria that may have a state, three calls are compared. Afterwards nothing is compared,
    and nothing waits for the device.

    The second evaluation runs on a copy, with the state that :meth:`before` saw. So the criterion, its buffers and the
    random generators stay as the loop left them. Criteria of torch and timm have no state and are not copied.

    Some losses sum over the batch before they divide (MONAI's ``batch=True``, the overlaps of
    segmentation_models_pytorch), so they are not a mean over samples. Each sample then gets the loss of its own
    overlap.

    Args:
        criterion: The loss module or function that the training loop calls. Its forward hooks do not run here.
        method: ``"auto"``, or ``"leave_one_out"`` for losses that couple samples (contrastive, triplets): the amount
            that each sample adds to the loss of its batch. This costs B + 1 evaluations and is not compared.

    Raises:
        ValueError: If ``method`` is neither.
    """

    def __init__(self, criterion: Callable[..., Any], method: Literal["auto", "leave_one_out"] = "auto") -> None:
        if method not in ("auto", "leave_one_out"):
            raise ValueError(f"method must be 'auto' or 'leave_one_out', got {method!r}")
        self.criterion = criterion
        self.method = method
        self._stateless = is_stateless(criterion)
        self._structures = Structures()
        self._plans: dict[Any, tuple[Any, _Plan]] = {}
        self._before: Snapshot | None = None
        self._last: Snapshot | None = None
        self._way = ""

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Save the criterion's state before its forward pass. Costs nothing for criteria without state."""
        if not self._stateless:
            self._before = self._last = Snapshot(self.criterion, devices_of(args, kwargs), self._last)

    def describe(self) -> str:
        """Describe in a phrase how the losses are computed."""
        return self._way or "not called yet"

    __str__ = describe

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Any) -> SampleLosses:
        """Compute one loss per sample for a call of the criterion.

        Args:
            args: The arguments that the criterion was called with.
            kwargs: Its keyword arguments.
            loss: The loss that it returned. None if that is unknown, which costs one evaluation for each new shape.

        Shape:
            - args, kwargs: any tree of tensors whose first axis is the batch, and anything else.

        Raises:
            CriterionError: If the losses of the samples do not agree with the loss.
        """
        state, self._before = self._before, None
        try:
            calls = self._structures.candidates(args, kwargs)
        except ValueError as error:
            raise CriterionError(f"criterion {self._name} {error}") from None
        call, device = calls[0], calls[0].tensors[0].device.type
        half = call.half or torch.is_autocast_enabled(device)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            if state is None and not self._stateless:
                state = self._last = Snapshot(self.criterion, devices_of(args, kwargs), self._last)
            if self.method == "leave_one_out":
                self._way = f"leave-one-out ({call.size + 1} evaluations)"
                return self._finish(self._leave_one_out(call, state), call)
            spec, plan = self._plans.get(call.shapes, (None, None))
            if plan is not None and spec == call.spec and plan.looks >= (1 if self._stateless else LOOKS):
                self._way = plan.way
                parts = WAYS[plan.way](self.criterion, call, state, True)
                if parts is None:
                    raise CriterionError(f"criterion {self._name} has changed: {plan.way} no longer gives losses")
                return self._finish(parts, call, plan.only_finite)
            return self._look(calls, state, loss_of(loss), half)

    @property
    def _name(self) -> str:
        return getattr(self.criterion, "__name__", type(self.criterion).__name__)

    def _leave_one_out(self, call: Call, state: Snapshot | None) -> Parts:
        try:
            return leave_one_out(self.criterion, call, state)
        except Exception as error:
            raise CriterionError(
                f"criterion {self._name} fails without one of the samples ({error}); {OBSERVE}"
            ) from error

    def _look(self, calls: list[Call], state: Snapshot | None, loss: Tensor | None, half: bool) -> SampleLosses:
        """Try the ways in turn until the losses of one agree with the criterion's."""
        if loss is None:
            loss = self._evaluate(calls[0], state)
            half = False
        if loss.numel() > 1 and len(loss) == calls[0].size:
            self._way = "as the criterion returns them"
            rows = loss.detach().reshape(len(loss), -1)
            whole = isinstance(self.criterion, nn.CrossEntropyLoss | nn.NLLLoss)
            return self._finish(Parts(rows.sum(1) if whole else rows.mean(1)), calls[0])
        tolerance = TOLERANCE[half or loss.dtype in HALF]
        failure: Exception | None = None
        refused: list[tuple[str, Call, Parts]] = []
        for call in calls:
            for way, function in WAYS.items():
                try:
                    parts = function(self.criterion, call, state, False)
                except Exception as error:
                    failure = error
                    continue
                if parts is None:
                    continue
                agreement = agree(parts, supervised(self.criterion, parts, call), loss, tolerance)
                if agreement is None:
                    refused.append((way, call, parts))
                    if function is vectorized:
                        break  # the loop would give the same losses
                    continue
                return self._keep(way, call, parts, agreement)
        alone = [item for item in refused if item[0].startswith("one sample")]
        if alone and pools(self.criterion):
            return self._keep(*alone[0], Agreement(sure=True))
        if alone and refused[0][0] == REDUCTION and agree_weighted(refused[0][2], alone[0][2], loss, tolerance):
            return self._keep(*refused[0], Agreement(sure=True))
        raise CriterionError(self._reason(loss, failure, refused)) from failure

    def _evaluate(self, call: Call, state: Snapshot | None) -> Tensor:
        try:
            with nullcontext(self.criterion) if state is None else state.evaluate() as criterion:
                returned = call.on(evaluator(criterion))
        except Exception as error:
            raise CriterionError(f"criterion {self._name} fails on these arguments ({error})") from error
        loss = loss_of(returned)
        if loss is None:
            raise CriterionError(f"criterion {self._name} returned {type(returned).__name__}, not a loss; {OBSERVE}")
        return loss

    def _keep(self, way: str, call: Call, parts: Parts, agreement: Agreement) -> SampleLosses:
        self._way = way
        if agreement.sure:
            self._structures.settle(call)
            looks = self._plans[call.shapes][1].looks if call.shapes in self._plans else 0
            self._plans[call.shapes] = (call.spec, _Plan(way, agreement.only_finite, looks + 1))
        return self._finish(parts, call, agreement.only_finite)

    def _reason(self, loss: Tensor, failure: Exception | None, refused: list[tuple[str, Call, Parts]]) -> str:
        alone = [parts for way, _, parts in refused if way.startswith("one sample")]
        if not alone:
            why = f"gives no loss for a single sample ({failure})"
        elif loss.numel() != 1:
            why = f"returned a loss of shape {tuple(loss.shape)}, neither one number nor one per sample"
        else:
            why = (
                "is not a mean or sum over samples: the mean loss of single samples is "
                f"{float(alone[0].values.mean()):.4g}, but the batch's loss is {float(loss):.4g} (it couples samples, "
                "or draws random numbers)"
            )
        return f"criterion {self._name} {why}; {OBSERVE}, or choose method='leave_one_out' (B + 1 evaluations)"

    def _finish(self, parts: Parts, call: Call, only_finite: bool = False) -> SampleLosses:
        values = parts.values.float()
        if parts.valid is not None:
            return SampleLosses(values, parts.valid)
        valid = supervised(self.criterion, parts, call)
        if only_finite:
            valid = values.isfinite() if valid is None else valid & values.isfinite()
        return SampleLosses(values if valid is None else torch.where(valid, values, 0), valid)


def per_sample_loss(
    criterion: Callable[..., Any], *args: Any, method: Literal["auto", "leave_one_out"] = "auto", **kwargs: Any
) -> Tensor:
    """Compute a criterion's loss for each sample, without gradient and in fp32.

    This is the functional form of :class:`LossSplitter`. It has no memory, so each call evaluates the criterion once
    more to compare. With ``reduction="mean"`` and class weights, each sample's loss includes its weight, scaled so that
    the mean over the samples that have a label is the criterion's own value.

    A criterion with ``num_splits`` (timm's :class:`JsdCrossEntropy`) couples that many views of an image. Their masks
    caused the loss together, so each view gets the whole loss of its image.

    Args:
        criterion: The loss module or function that the training loop calls. Its forward hooks do not run here.
        args: The arguments that the loop called it with: model output, targets.
        method: As in :class:`LossSplitter`.
        kwargs: Keyword arguments, likewise.

    Shape:
        - args, kwargs: any tree of tensors whose first axis is the batch, and anything else.
        - Output: (B,), detached, fp32. A sample without supervision (all its labels are ignored) has 0.

    Raises:
        CriterionError: If the criterion has no loss for a single sample (it couples the samples).

    Example:
        >>> logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        >>> per_sample_loss(nn.CrossEntropyLoss(), logits, targets).shape
        torch.Size([4])
    """
    return LossSplitter(criterion, method)(args, kwargs, None).values
