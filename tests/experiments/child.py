"""A small training in a process of its own, for tests that kill it or start several.

Usage: child.py FOLDER NAME[,NAME] WHEN, for runs in FOLDER/NAME, with WHEN one of ``finish``, ``log`` (killed in the
middle of an epoch) and ``save`` (killed when half of a checkpoint is written).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from training_case import RECIPES, organs, run_of

import policy_noise
from policy_noise.experiments.distributed import world
from policy_noise.experiments.runs import Run
from policy_noise.experiments.training import train


def main() -> None:
    folder, names, when = sys.argv[1:]
    torch.set_num_threads(1)
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
    hooks: list[policy_noise.ReinforceHook] = []
    attach = policy_noise.attach

    def attach_and_remember(*args: Any, **kwargs: Any) -> policy_noise.ReinforceHook:
        hooks.append(attach(*args, **kwargs))
        return hooks[-1]

    policy_noise.attach = attach_and_remember
    with world() as here:
        for name in names.split(","):
            place = Path(folder, name)
            model = train(run_of(place, RECIPES[name], here), RECIPES[name], organs(), here)
            # What each rank ended with, to compare them.
            policy = {key: value for hook in hooks for key, value in hook.mask.state_dict().items()}
            torch.save({"model": model.state_dict(), "policy": policy}, place / f"rank{here.rank}.pt")


if __name__ == "__main__":
    main()
