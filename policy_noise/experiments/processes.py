"""Worker processes of a pool: they end when their parent does."""

import multiprocessing
import os
import threading

__all__ = ["end_with_parent", "usable_cores"]


def end_with_parent() -> None:
    """Let a pool's worker end with its parent, however that comes. Otherwise it goes on with its task, then waits."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
