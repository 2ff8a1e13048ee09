"""From any criterion to one loss a sample: the policy's reward signal."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["is_hookable", "per_sample_loss", "plain_tensor"]


def per_sample_loss(criterion: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Compute a criterion's loss for each sample, without gradient and in fp32.

    Three ways are tried, the exact and fast one first: the criterion's own ``reduction="none"``, averaged over
    whatever is left beside the batch (pixels, labels); the criterion on each sample by itself, vectorised by
    :func:`torch.vmap`; the same in a loop. With ``reduction="mean"`` and class weights each sample's loss carries its
    weight, scaled so that the samples' mean is the criterion's own value.

    A criterion with ``num_splits`` (timm's :class:`JsdCrossEntropy`) couples that many views of an image, which lie a
    batch apart; their masks caused the loss together, and each view gets it.

    Args:
        criterion: The loss module or function that the training loop calls. Its forward hooks do not fire here.
        args: What the loop called it with: model output, targets.
        kwargs: Likewise.

    Shape:
        - args, kwargs: tensors whose first axis is the batch, and anything else.
        - Output: (B,), detached, fp32.

    Raises:
        RuntimeError: If the criterion has no loss for a single sample (it couples the samples).

    Example:
        >>> logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        >>> per_sample_loss(nn.CrossEntropyLoss(), logits, targets).shape
        torch.Size([4])
    """
    args = tuple(_prepare(value) for value in args)
    kwargs = {name: _prepare(value) for name, value in kwargs.items()}
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 0]
    if not tensors:
        raise RuntimeError(f"criterion {type(criterion).__name__} was called without a tensor that holds a batch")
    batch = len(tensors[0])
    with torch.no_grad(), torch.autocast(tensors[0].device.type, enabled=False):
        loss = _unreduced(criterion, batch, args, kwargs)
        if loss is None:
            loss = _one_by_one(criterion, batch, args, kwargs)
    return loss.float()


def plain_tensor(value: Tensor) -> Tensor:
    """The tensor itself for a subclass's instance."""
    return value if type(value) is Tensor else value.as_subclass(Tensor)


def _prepare(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = plain_tensor(value.detach())  # MONAI's MetaTensor keeps books that vmap cannot batch
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def is_hookable(criterion: nn.Module) -> bool:
    """Whether a module's forward hooks fire when it is called; timm's JsdCrossEntropy overrides ``__call__``."""
    return type(criterion).__call__ is nn.Module.__call__


def _function(criterion: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return criterion.forward if isinstance(criterion, nn.Module) and is_hookable(criterion) else criterion


def _unreduced(criterion: Any, batch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The criterion's own unreduced loss, or None where it has none."""
    reduction = getattr(criterion, "reduction", None)
    if reduction not in ("mean", "sum", "none", "batchmean") or getattr(criterion, "batch", False) is True:
        return None  # MONAI's batch=True sums over the batch before it divides
    twin = copy.copy(criterion)  # shallow: it shares weights, and the user's object is left as it is
    twin.reduction = "none"  # type: ignore[assignment]
    try:
        values = twin.forward(*args, **kwargs)
    except Exception:  # it knows reductions, and "none" is not among them
        return None
    if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != batch:
        return None
    if type(criterion).forward in (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward):
        return _class_average(criterion, values, *args, **kwargs)
    per_sample = values.reshape(len(values), -1)
    return per_sample.sum(1) if reduction in ("sum", "batchmean") else per_sample.mean(1)


def _class_average(
    criterion: nn.CrossEntropyLoss | nn.NLLLoss, values: Tensor, input: Tensor, target: Tensor
) -> Tensor:
    """Average unreduced cross-entropies as torch does: by class weight, leaving ignored positions out."""
    if target.is_floating_point() or criterion.reduction != "mean":
        per_sample = values.reshape(len(values), -1)
        return per_sample.mean(1) if criterion.reduction == "mean" else per_sample.sum(1)
    kept = target != criterion.ignore_index
    if criterion.weight is None and target.ndim == 1:
        return values * len(values) / kept.sum().clamp(min=1)
    weight = kept.to(values.dtype)
    if criterion.weight is not None:
        weight = weight * criterion.weight[torch.where(kept, target, 0)].to(values.dtype)
    total, weight = values.reshape(len(values), -1).sum(1), weight.reshape(len(values), -1).sum(1)
    if target.ndim > 1:  # many positions a sample: each sample's own weighted mean
        return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)
    return total * len(total) / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def _one_by_one(criterion: Callable[..., Tensor], batch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The criterion on batches of one image: one sample, or its views where the criterion couples splits."""
    splits = getattr(criterion, "num_splits", 1)
    if batch % splits:
        raise RuntimeError(
            f"criterion {type(criterion).__name__} needs {splits} views of each image, got {batch} in all"
        )
    function = _function(criterion)
    names = list(kwargs)
    values = (*args, *kwargs.values())
    batched = [isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch for value in values]

    def single(*samples: Tensor) -> Tensor:
        rest = iter(samples)
        full = [next(rest) if is_batched else value for value, is_batched in zip(values, batched, strict=True)]
        loss = function(*full[: len(args)], **dict(zip(names, full[len(args) :], strict=True)))
        return loss.reshape(())

    samples = [
        value.unflatten(0, (splits, batch // splits))
        for value, is_batched in zip(values, batched, strict=True)
        if is_batched
    ]
    try:
        losses = torch.vmap(single, in_dims=1)(*samples)
    except Exception:  # data-dependent control flow and in-place writes, which vmap cannot batch
        try:
            losses = torch.stack([single(*sample) for sample in zip(*(v.unbind(1) for v in samples), strict=True)])
        except Exception as error:
            raise RuntimeError(
                f"criterion {type(criterion).__name__} gives no loss for a single sample ({error}); leave criterion "
                "out and call hook.observe(loss) with a loss of shape (B,)"
            ) from error
    return losses.repeat(splits)
