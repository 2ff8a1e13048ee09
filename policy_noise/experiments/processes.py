"""Pools of worker processes that end with their parent, and with the first failure; threads that read files."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["in_threads", "usable_cores", "worker_pool"]

T = TypeVar("T")
U = TypeVar("U")
THREADS = 16  # more than cores, as they mostly wait for the disk


def in_threads(work: Callable[[T], U], items: Sequence[T], *, desc: str, unit: str) -> Iterator[U]:
    """Yield results in the order of the items, with a progress bar if it takes long. An error stops all threads."""
    from tqdm import tqdm

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            yield from tqdm(pool.map(work, items), desc=desc, unit=unit, total=len(items), delay=5, leave=False)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def worker_pool(jobs: int, initializer: Callable[..., Any], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes that each call ``initializer`` first. Any error inside the block stops them all.

    Raises:
        OSError: If a process dies.
    """
    start = (initializer, *arguments)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_start, initargs=start) as pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise OSError("a process ended before its run did, as for want of memory: try fewer --jobs") from error
            raise


def _start(initializer: Callable[..., Any], *arguments: Any) -> None:
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its default lock leaks a semaphore if a worker is killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer(*arguments)


def _end_with_parent() -> None:
    """Wait for the parent's end, even if it is killed. Otherwise a worker would finish its task and then wait."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
