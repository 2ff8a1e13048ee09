"""One process or several under torchrun, without the stages having to ask."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

__all__ = ["World", "started_first", "world"]

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among all.

    Args:
        rank: Its number.
        size: How many there are.
        device: Where it computes.
        quiet: Without progress bars, as where several runs at a time would overwrite one another's.
    """

    rank: int
    size: int
    device: torch.device
    quiet: bool = False

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def shows(self) -> bool:
        """Whether this process shows progress bars."""
        return self.main and not self.quiet

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in their order, on all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, work: Callable[[], T]) -> T:
        """Do something in every process; bad input that one of them finds ends them all, with its message."""
        result: Any = None
        problem = None
        try:
            result = work()
        except (ValueError, OSError) as error:
            problem = error
        found = [error for error in self.gather(problem) if error is not None]
        if found:
            raise found[0]
        return result

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the first one's buffers: BatchNorm statistics of the last step may differ."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()


def started_first() -> bool:
    """Whether this is the first of the processes that torchrun started, known before they have joined."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def world() -> Iterator[World]:
    """Join the processes that torchrun started, with nccl on GPUs and gloo without; alone where it did not."""
    size, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield World(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()
