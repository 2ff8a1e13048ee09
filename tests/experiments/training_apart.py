"""A small training for child processes, which tests kill or start several of."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from ranks import under_torchrun
from training_case import RECIPES, organs, run_of

import policy_noise
from policy_noise.experiments.runs import Run
from policy_noise.experiments.training import train
from policy_noise.experiments.world import world


def kill_in(when: str) -> None:
    """Have this process killed within an epoch (``log``), or when half of a checkpoint is written (``save``)."""
    if when == "log":
        log = Run.log

        def log_and_die(self: Run, entry: dict) -> None:
            log(self, entry)
            if entry["step"] == 5:
                os.kill(os.getpid(), signal.SIGKILL)

        Run.log = log_and_die
    if when == "save":
        save = torch.save

        def save_half(state: object, path: Path) -> None:
            save(state, path)
            if Path(path).name.startswith(".last.pt") and state["step"] == 6:
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = save_half


def train_apart(rank: int, folder: str, names: list[str], when: str = "", port: int = 0) -> None:
    """Train the named recipes in folders of their own.

    Args:
        rank: Of this process.
        folder: Where the runs' folders are.
        names: Of the recipes and their folders.
        when: See :func:`kill_in`; empty where nobody is killed.
        port: Where two processes meet; 0 for one alone.
    """
    torch.set_num_threads(1)
    if port:
        under_torchrun(rank, port)
    kill_in(when)
    hooks: list[policy_noise.ReinforceHook] = []
    attach = policy_noise.attach

    def attach_and_remember(*args: Any, **kwargs: Any) -> policy_noise.ReinforceHook:
        hooks.append(attach(*args, **kwargs))
        return hooks[-1]

    policy_noise.attach = attach_and_remember
    with world() as here:
        for name in names:
            place = Path(folder, name)
            model = train(run_of(place, RECIPES[name], here), RECIPES[name], organs(), here)
            # What each rank ended with, to compare them.
            policy = {key: value for hook in hooks for key, value in hook.augmentation.state_dict().items()}
            torch.save({"model": model.state_dict(), "policy": policy}, place / f"rank{here.rank}.pt")
