"""Private names of torch, each with why it is needed, since when it exists, and what happens where it is missing."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "are_transforms_active",
    "is_in_backward",
    "is_saved_elsewhere",
    "is_transformed",
    "node_shapes",
    "of_any_batch",
    "own_graph",
    "sample_dirichlet",
]


def sample_dirichlet(concentration: Tensor, generator: torch.Generator | None) -> Tensor:
    """``torch._sample_dirichlet`` (since torch 1.0): the sampler behind :class:`torch.distributions.Beta`.

    The distribution takes no generator, and the function does. Where it is missing the distribution draws, from the
    global generator, which is seeded by the given one for the draw and restored after it. It has no kernel for MPS, and
    draws there on the CPU.
    """
    if concentration.device.type == "mps":
        # A generator of that device seeds one of the CPU.
        on_cpu = None if generator is None else torch.Generator().manual_seed(_seed_from(generator))
        return sample_dirichlet(concentration.cpu(), on_cpu).to(concentration.device)
    sampler = getattr(torch, "_sample_dirichlet", None)
    if sampler is not None:
        return sampler(concentration, generator=generator)
    distribution = torch.distributions.Dirichlet(concentration, validate_args=False)
    if generator is None:
        return distribution.sample()
    devices = [concentration.device] if concentration.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_seed_from(generator))
        return distribution.sample()


def _seed_from(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))


def is_in_backward() -> bool:
    """``torch._C._current_graph_task_id`` (since torch 2.0): whether autograd is running a backward in this thread.

    A forward in a backward is activation checkpointing's recomputation, and must repeat its masks. Where the name is
    missing, checkpointing is recognised by its frame on the call stack.
    """
    current = getattr(torch._C, "_current_graph_task_id", None)
    if current is not None:
        return current() != -1
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__ and frame.f_code.co_name in RECOMPUTATIONS:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


RECOMPUTATIONS = ("backward", "recompute_fn", "unpack_hook")
"""Functions of torch.utils.checkpoint that run a forward again."""


def are_transforms_active() -> bool:
    """``torch._C._are_functorch_transforms_active`` (since torch 2.0): whether vmap, grad and the like are at work.

    They need functions of another kind than :class:`torch.autograd.Function`. Where the name is missing they are taken
    to be at work: the plain form is right everywhere, with more operations.
    """
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return True if active is None else active()


def is_transformed() -> bool:
    """The same question for a caller that does nothing under transforms: where the name is missing, there are none."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return False if active is None else active()


def is_saved_elsewhere() -> bool:
    """``torch._C._autograd._top_saved_tensors_default_hooks`` (since torch 2.5): whether checkpointing or offloading
    surrounds the call and takes the tensors that autograd saves. Where the name is missing, they are taken to.
    """
    surrounding = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return surrounding is None or surrounding(False) is not None


def own_graph() -> AbstractContextManager[Any]:
    """Keep the policy's saved tensors away from checkpointing and offloading that surround the hooked model."""
    return torch.autograd.graph.saved_tensors_hooks(_same, _same) if is_saved_elsewhere() else nullcontext()


def _same(tensor: Tensor) -> Tensor:
    return tensor


def node_shapes(node: Any) -> list[tuple[int, ...]] | None:
    """``torch.autograd.graph.Node._input_metadata`` (torch 2.4 lacks it): shapes of a node's outputs.

    Where it is missing rows are followed through operations that leave them in place, and what slices, indexes, joins
    or reshapes them is refused.
    """
    metadata = getattr(node, "_input_metadata", None)
    return None if metadata is None else [tuple(output.shape) for output in metadata]


def of_any_batch(tensor: Tensor) -> Tensor:
    """``torch._dynamo.maybe_mark_dynamic`` (since torch 2.1): the tensor for a graph that takes a batch of any length.

    An alias, so that the caller's tensor is not marked. Where the name is missing the second length compiles once more.
    """
    alias = tensor.view_as(tensor)
    mark = getattr(torch._dynamo, "maybe_mark_dynamic", None)
    if mark is not None:
        mark(alias, 0)
    return alias
