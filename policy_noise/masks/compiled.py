"""Masks compiled with torch.compile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import functional as PF
from ..augmentation import Sample
from ..functional.distribution import draw_pairs
from ..functional.rendering import without_autocast
from ..utils.compat import of_any_batch
from ..utils.warn import warn
from .samples import MaskSample, ShadingSample, per_cell

if TYPE_CHECKING:
    from .base import SmoothMask
    from .policy_mask import PolicyNoiseMask

__all__ = ["CompiledMask", "CompiledPolicyMask"]


class CompiledMask:
    """A compiled mask, which a hook calls in place of the mask itself.

    Args:
        mask: The mask.
    """

    def __init__(self, mask: "SmoothMask") -> None:
        self.mask = mask
        self.works = True
        self._multiply = _Compiled(self, mask.multiply)

    @property
    def uses_generator(self) -> bool:
        """Same as the mask's."""
        return self.mask.uses_generator

    def sample(self, images: Tensor, generator: torch.Generator | None = None) -> Sample:
        """Call the mask's own :meth:`sample`. It only draws, so there is nothing to compile."""
        return self.mask.sample(images, generator)

    def __call__(self, images: Tensor, sample: Sample) -> Tensor:
        """Mask a batch as the mask's own :meth:`transform` does, compiled."""
        assert isinstance(sample, ShadingSample)
        images = self.mask.as_batch(images)
        operators = self.mask.operators(images, sample)
        return self._multiply(images, sample.action, sample.applied, self.mask.expected(sample), fixed=operators)


class CompiledPolicyMask(CompiledMask):
    """A compiled mask with a policy. Everything is compiled except the random draws.

    The draws use the hook's generators, which torch.compile cannot put into a graph. So there are separate graphs: the
    policy up to the concentrations; rendering and multiplication; the gradient of the log-probability; and the entropy,
    if the hook asks for it.

    Args:
        mask: The mask.
    """

    def __init__(self, mask: "PolicyNoiseMask") -> None:
        super().__init__(mask)
        self._concentrations = _Compiled(self, mask.concentrations)
        self._sample_of = mask.sample_of
        self.gradient = _Compiled(self, _gradient)
        self.entropy = _Compiled(self, _entropy)

    def sample(self, images: Tensor, generator: torch.Generator | None = None) -> Sample:
        """Draw as the mask's own :meth:`sample` does, with a compiled policy."""
        images = self.mask.as_batch(images)
        with without_autocast(images.device.type):
            concentration = self._concentrations(images)
            drawn = self._sample_of(concentration, draw_pairs(concentration, generator), generator)
            return _CompiledSample(**{**vars(drawn), "log_prob": None}, compiled=self)


@dataclass(frozen=True)
class _CompiledSample(MaskSample):
    """A draw whose gradient and entropy are compiled."""

    compiled: CompiledPolicyMask

    def _gradients(self, weight: Tensor, entropy_weight: Tensor | None) -> Sequence[Tensor]:
        tensors = (self.action, self.concentration1, self.concentration0, weight, entropy_weight)
        return self.compiled.gradient(*tensors).unbind(-1)

    def _entropy(self) -> Tensor:
        return self.compiled.entropy(self.concentration1, self.concentration0)


def _gradient(action: Tensor, alpha: Tensor, beta: Tensor, weight: Tensor, entropy_weight: Tensor | None) -> Tensor:
    return torch.stack(PF.beta_gradient(action, alpha, beta, *per_cell(action, weight, entropy_weight)), dim=-1)


def _entropy(alpha: Tensor, beta: Tensor) -> Tensor:
    return PF.beta_entropy(alpha, beta).flatten(1).sum(1)


class _Compiled:
    """A function of batches, compiled when it is first called."""

    def __init__(self, mask: CompiledMask, function: Callable[..., Tensor]) -> None:
        self._mask = mask
        self._plain = function
        self._compiled: Callable[..., Tensor] | None = None

    def __call__(self, *batches: Tensor | None, fixed: Any = None) -> Tensor:
        """Call the function. ``batches`` are tensors as long as the batch; ``fixed`` is a last argument of any kind."""
        last = () if fixed is None else (fixed,)
        if not self._mask.works:
            return self._plain(*batches, *last)
        try:
            if self._compiled is None:
                self._compiled = torch.compile(self._plain)
            return self._compiled(*(None if batch is None else of_any_batch(batch) for batch in batches), *last)
        except Exception as error:
            result = self._plain(*batches, *last)  # if this fails too, compiling was not the cause
            self._mask.works = False
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warn(f"compile=True has no effect: torch.compile failed ({reason}); the mask runs uncompiled")
            return result
