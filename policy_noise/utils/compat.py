"""All uses of torch's private names: why each is needed, since when it exists, and the fallback if it is missing.

The names of autograd's operations are in :mod:`policy_noise.hooks._rows`. If torch changes one, it is unknown there and
refused.
"""

import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten  # since torch 2.0; no fallback

__all__ = [
    "CollectiveError",
    "TreeSpec",
    "are_transforms_active",
    "backward_number",
    "backward_roots",
    "collectives_refused",
    "compiled_from",
    "forward_hooks",
    "is_in_backward",
    "is_replica",
    "is_saved_elsewhere",
    "is_transformed",
    "node_shapes",
    "own_graph",
    "remove_hook_functions",
    "sample_dirichlet",
    "saved",
    "tree_flatten",
    "tree_unflatten",
    "version_of",
]


def sample_dirichlet(concentration: Tensor, generator: torch.Generator | None) -> Tensor:
    """``torch._sample_dirichlet`` (since torch 1.0): the sampler behind :class:`torch.distributions.Beta`.

    The function takes a generator; the distribution does not. If the function is missing, the distribution draws from
    the global generator, which is seeded from the given one and restored afterwards. There is no kernel for MPS, so
    there the CPU draws.
    """
    if concentration.device.type == "mps":
        # A generator on MPS seeds one on the CPU.
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
    """``torch._C._current_graph_task_id`` (since torch 2.0): whether this thread is inside a backward pass.

    A forward pass inside a backward pass is activation checkpointing's recomputation, which must repeat its masks. If
    the name is missing, checkpointing is recognized by its frames on the call stack.
    """
    current = getattr(torch._C, "_current_graph_task_id", None)
    if current is not None:
        return current() != -1
    codes = (frame.f_code for frame, _ in traceback.walk_stack(sys._getframe(1)))
    return any(code.co_filename == torch.utils.checkpoint.__file__ and code.co_name in RECOMPUTATIONS for code in codes)


def backward_number() -> int:
    """``torch._C._current_graph_task_id`` (since torch 2.0): the number of this thread's backward pass, -1 for none.

    If the name is missing, all backward passes have the same number.
    """
    current = getattr(torch._C, "_current_graph_task_id", None)
    return -1 if current is None else current()


def backward_roots() -> list[Tensor]:
    """``torch.autograd.graph._engine_run_backward`` (since torch 2.3): what the backward passes that run began at.

    Nothing else tells it. A hook on a GPU's tensors runs in a thread of its own, so the call stacks of all threads are
    searched. If the name is missing, or the pass was not begun in Python, the answer is empty.
    """
    code = getattr(getattr(torch.autograd.graph, "_engine_run_backward", None), "__code__", None)
    found: list[Tensor] = []
    for frame in sys._current_frames().values():
        while frame is not None:  # no variable may hold this function's own frame, which would keep the graph alive
            if frame.f_code is code:
                found += [root for root in frame.f_locals.get("t_outputs", ()) if isinstance(root, Tensor)]
            frame = frame.f_back  # type: ignore[assignment]
    return found


RECOMPUTATIONS = ("backward", "recompute_fn", "unpack_hook")
"""Functions of torch.utils.checkpoint that run a forward pass again."""


def are_transforms_active() -> bool:
    """``torch._C._are_functorch_transforms_active`` (since torch 2.0): whether vmap, grad or a similar transform runs.

    Transforms do not support this package's :class:`torch.autograd.Function`. If the name is missing, the answer is
    True: the plain operations are correct everywhere, only slower.
    """
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return True if active is None else active()


def is_transformed() -> bool:
    """Like :func:`are_transforms_active`, but False if the name is missing. For callers that skip all work then."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return False if active is None else active()


def is_saved_elsewhere() -> bool:
    """``torch._C._autograd._top_saved_tensors_default_hooks`` (not in torch 2.7): whether saved tensors are caught.

    Checkpointing and offloading do that for everything inside them. If the name is missing, the answer is True.
    """
    surrounding = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return surrounding is None or surrounding(False) is not None


def own_graph() -> AbstractContextManager[Any]:
    """Keep checkpointing and offloading around the hooked model away from the policy's saved tensors."""
    return torch.autograd.graph.saved_tensors_hooks(_same, _same) if is_saved_elsewhere() else nullcontext()


def _same(tensor: Tensor) -> Tensor:
    return tensor


def node_shapes(node: Any) -> list[tuple[int, ...]]:
    """``torch.autograd.graph.Node._input_metadata`` (since torch 2.5): shapes of a node's outputs."""
    return [tuple(output.shape) for output in node._input_metadata]


def saved(node: Any, name: str, *default: Any) -> Any:
    """``torch.autograd.graph.Node._saved_*``: an argument that autograd has kept of an operation.

    Returns:
        None for a tensor that was freed with its graph, or changed in place since.
    """
    try:
        return getattr(node, "_saved_" + name, *default)
    except RuntimeError:
        return None


def compiled_from(model: nn.Module) -> nn.Module | None:
    """``OptimizedModule._orig_mod`` (since torch 2.0): the module inside what :func:`torch.compile` returned."""
    return getattr(model, "_orig_mod", None)


def forward_hooks(module: Any) -> list[Callable[..., Any]]:
    """``Module._forward_hooks`` (since torch 0.1): the hooks on a module. Empty if the name is missing."""
    return list(getattr(module, "_forward_hooks", {}).values())


def is_replica(module: nn.Module) -> bool:
    """``Module._is_replica`` (since torch 1.6): whether a module is one that DataParallel made for a thread.

    If the name is missing, replicas are not noticed.
    """
    return getattr(module, "_is_replica", False)


FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
FORWARD_HOOK_FLAGS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def remove_hook_functions(module: nn.Module, function: Any) -> bool:
    """``Module._forward_hooks`` and its like (since torch 2.0): remove a function by itself, without its handle.

    Copies of a module have its hooks, but nobody has their handles. If the names are missing, nothing is removed.

    Returns:
        Whether there was one.
    """
    registered = [vars(module).get(name, {}) for name in FORWARD_HOOKS]
    keys = [key for hooks in registered for key, found in hooks.items() if found is function]
    for name in (*FORWARD_HOOKS, *FORWARD_HOOK_FLAGS):
        for key in keys:
            vars(module).get(name, {}).pop(key, None)
    return bool(keys)


def version_of(tensor: Tensor) -> int:
    """``torch.Tensor._version`` (since torch 0.4): counts the in-place writes to a tensor.

    Tensors of inference mode have none. If the name is missing, writes go unnoticed.
    """
    return 0 if tensor.is_inference() else getattr(tensor, "_version", 0)


class CollectiveError(RuntimeError):
    """A collective was called where none may be."""


def collectives_refused() -> AbstractContextManager[Any]:
    """``torch.utils._python_dispatch.TorchDispatchMode`` (since torch 1.13): refuse collectives inside the block.

    If the name is missing, they are not noticed.

    Raises:
        CollectiveError: If a collective of torch.distributed is called.
    """
    try:
        from torch.utils._python_dispatch import TorchDispatchMode
    except ImportError:
        return nullcontext()

    class Refusal(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "c10d" in function.namespace:
                raise CollectiveError(function.__name__)
            return function(*args, **(kwargs or {}))

    return Refusal()
