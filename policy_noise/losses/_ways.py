"""The ways to compute one loss per sample from a call of the criterion."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._batch import Call, loss_of
from ._isolation import Snapshot, evaluator

__all__ = ["ALONE", "REDUCTION", "WAYS", "Evaluation", "Parts", "Way", "leave_one_out"]

PROBES = 8
"""Samples of a loop after which its duration is estimated."""
SLOW = 10.0
"""Seconds of a loop that are said before they have passed."""

NOT_OF_SAMPLES = ("ProxyAnchorLoss", "VICRegLoss")
"""Losses of pytorch-metric-learning whose numbered terms belong to proxies or features, not to samples."""


@dataclass(frozen=True)
class Parts:
    """The samples' losses, and if they are known their weights in the criterion's mean and which of them count.

    Shape:
        - values, weights: (N,).
        - valid: (N,), bool.
    """

    values: Tensor
    weights: Tensor | None = None
    valid: Tensor | None = None


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a criterion again on a call's arguments, and changes neither.

    Args:
        criterion: The criterion.
        call: The call.
        state: A copy of the criterion and of the objects that it was called with, from before the call. None if the
            criterion certainly changes nothing.
        slow: Called with an estimate of the seconds that a long loop will take.
    """

    criterion: Any
    call: Call
    state: Snapshot | None
    slow: Callable[[float], None]

    @contextmanager
    def copies(self, *, last: bool = False) -> Iterator[tuple[Any, Call]]:
        """Yield criterion and call to evaluate once. ``last`` saves a copy, and nothing can be evaluated after it."""
        if self.state is None:
            yield self.criterion, self.call
            return
        with self.state.evaluate(last=last) as (own, *objects):
            yield own, self.call.with_objects(objects)

    def returned(self, tensors: Sequence[Tensor] | None = None) -> Any:
        """What the criterion returns. ``tensors``, if given, replace the batches among its arguments."""
        with self.copies() as (own, call):
            return call.on(evaluator(own), tensors)


Way = Callable[[Evaluation, bool], Parts | None]
"""A function of an evaluation, and of whether it is the last one. Returns None if the criterion offers no such way."""


def _unreduced(evaluation: Evaluation, last: bool) -> Parts | None:
    """Use the criterion's own ``reduction="none"``."""
    criterion = evaluation.criterion
    reduction = getattr(criterion, "reduction", None)
    if reduction not in ("mean", "sum", "none", "batchmean") or getattr(criterion, "batch", False) is True:
        return None  # MONAI's batch=True sums over the batch before it divides
    with evaluation.copies(last=last) as (own, call):
        # A shallow copy shares the weights, and the user's object is not changed.
        unreduced = object.__new__(type(own))
        unreduced.__dict__.update(own.__dict__)
        unreduced.reduction = "none"
        try:
            values = call.on(unreduced.forward)
        except Exception:  # it has reductions, but not "none"
            return None
    if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != call.size:
        return None
    if type(criterion).forward in (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward):
        return call.on(lambda input, target: _class_average(criterion, values, target))
    rows = values.reshape(len(values), -1)
    return Parts(rows.sum(1) if reduction in ("sum", "batchmean") else rows.mean(1))


def _class_average(criterion: nn.CrossEntropyLoss | nn.NLLLoss, values: Tensor, target: Tensor) -> Parts:
    """Average unreduced cross-entropies as torch does: by class weight, leaving ignored positions out."""
    rows = values if values.ndim == 1 else values.reshape(len(values), -1)
    if target.is_floating_point():
        return Parts(rows if rows.ndim == 1 else rows.mean(1) if criterion.reduction == "mean" else rows.sum(1))
    kept = target != criterion.ignore_index
    valid = kept if kept.ndim == 1 else kept.reshape(len(kept), -1).any(1)
    if criterion.reduction != "mean":
        return Parts(rows if rows.ndim == 1 else rows.sum(1), valid=valid)
    if criterion.weight is None and target.ndim == 1:
        return Parts(values, valid=valid)
    weight = kept.to(values.dtype)
    if criterion.weight is not None:
        weight = weight * criterion.weight[torch.where(kept, target, 0)].to(values.dtype)
    tiny = torch.finfo(weight.dtype).tiny
    if target.ndim > 1:  # several positions per sample: take each sample's weighted mean
        weight = weight.reshape(len(values), -1).sum(1)
        return Parts(rows.sum(1) / weight.clamp(min=tiny), weight, valid)
    return Parts(values * (kept.sum() / weight.sum().clamp(min=tiny)), valid=valid)


def _vectorized(evaluation: Evaluation, last: bool) -> Parts:
    """Call the criterion on batches of one image, all at once with :func:`torch.vmap`."""
    splits, samples = _samples(evaluation)
    with evaluation.copies(last=last) as (own, call):
        function = evaluator(own)
        losses = torch.vmap(lambda *rows: _scalar(call.on(function, rows)), in_dims=1)(*samples)
    return Parts(losses.repeat(splits) if splits > 1 else losses)


def _one_by_one(evaluation: Evaluation, last: bool) -> Parts:
    """Do the same in a loop, for criteria that vmap cannot batch (data-dependent control flow, in-place writes)."""
    splits, samples = _samples(evaluation)
    call = evaluation.call
    losses: list[Tensor] = []
    start = time.perf_counter()
    for i in range(call.size // splits):
        losses.append(_scalar(evaluation.returned([rows[:, i] for rows in samples])))
        if len(losses) == PROBES and (time.perf_counter() - start) * call.size / PROBES > SLOW:
            evaluation.slow((time.perf_counter() - start) * call.size / PROBES)
    return Parts(torch.stack(losses).repeat(splits))


def leave_one_out(evaluation: Evaluation) -> Parts:
    r"""Compare the batch's loss with the loss without each sample, in B + 1 evaluations.

    With :math:`L` the loss of all n samples and :math:`L_{-i}` the loss without sample i, the loss of sample i is
    :math:`n L - (n - 1) L_{-i}`, or :math:`L - L_{-i}` with ``reduction="sum"``. If the samples are not coupled, this
    is the sample's own loss.
    """
    tensors, size = evaluation.call.tensors, evaluation.call.size
    rows = torch.arange(size, device=tensors[0].device)
    whole = _scalar(evaluation.returned())
    kept = [rows[rows != i] for i in range(size)]
    rest = torch.stack([_scalar(evaluation.returned([tensor[others] for tensor in tensors])) for others in kept])
    if getattr(evaluation.criterion, "reduction", "mean") == "sum":
        return Parts(whole - rest)
    return Parts(size * whole - (size - 1) * rest)


def _from_reducer(evaluation: Evaluation, last: bool) -> Parts | None:
    """Split the terms that a loss of pytorch-metric-learning passes to its reducer among their samples.

    Each of a pair's two samples gets half of its loss, and each of a triplet's three samples a third. A term's weight
    is the derivative of the reduced loss with respect to the term.
    """
    criterion = evaluation.criterion
    if not callable(getattr(criterion, "compute_loss", None)) or not isinstance(
        getattr(criterion, "reducer", None), nn.Module
    ):
        return None
    if type(criterion).__name__ in NOT_OF_SAMPLES:
        return None
    with evaluation.copies(last=last) as (own, call):
        reducer, terms = own.reducer, []

        class Recorder(nn.Module):
            def forward(self, losses: dict[str, dict[str, Any]], embeddings: Tensor, labels: Any) -> Tensor:
                terms.append((losses, embeddings, labels))
                return embeddings.sum() * 0

        own.reducer = Recorder()
        call.on(own.forward)
        ((losses, embeddings, labels),) = terms
        apart = {
            name: term
            for name, term in losses.items()
            if isinstance(term["losses"], Tensor) and term["reduction_type"] != "already_reduced"
        }
        if not apart:
            return None
        for term in apart.values():
            term["losses"] = term["losses"].detach().requires_grad_()
        with torch.enable_grad():
            total = reducer(losses, embeddings, labels)
            if not total.requires_grad:
                return Parts(total.detach().expand(call.size).clone())
            slopes = torch.autograd.grad(total, [t["losses"] for t in apart.values()], allow_unused=True)
    values = torch.zeros(call.size, device=embeddings.device)
    left = total.detach()
    for term, slope in zip(apart.values(), slopes, strict=True):
        if slope is None:
            continue
        loss = (term["losses"].detach() * slope).float()
        left = left - loss.sum()
        indices = term["indices"] if isinstance(term["indices"], list | tuple) else [term["indices"]]
        for index in indices:
            values = values.index_add(0, index.to(values.device), loss / len(indices))
    return Parts(call.size * values + left)


def _samples(evaluation: Evaluation) -> tuple[int, list[Tensor]]:
    """The number of views of each image, and the call's batches with an axis for them, (views, images, ...)."""
    call, splits = evaluation.call, getattr(evaluation.criterion, "num_splits", 1)
    splits = splits if isinstance(splits, int) else 1
    if call.size % splits:
        raise RuntimeError(f"needs {splits} views of each image, got {call.size} in all")
    return splits, [tensor.unflatten(0, (splits, len(tensor) // splits)) for tensor in call.tensors]


def _scalar(returned: Any) -> Tensor:
    loss = loss_of(returned)
    if loss is None:
        raise TypeError(f"returned {type(returned).__name__}, not a loss")
    return loss.reshape(())


REDUCTION = "reduction='none'"
ALONE: dict[str, Way] = {"one sample at a time (vmap)": _vectorized, "one sample at a time (loop)": _one_by_one}
"""The criterion on each sample alone. Both give the same losses; the first one is faster."""
WAYS: dict[str, Way] = {REDUCTION: _unreduced, "the library's unreduced terms": _from_reducer, **ALONE}
"""The ways by name, in the order in which they are tried."""
