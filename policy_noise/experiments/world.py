"""The same calls for one process and for several under torchrun."""

import os
import sys
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
    """This process among all processes.

    Args:
        rank: Number of this process.
        size: Number of processes.
        device: Device that this process uses.
        quiet: Show no progress bars, because those of simultaneous runs would overwrite each other.
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

    @property
    def pace(self) -> float:
        """Seconds between two states of a progress bar: few in a file, where each is a line of its own."""
        return 0.1 if sys.stderr.isatty() else 60.0

    def gather(self, value: Any) -> list[Any]:
        """Collect the value of every process, in order of rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, work: Callable[[], T]) -> T:
        """Run a function in every process. If one of them finds bad input, all of them raise its error."""
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
        """Copy the first process's buffers to all, because BatchNorm statistics may differ after the last step."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()


def started_first() -> bool:
    """Whether this is torchrun's first process. Works before the processes have joined."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def world() -> Iterator[World]:
    """Join the processes that torchrun started (nccl on GPUs, else gloo). Without torchrun there is one process."""
    size, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    yield World(dist.get_rank(), size, device)
    # Not after an error, which ends the process: leaving the group would wait for one that has left already.
    dist.destroy_process_group()
