"""The reward as the loss that is trained on: the criterion's calls, each times its coefficient in that loss."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..losses import SampleLosses
from .pairing import Match, Pending

__all__ = ["Arrivals", "Term", "trained_losses"]

UNEXPLAINED = 0.02
"""Share of a gradient that may be due to rounding, as a GPU's TF32 does."""
UNEXPLAINED_IN_HALF = 0.1
"""The same for a gradient in half precision."""


class Term:
    """A call of the criterion: the losses of its samples and, after backward, its coefficient in the trained loss.

    The loop may add calls up, weight or negate them, and average unreduced losses as it likes. A tensor hook on the
    criterion's output receives the derivative of the trained loss, which is the coefficient: one number if the
    criterion returned one, else one for each of its losses. Several backward passes through one call add up. A function
    of unreduced losses that is not linear is not seen: each loss then counts times its derivative.

    Args:
        output: What the criterion returned, in the loop's graph.
        losses: The losses of its samples.
        gradient_number: Called in a backward pass, gives the number of the gradient that the pass adds to.
    """

    def __init__(self, output: Tensor, losses: SampleLosses, gradient_number: Callable[[], int]) -> None:
        self.losses = losses
        self.gradient = 0
        self._gradient_number = gradient_number
        self._unreduced = output.detach().clone() if output.numel() > 1 else None  # the loop may write to it
        # Passes that build a graph themselves (gradient penalties) count only if there is no other, because then they
        # are the training's own (second-order optimizers).
        self._received: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = ([], [])
        output.register_hook(self._receive)

    def _receive(self, gradient: Tensor) -> None:
        self.gradient = self._gradient_number()
        passes = self._received[torch.is_grad_enabled()]
        with torch.no_grad():
            gradient = gradient.detach().float()
            if self._unreduced is None:
                coefficient = gradient.reshape(()).clone()
                passes.append((coefficient, coefficient))
            else:
                rows = (gradient * self._unreduced).reshape(len(gradient), -1).sum(1) * len(gradient)
                passes.append((gradient.abs().sum(), rows))

    @property
    def is_trained(self) -> bool:
        """Whether a backward pass reached it."""
        return bool(self._received[0] or self._received[1])

    @property
    def is_first_order(self) -> bool:
        """Whether a backward pass that builds no graph reached it."""
        return bool(self._received[0])

    def weight(self) -> Tensor:
        """Its share of the trained loss: the coefficient's absolute value, or the sum of those of all losses."""
        return _sum([weight.abs() for weight, _ in self._passes])

    @property
    def coefficient(self) -> Tensor:
        """The coefficient of a loss of one number."""
        return _sum([part for _, part in self._passes])

    def losses_of(self, match: Match, scale: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the samples of a forward contribute to the trained loss, over ``scale``, and which samples count."""
        whole = self.coefficient
        if self._unreduced is not None:
            return match.gather(whole / scale, self.losses.valid)
        values, valid = match.gather(self.losses.values, self.losses.valid)
        return values * (whole / scale), valid

    @property
    def _passes(self) -> list[tuple[Tensor, Tensor]]:
        return self._received[0] or self._received[1]


class Arrivals:
    """The gradients that reach the tensors that a criterion was called with, and what its calls account for.

    If they differ, the loop trains on something besides these calls: another function of the model's output.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Tensor, list[Tensor], list[tuple[Term, Tensor]]]] = {}

    def expect(self, term: Term, tensor: Tensor, slope: Tensor) -> None:
        """Note a call on a tensor, and the loss's gradient with respect to it."""
        if id(tensor) not in self._seen:
            arrived: list[Tensor] = []
            # A pass that builds a graph is that of a gradient penalty.
            tensor.register_hook(lambda gradient: None if torch.is_grad_enabled() else arrived.append(gradient.clone()))
            self._seen[id(tensor)] = tensor, arrived, []
        self._seen[id(tensor)][2].append((term, slope))

    def unexplained(self) -> float:
        """The largest share of a gradient that no call accounts for, 0 if it may be due to rounding.

        Waits for the device, and forgets everything.
        """
        shares = [0.0]
        for tensor, arrived, calls in self._seen.values():
            # A second-order optimizer's own passes arrive here too, and no call accounts for them.
            trained = [(term, slope) for term, slope in calls if term.is_first_order]
            others = [other.grad_fn for other, _, _ in self._seen.values() if other is not tensor]
            # What a second call's tensor was computed from also gets the gradient of that call.
            if arrived and trained and tensor.grad_fn not in _behind(others):
                whole = _sum(arrived).float()
                known = _sum([term.coefficient * slope.float() for term, slope in trained])
                share = float((whole - known).norm() / whole.norm().clamp(min=1e-30))
                if share > (UNEXPLAINED if arrived[0].dtype.itemsize > 2 else UNEXPLAINED_IN_HALF) and share < math.inf:
                    shares.append(share)
        self._seen.clear()
        return max(shares)


def _behind(nodes: list[Any]) -> set[Any]:
    """All autograd nodes that these were computed from, and they themselves."""
    found: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in found:
            found.add(node)
            nodes += [parent for parent, _ in node.next_functions]
    return found


def trained_losses(scored: Sequence[Pending]) -> Iterator[tuple[Pending, Tensor, Tensor | None]]:
    r"""Compute each forward's losses as they stand in the loss that was trained on.

    .. math:: r_i = \frac{1}{w} \sum_c k_c \, \ell_{c,i}, \qquad w = \overline{\sum_c |k_c|}

    with the coefficients k and the per-sample losses of the forward's calls c. The scale w is the mean over all
    forwards whose gradients were accumulated together. So what is common to them (GradScaler's scale, the number of
    accumulated batches) cancels out, their sizes relative to each other are kept, and a loss that is used alone counts
    as it is. After a step that GradScaler skipped, the scale is another one. Therefore forwards before and after
    ``zero_grad`` have a w of their own.

    Args:
        scored: Forwards with calls of the criterion.

    Yields:
        Forward, losses (B,), and which of its samples count (None if all). Forwards that no backward pass reached are
        left out.
    """
    gradients: dict[int, list[tuple[Pending, list[tuple[Term, Match]]]]] = defaultdict(list)
    for pending in scored:
        terms = [(term, match) for term, match in pending.terms if term.is_trained]
        if terms:
            gradients[terms[-1][0].gradient].append((pending, terms))
    for forwards in gradients.values():
        weights = [_sum([term.weight() for term, _ in terms]) for _, terms in forwards]
        scale = weights[0]
        if len(weights) > 1:
            every = torch.stack([weight.to(scale.device) for weight in weights])
            # A coefficient that overflowed says nothing about the others.
            scale = torch.where(every.isfinite(), every, torch.nan).nanmean()
        scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
        for pending, terms in forwards:
            parts = [term.losses_of(match, scale.to(term.losses.values.device)) for term, match in terms]
            valid = [part for _, part in parts]
            known = [part for part in valid if part is not None]
            yield (
                pending,
                _sum([values for values, _ in parts]),
                torch.stack(known).any(0) if len(known) == len(valid) else None,
            )


def _sum(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack([t.to(tensors[0].device) for t in tensors]).sum(0)
