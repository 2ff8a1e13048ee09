"""The reward as the loss that is trained on: the criterion's calls, each times its coefficient in that loss."""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..losses import SampleLosses
from ..utils.compat import backward_number, backward_roots, node_shapes, saved
from ._pairing import Match, Pending
from ._rows import operation, parents_first

__all__ = ["Look", "Term", "trained_losses"]

NONLINEAR = re.compile("Clamp(Max)?|Exp2?|Expm1|Log(10|1P|2|Sigmoid|Softmax|sumexp)?|Sigmoid|Softmax|Softplus|Tanh")
"""Functions of losses whose slope times the loss is another number than their value, also up to a factor."""
TINY = 1e-3
"""A lower bound of a loss, up to which it is there for numerical safety."""


class Term:
    """A call of the criterion: the losses of its samples and, after backward, its coefficient in the trained loss.

    The loop may add calls up, weight or negate them, and average unreduced losses as it likes. A tensor hook on the
    criterion's output receives the derivative of the trained loss, which is the coefficient: one number if the
    criterion returned one, else one for each of its losses. Several backward passes through one call add up. After a
    function of unreduced losses that is not linear, each loss counts times the derivative; :class:`Look` notices most.

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
        return bool(self._passes)

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


Mark = bool | tuple[int, int]
"""Of a call of the criterion, whether it returned several losses. Of a model's output, its forward and its place."""


class Look:
    """Looks in steps 1, 2, 4, 8, ... whether the trained loss is made of the criterion's calls alone, each linearly.

    When a gradient reaches an output of the model, the graph is followed from the backward pass's root to the outputs
    and to the calls. What reaches an output in another way than through a call is no part of the reward: a functional
    loss, a penalty.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        self._key = f"policy_noise.look.{next(Look._numbers)}"
        self._steps = 0
        self._pass = -1
        self._paths: dict[Mark, str] = {}
        self._besides: list[tuple[Pending, str, Tensor]] = []
        self.nonlinear = ""
        """The operation on unreduced losses that is not linear, if there was one in this step."""

    @property
    def is_due(self) -> bool:
        """Whether this step is looked at."""
        return (self._steps + 1) & self._steps == 0

    def mark_call(self, loss: Tensor) -> None:
        """Mark what a call of the criterion returned."""
        node: Any = loss.grad_fn
        if node is not None:
            node.metadata[self._key] = loss.numel() > 1

    def mark_outputs(self, tensors: Iterable[Tensor], pending: Pending) -> None:
        """Mark what a model returned, and note the gradients that reach it.

        Where the criterion is called inside the model, these are the tensors that it was called with.
        """
        for place, tensor in enumerate(tensors):
            node: Any = tensor.grad_fn
            if node is not None:
                mark = node.metadata.setdefault(self._key, (pending.number, place))
                tensor.register_hook(partial(self._reached, pending, mark))

    def besides(self, scored: Container[Pending]) -> str | None:
        """The operation that used an output of these forwards besides the criterion's calls. Waits for the device."""
        found = [item for item in self._besides if item[0] in scored]
        return next((name for _, name, counts in found if bool(counts)), None)

    def stepped(self) -> None:
        """Go on to the next step."""
        self._steps += 1
        self._besides.clear()
        self.nonlinear = ""

    def _reached(self, pending: Pending, mark: Mark, gradient: Tensor) -> None:
        pending.reached = True
        if torch.is_grad_enabled():
            return  # the inner pass of a gradient penalty, or a second-order optimizer's
        number = backward_number()
        if number != self._pass or number < 0:
            self._pass, self._paths = number, self._follow(backward_roots())
        if mark in self._paths:
            self._besides.append((pending, self._paths[mark], (gradient != 0).any()))

    def _follow(self, roots: list[Tensor]) -> dict[Mark, str]:
        """The outputs that roots reach in another way than through a call, each with the operation on it."""
        if any(root.numel() > 1 for root in roots):
            return {}  # no loss, but a product with a Hessian
        calls: dict[Any, bool | None] = {None: None}  # whether a call lies behind a node, and whether it is unreduced
        outputs: dict[Any, dict[Mark, str]] = {None: {}}
        for node, edges in parents_first(roots, self._mark_of):
            mark, name, own = self._mark_of(node), operation(node), node.name()
            calls[node], outputs[node] = None, {}
            if isinstance(mark, bool):
                calls[node] = mark
            elif mark is not None:
                outputs[node] = {mark: own}
            else:
                behind = [(parent, calls[parent]) for parent, _ in edges]
                known = [call for _, call in behind if call is not None]
                calls[node] = any(known) if known else None
                # A factor that the model computes is part of the call's coefficient.
                factors = bool(known) and name in ("Mul", "Div")
                for parent, call in behind:
                    if call is not None or not factors:
                        marked = self._mark_of(parent) if parent is not None else None
                        outputs[node] |= {m: own if m == marked else by for m, by in outputs[parent].items()}
                if any(known) and not _is_linear(node, name, calls[edges[-1][0]]):
                    self.nonlinear = own
        return {mark: name for root in roots for mark, name in outputs.get(root.grad_fn, {}).items()}

    def _mark_of(self, node: Any) -> Mark | None:
        return node.metadata.get(self._key)


def _is_linear(node: Any, name: str, last: bool | None) -> bool:
    """Whether each loss's slope times the loss is its share of the operation's value, up to a common factor.

    Args:
        node: The operation's node.
        name: Its name.
        last: Whether its last input comes from a call that returned several losses.
    """
    if name in ("Div", "Logsumexp", "Softmax", "LogSoftmax"):
        return name == "Div" and not last
    if not NONLINEAR.fullmatch(name) or prod(node_shapes(node)[0]) <= 1:
        return True
    if name == "Clamp":
        low, high = (saved(node, bound, None) for bound in ("min", "max"))
        return high is None and isinstance(low, int | float) and low <= TINY
    return False


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
