"""Processes for tests of several ranks.

Importing torch and its friends is what makes a new process slow. So a server process imports them once, and each rank
is forked from it. Unlike a fork of the tests' own process, this copies no threads and no state of earlier tests.
"""

import multiprocessing
import os
import socket

import torch.multiprocessing as mp

START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
if START == "forkserver":
    multiprocessing.set_forkserver_preload(
        ["pytest", "timm", "kornia.augmentation", "sklearn.linear_model", "torch.distributed.fsdp",
         "policy_noise.experiments.commands"])  # fmt: skip


def run_ranks(function, *arguments, world=2):
    """Call ``function(rank, *arguments)`` in processes of their own; one that fails ends all, with its traceback."""
    mp.start_processes(function, arguments, nprocs=world, start_method=START)


def under_torchrun(rank, port, world=2):
    """Set in a rank what torchrun sets."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
