"""Compute one loss per sample from any criterion, and check them against the loss that the criterion returned."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.compat import CollectiveError, collectives_refused, version_of
from ..utils.misc import check_one_of, is_distributed
from ..utils.warn import Once
from ._agreement import (
    Late,
    Seen,
    Verdict,
    agree,
    agree_weighted,
    batch_argument,
    close,
    likely_causes,
    pools,
    supervised,
)
from ._batch import HALF, Call, Structures, devices_of, has_state, loss_of, shapes_of, tree_flatten
from ._isolation import Isolation, Snapshot, evaluator, is_stateless, outside
from ._ways import ALONE, REDUCTION, WAYS, Evaluation, Parts, Way, leave_one_out

__all__ = ["CriterionError", "LossMethod", "LossSplitter", "SampleLosses", "per_sample_loss"]

LossMethod = Literal["auto", "own", "leave_one_out"]

OBSERVE = (
    "if it can give unreduced losses (reduction='none', a reducer), train on their mean and call hook.observe(losses) "
    "with one loss per image, shape (B,), instead of hooking the criterion"
)
METHODS = (
    "or choose loss_method='own' (the criterion on each image alone) or loss_method='leave_one_out' (what each image "
    "adds to the batch's loss, in B + 1 evaluations)"
)
LARGE = 2**23
"""Elements of a criterion's state above which the cost of copying it is said."""


class CriterionError(RuntimeError):
    """No loss per sample can be computed from a criterion.

    Then compute one loss per image, and train on ``hook.observe(losses).mean()``.

    Example:
        >>> class Spread(nn.Module):  # couples the images of a batch
        ...     def forward(self, output):
        ...         return output.max() - output.min()
        >>> per_sample_loss(Spread(), torch.tensor([1.0, 2.0, 4.0]))
        Traceback (most recent call last):
        policy_noise...CriterionError: criterion Spread is not a mean or sum over samples: ...
    """


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

    Example:
        >>> criterion, target = nn.CrossEntropyLoss(), torch.tensor([0, -100, 1])  # the second is ignored
        >>> LossSplitter(criterion)((torch.zeros(3, 2), target), {}, None).valid
        tensor([ True, False,  True])
    """

    values: Tensor
    valid: Tensor | None


@dataclass
class _Plan:
    """How the losses of calls of one shape are computed.

    Args:
        spec: How the call's arguments are nested.
        way: The name of the way.
        only_finite: Whether losses that are not finite belong to samples without supervision.
        proven: Whether it is right for every call, so that none is compared again.
        calls: Calls so far.
    """

    spec: Any
    way: str
    only_finite: bool
    proven: bool
    calls: int = 1

    @property
    def looks(self) -> bool:
        """Whether the next call is compared: the second, fourth, eighth, ..."""
        return not self.proven and (self.calls + 1) & self.calls == 0


@dataclass
class _Before:
    """What was kept before the criterion's forward pass."""

    snapshot: Snapshot | None
    versions: list[int | None]
    values: dict[int, Tensor]


NOTICEABLE = 0.5
"""Seconds from which on a second evaluation that takes longer than the rest of the step is said."""


class LossSplitter:
    """Compute one loss per sample from a criterion, and check them on calls 1, 2, 4, 8, ... of each shape.

    These ways are tried in turn: the criterion's own ``reduction="none"``, averaged over all axes but the batch
    (pixels, labels); the unreduced terms of pytorch-metric-learning; the criterion on each sample alone. The first way
    whose samples give the loss of the batch (as their mean, their sum or with the criterion's own weights) is used for
    calls of these shapes. The first comparison waits for the device. Later ones run on it and are read when they have
    arrived, so nothing waits. All comparisons are in fp32, with a relative tolerance of 1e-3. If the loop's loss is in
    half precision, the criterion is evaluated once more in fp32 to compare.

    The second evaluation runs on copies of the criterion and of the objects among its arguments (models, meters), with
    the state that :meth:`before` saw, and on copies of the tensors that the criterion writes to. So these, the buffers
    and the random generators stay as the loop left them. Losses of torch and timm change nothing and are not copied.
    What no copy holds is changed twice: class attributes, closures and globals (a warning names them), and what can't
    be seen from here (files, other modules' globals, attributes that cannot be copied).

    Some losses sum over the batch before they divide (MONAI's ``batch=True``, the overlaps of
    segmentation_models_pytorch), so they are not a mean over samples. Each sample then gets the loss of its own
    overlap.

    Args:
        criterion: The loss module or function that the training loop calls. Its forward hooks do not run here.
        loss_method: ``"auto"``. Or ``"own"``: the criterion on each sample alone, without a comparison. Or
            ``"leave_one_out"``, for losses that couple samples (contrastive, triplets): the amount that each sample
            adds to the loss of its batch. This costs B + 1 evaluations and is not compared.

    Raises:
        ValueError: If ``loss_method`` is none of these.

    Example:
        >>> splitter = LossSplitter(nn.MSELoss())
        >>> output, target = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.zeros(2, 2)
        >>> splitter((output, target), {}, splitter.criterion(output, target)).values, splitter.describe()
        (tensor([5., 4.]), "reduction='none'")
    """

    def __init__(self, criterion: Callable[..., Any], loss_method: LossMethod = "auto") -> None:
        check_one_of("loss_method", loss_method, ("auto", "own", "leave_one_out"))
        self.criterion = criterion
        self.loss_method = loss_method
        self._stateless = is_stateless(criterion)
        self._isolation = Isolation()
        self._structures = Structures()
        self._plans: dict[Any, _Plan] = {}
        self._before: _Before | None = None
        self._written: set[int] = set()
        self._late: list[tuple[Call, Late]] = []
        self._way = ""
        self._once = Once()
        self._seconds, self._since = 0.0, 0.0

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Save the criterion's state before its forward pass. Costs nothing for criteria without state."""
        start = time.perf_counter()
        leaves = tree_flatten((args, kwargs))[0]
        if self._may_change(leaves):
            plan = self._plans.get(shapes_of(leaves))
            kept = range(len(leaves)) if plan is None or plan.looks else self._written
            values = {i: leaves[i].detach().clone() for i in kept if isinstance(leaves[i], Tensor)}
            self._before = _Before(self._snapshot(leaves), _versions(leaves), values)
        self._seconds += time.perf_counter() - start

    def describe(self) -> str:
        """Describe in a phrase how the losses are computed."""
        return self._way or "not called yet"

    __str__ = describe

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> SampleLosses:
        """Compute one loss per sample for a call of the criterion.

        Args:
            args: The arguments that the criterion was called with.
            kwargs: Its keyword arguments.
            returned: What it returned. None if that is unknown, which costs one evaluation for each comparison.

        Shape:
            - args, kwargs: any tree of tensors whose first axis is the batch, and anything else.

        Raises:
            CriterionError: If the losses of the samples do not agree with the loss, now or at an earlier call.
        """
        start = time.perf_counter()
        before, self._before = self._before, None
        self._read()
        leaves, spec = tree_flatten((args, kwargs))
        values = {} if before is None else self._values(leaves, before)
        try:
            calls = self._structures.candidates(leaves, spec, values)
        except ValueError as error:
            raise CriterionError(f"criterion {self._name} {error}") from None
        device = calls[0].tensors[0].device.type
        loss = self._loss_of(returned)
        half = calls[0].half or torch.is_autocast_enabled(device) or (loss is not None and loss.dtype in HALF)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            if before is not None:
                state: Snapshot | None = before.snapshot
            else:
                state = self._snapshot(leaves) if self._may_change(leaves) else None
            try:
                return self._split(calls, state, loss, half)
            finally:
                self._seconds += time.perf_counter() - start

    def stepped(self) -> None:
        """Note a step of the loop. Warn once if the second evaluations took longer than the rest of it."""
        now = time.perf_counter()
        seconds, step = self._seconds, now - self._since
        known, self._seconds, self._since = self._since > 0, 0.0, now
        # The first calls of a shape try all ways.
        tried = not any(plan.calls < 3 for plan in self._plans.values())
        if known and tried and step < 2 * seconds and seconds > NOTICEABLE:
            self._say_slow(seconds, f"of a step's {step:.2g} s")

    # -- details -------------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        criterion = self.criterion.func if isinstance(self.criterion, partial) else self.criterion
        return getattr(criterion, "__name__", type(criterion).__name__)

    def _may_change(self, leaves: Sequence[Any]) -> bool:
        """Whether a call may change the criterion or an object among its arguments."""
        return not self._stateless or any(map(has_state, leaves))

    def _say(self, cause: str, message: str) -> None:
        """Warn once for each cause."""
        self._once.warn(cause, f"criterion {self._name} {message}")

    def _say_slow(self, seconds: float, of: str = "a step") -> None:
        self._say(
            "slow",
            f"is evaluated again for the reward, which takes {seconds:.2g} s {of} ({self.describe()}): {OBSERVE}, or "
            "learn from fewer steps (update_every)",
        )

    def _snapshot(self, leaves: Sequence[Any]) -> Snapshot:
        objects = [leaf for leaf in leaves if has_state(leaf)]
        try:
            snapshot = Snapshot(self._isolation, self.criterion, objects, devices_of(leaves))
        except Exception as error:
            raise CriterionError(f"criterion {self._name} cannot be copied ({error}); {OBSERVE}") from error
        if self._isolation.elements >= LARGE:
            size = f"{self._isolation.elements / 1e6:.0f} million"
            self._say(
                "large",
                f"holds {size} numbers beside its parameters (a memory bank?), which are copied at each step: "
                f"{OBSERVE}, or learn from fewer steps (update_every)",
            )
        if self._isolation.shared:
            names = ", ".join(f"{name} ({kind})" for name, kind in self._isolation.shared.items())
            self._say(
                "shared",
                f"holds {names}, which cannot be copied. So its second evaluation, for the reward, uses the same "
                "object: what the criterion writes there it writes more than once. Keep it out of the criterion, or "
                "call hook.observe(losses) instead of hooking it",
            )
        return snapshot

    def _values(self, leaves: Sequence[Any], before: _Before) -> dict[int, Tensor]:
        """The values of the tensors that the criterion wrote to, before it did."""
        written = {i for i, v in enumerate(_versions(leaves)) if v is not None and v != before.versions[i]}
        if not written <= before.values.keys():
            raise CriterionError(f"criterion {self._name} writes to its arguments in place, but not always; {OBSERVE}")
        self._written |= written
        return {i: before.values[i] for i in self._written if i in before.values}

    def _loss_of(self, returned: Any) -> Tensor | None:
        loss = loss_of(returned)
        if loss is None and returned is not None:
            raise CriterionError(
                f"criterion {self._name} returned {type(returned).__name__}, not a loss (nor a tuple or mapping with "
                f"one loss in it); {OBSERVE}"
            )
        return loss

    def _read(self) -> None:
        """Read the verdicts that have arrived."""
        waiting = []
        for call, late in self._late:
            verdict = late.read()
            if verdict is None:
                waiting.append((call, late))
            elif not verdict.agrees:
                self._late.clear()
                raise CriterionError(self._disagreement(call, verdict, Seen()))
        self._late = waiting

    def _split(self, calls: list[Call], state: Snapshot | None, loss: Tensor | None, half: bool) -> SampleLosses:
        call = calls[0]
        plan = self._plans.get(call.shapes)
        if plan is not None and plan.spec != call.spec:
            plan = None
        looks = plan is None or plan.looks
        # While looking, each evaluation gets copies of the tensors, so that writes to them are noticed.
        copied = frozenset(
            i
            for i, leaf in enumerate(call.leaves)
            if isinstance(leaf, Tensor) and (i in self._written or (looks and not self._stateless))
        )
        evaluations = [
            Evaluation(self.criterion, replace(c, copied=copied, written=self._written), state, self._say_slow)
            for c in calls
        ]
        first = evaluations[0]
        if self.loss_method == "leave_one_out":
            self._way = f"leave-one-out ({first.call.size + 1} evaluations)"
            return self._finish(self._leave_one_out(first), first.call)
        if loss is not None and loss.numel() > 1 and len(loss) == first.call.size:
            return self._rows(loss, first.call)
        if plan is None:
            return self._look(evaluations, loss, half)
        self._way = plan.way
        parts = WAYS[plan.way](first, not looks)
        if parts is None:
            raise CriterionError(f"criterion {self._name} has changed: {plan.way} no longer gives losses")
        if looks:
            if loss is None or half:
                loss = self._evaluate(first)
            if loss.numel() == 1:
                late = Late(agree(parts, supervised(self.criterion, parts, first.call), loss))
                self._late.append((first.call, late))
                if not loss.is_cuda:
                    self._read()
        plan.calls += 1
        return self._finish(parts, first.call, plan.only_finite)

    def _rows(self, loss: Tensor, call: Call) -> SampleLosses:
        self._way = "as the criterion returns them"
        rows = loss.detach().reshape(len(loss), -1)
        whole = isinstance(self.criterion, nn.CrossEntropyLoss | nn.NLLLoss)
        return self._finish(Parts(rows.sum(1) if whole else rows.mean(1)), call)

    def _leave_one_out(self, evaluation: Evaluation) -> Parts:
        try:
            return leave_one_out(evaluation)
        except Exception as error:
            raise CriterionError(
                f"criterion {self._name} fails without one of the samples ({error}); {OBSERVE}"
            ) from error

    def _look(self, evaluations: list[Evaluation], loss: Tensor | None, half: bool) -> SampleLosses:
        """Find a way, and notice what the criterion changes meanwhile."""
        seen, changes = Seen(), outside(self.criterion) if not self._stateless else {}
        if not self._stateless and is_distributed():
            self._refuse_collectives(evaluations[0])
        try:
            if self.loss_method == "own":
                return self._own(evaluations[0])
            return self._try(evaluations, loss, half, seen)
        finally:
            seen.outside += [name for name, value in changes.items() if outside(self.criterion).get(name) != value]
            if seen.outside:
                self._say(
                    "outside",
                    f"changes {', '.join(seen.outside)} outside of itself, where its second evaluation, for the "
                    "reward, changes it again: keep this state in the criterion (self....), or call "
                    "hook.observe(losses) instead of hooking it",
                )

    def _own(self, evaluation: Evaluation) -> SampleLosses:
        failures: list[Exception] = []
        for way, parts in self._tried(ALONE, evaluation, failures):
            return self._keep(way, evaluation.call, parts)
        raise CriterionError(
            f"criterion {self._name} gives no loss for a single sample ({failures[-1]}; "
            f"{batch_argument(evaluation.call)}); {OBSERVE}"
        ) from failures[-1]

    def _try(self, evaluations: list[Evaluation], loss: Tensor | None, half: bool, seen: Seen) -> SampleLosses:
        """Try the ways in turn until the losses of one agree with the criterion's."""
        first = evaluations[0]
        if loss is None or half:
            again = self._evaluate(first)
            if loss is not None and loss.numel() == again.numel() == 1 and not close(loss, again):
                seen.reproduced = False
                raise CriterionError(
                    f"criterion {self._name} gave {float(loss):.4g} in half precision, but the same call gives "
                    f"{float(again):.4g} in fp32; {self._causes(first.call, seen)}"
                )
            loss = again
        if loss.numel() > 1 and len(loss) == first.call.size:
            return self._rows(loss, first.call)
        if loss.numel() != 1:
            raise CriterionError(
                f"criterion {self._name} returned a loss of shape {tuple(loss.shape)}, neither one number nor one per "
                f"sample ({batch_argument(first.call)}); {OBSERVE}"
            )
        failures: list[Exception] = []
        refused: list[tuple[str, Call, Parts]] = []
        for evaluation in evaluations:
            call = evaluation.call
            for way, parts in self._tried(WAYS, evaluation, failures):
                verdict = Late(agree(parts, supervised(self.criterion, parts, call), loss)).read(wait=True)
                assert verdict is not None
                if verdict.agrees:
                    return self._keep(way, call, parts, verdict)
                refused.append((way, call, parts))
                if way in ALONE:
                    break  # the loop would give the same losses
        failure = failures[-1] if failures else None
        alone = [item for item in refused if item[0] in ALONE]
        if not alone:
            raise CriterionError(
                f"criterion {self._name} gives no loss for a single sample ({failure}); "
                f"{self._causes(first.call, Seen(between=False))}"
            ) from failure
        if pools(self.criterion):
            return self._keep(*alone[0])
        if refused[0][0] == REDUCTION and agree_weighted(refused[0][2], alone[0][2], loss):
            return self._keep(*refused[0])
        values = alone[0][2].values
        seen.between = float(values.min()) <= float(loss) <= float(values.max())
        self._investigate(first, loss, seen)
        verdict = Verdict(False, True, False, float(values.mean()), float(loss))
        raise CriterionError(self._disagreement(first.call, verdict, seen)) from failure

    def _tried(
        self, ways: Mapping[str, Way], evaluation: Evaluation, failures: list[Exception]
    ) -> Iterator[tuple[str, Parts]]:
        """Iterate over the ways that give losses, by name. Note the errors of the others."""
        for name, way in ways.items():
            try:
                parts = way(evaluation, False)
            except Exception as error:
                failures.append(error)
                continue
            if parts is not None:
                yield name, parts

    def _investigate(self, evaluation: Evaluation, loss: Tensor, seen: Seen) -> None:
        """Evaluate a call that was refused once more, and look whether it gives its loss and draws random numbers."""
        generator = torch.get_rng_state()
        with evaluation.copies() as (own, copied):
            start = torch.get_rng_state()
            again = loss_of(copied.on(evaluator(own)))
            seen.drew = not torch.equal(start, torch.get_rng_state())
        torch.set_rng_state(generator)
        seen.reproduced = again is not None and close(loss, again)

    def _refuse_collectives(self, evaluation: Evaluation) -> None:
        try:
            with collectives_refused():
                self._evaluate(evaluation)
        except CollectiveError as error:
            raise CriterionError(
                f"criterion {self._name} communicates between processes ({error}). Its second evaluation, for the "
                f"reward, would do so again, and processes could wait for each other forever; {OBSERVE}"
            ) from None

    def _evaluate(self, evaluation: Evaluation) -> Tensor:
        try:
            returned = evaluation.returned()
        except CollectiveError:
            raise
        except Exception as error:
            raise CriterionError(f"criterion {self._name} fails on these arguments ({error})") from error
        loss = self._loss_of(returned)
        if loss is None:
            raise CriterionError(f"criterion {self._name} returned None, not a loss; {OBSERVE}")
        return loss

    def _keep(self, way: str, call: Call, parts: Parts, verdict: Verdict | None = None) -> SampleLosses:
        """Keep a way for calls of this shape. Without a verdict it was recognized or chosen, and is never compared."""
        self._way = way
        only_finite = self.loss_method == "own" or (verdict is not None and verdict.only_finite)
        if verdict is None or verdict.sure:
            self._structures.settle(call)
            self._plans[call.shapes] = _Plan(call.spec, way, only_finite, self._stateless or verdict is None)
        return self._finish(parts, call, only_finite)

    def _disagreement(self, call: Call, verdict: Verdict, seen: Seen) -> str:
        return (
            f"criterion {self._name} is not a mean or sum over samples: the mean loss of single samples is "
            f"{verdict.mean:.4g}, but the batch's loss is {verdict.loss:.4g}; {self._causes(call, seen)}"
        )

    def _causes(self, call: Call, seen: Seen) -> str:
        causes = ", or ".join(likely_causes(self.criterion, call, seen))
        return f"likely because {causes} ({batch_argument(call)}); {OBSERVE}, {METHODS}"

    def _finish(self, parts: Parts, call: Call, only_finite: bool = False) -> SampleLosses:
        values = parts.values.float()
        if parts.valid is not None:
            return SampleLosses(values, parts.valid)
        valid = supervised(self.criterion, parts, call)
        if only_finite:
            valid = values.isfinite() if valid is None else valid & values.isfinite()
        return SampleLosses(values if valid is None else torch.where(valid, values, 0), valid)


def _versions(leaves: Sequence[Any]) -> list[int | None]:
    return [version_of(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves]


FUNCTIONS = {F.cross_entropy: nn.CrossEntropyLoss, F.nll_loss: nn.NLLLoss}
"""Functions whose module averages over the labels that are not ignored."""


def _as_module(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """The module that computes the same as a call of torch's function, and the arguments that it takes."""
    given = inspect.signature(function).bind(*args, **kwargs).arguments
    names = {"weight", "ignore_index", "reduction", "label_smoothing"} & given.keys()
    module = FUNCTIONS[function](**{name: given[name] for name in names})
    return module, (given["input"], given["target"])


def per_sample_loss(criterion: Any, *args: Any, loss_method: LossMethod = "auto", **kwargs: Any) -> Tensor:
    """Compute a criterion's loss for each sample, without gradient and in fp32.

    This is the functional form of :class:`LossSplitter`. It has no memory, so each call evaluates the criterion once
    more to compare. With ``reduction="mean"`` and class weights, each sample's loss includes its weight, scaled so that
    the mean over the samples that have a label is the criterion's own value.

    A criterion with ``num_splits`` (timm's :class:`JsdCrossEntropy`) couples that many views of an image. Their masks
    caused the loss together, so each view gets the whole loss of its image.

    Args:
        criterion: The loss module or function that the training loop calls. Its forward hooks do not run here.
        args: The arguments that the loop called it with: model output, targets.
        loss_method: As in :class:`LossSplitter`.
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
    if isinstance(criterion, partial):
        criterion, args, kwargs = criterion.func, (*criterion.args, *args), {**criterion.keywords, **kwargs}
    if criterion in FUNCTIONS:
        criterion, args = _as_module(criterion, args, kwargs)
        kwargs = {}
    return LossSplitter(criterion, loss_method)(args, kwargs, None).values
