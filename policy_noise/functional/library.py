"""Operations that torch.compile calls without tracing into them.

It cannot trace the sampler, which has no meta kernel, and it would not use the cache of operators. They are registered
with ``torch.library.Library``, because ``torch.library.custom_op`` imports Dynamo in older releases, which takes a
second.
"""

import torch
from torch import Tensor

from .distribution import draw_beta
from .operators import operator_shapes
from .rendering import cached_operators

__all__: list[str] = []

_LIBRARY = torch.library.Library("policy_noise", "DEF")
_LIBRARY.define(
    "sample_beta(Tensor concentration1, Tensor concentration0) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)
_LIBRARY.impl("sample_beta", draw_beta, "CompositeExplicitAutograd")


@torch.library.register_fake("policy_noise::sample_beta", lib=_LIBRARY)
def _fake_draw(concentration1: Tensor, concentration0: Tensor) -> Tensor:
    return torch.empty_like(concentration1)


def _operators_for_compiler(
    action: Tensor, size: list[int], kernel_size: list[int], sigma: list[float]
) -> list[Tensor]:
    shape = tuple(action.shape[1:])
    found = cached_operators(shape, tuple(size), tuple(kernel_size), tuple(sigma), action.device, action.dtype)
    # Compiled code may write into what an operator returns.
    return [operator.clone() for operator in [*found.axes, *found.factors, found.share]]


# torch.compile would trace through the cache, and make the operators again in each step.
_LIBRARY.define("operators(Tensor action, int[] size, int[] kernel_size, float[] sigma) -> Tensor[]")
_LIBRARY.impl("operators", _operators_for_compiler, "CompositeExplicitAutograd")


@torch.library.register_fake("policy_noise::operators", lib=_LIBRARY)
def _fake_operators(action: Tensor, size: list[int], kernel_size: list[int], sigma: list[float]) -> list[Tensor]:
    return [action.new_empty(shape) for shape in operator_shapes(size, action.shape[2:])]
