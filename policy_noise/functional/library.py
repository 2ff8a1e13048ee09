"""What compilers call as it is: they cannot trace the sampler, which has no meta kernel, nor keep a cache.

The plain form of registration, because ``torch.library.custom_op`` imports Dynamo in older releases, which takes a
second.
"""

import math

import torch
from torch import Tensor

from .distribution import draw_beta
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
    grid = tuple(action.shape[2:])
    found = cached_operators(grid, tuple(size), tuple(kernel_size), tuple(sigma), action.device, action.dtype)
    return [operator.clone() for operator in found]  # compiled code may write into what an operator returns


# A compiler would trace through the cache and make the operators anew in each step.
_LIBRARY.define("operators(Tensor action, int[] size, int[] kernel_size, float[] sigma) -> Tensor[]")
_LIBRARY.impl("operators", _operators_for_compiler, "CompositeExplicitAutograd")


@torch.library.register_fake("policy_noise::operators", lib=_LIBRARY)
def _fake_operators(action: Tensor, size: list[int], kernel_size: list[int], sigma: list[float]) -> list[Tensor]:
    grid = tuple(action.shape[2:])
    shapes = [*zip(size, grid, strict=True), *zip(grid, grid, strict=True), (size[0], grid[0] + 1), (math.prod(grid),)]
    return [action.new_empty(shape) for shape in shapes]
