"""Average the weights of a run's last epochs into averaged.safetensors."""

import argparse
from pathlib import Path

from policy_noise.heated import average_checkpoints, read_heated_metadata, save_heated

from ..recipes import recorded_recipe
from ..training import create_model

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--last", type=int, default=3, help="epochs to average (default: 3)")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    paths = sorted((arguments.run / "checkpoints").glob("weights-*.pt"))
    if not paths:
        raise FileNotFoundError(f"{arguments.run} holds no checkpoints/weights-*.pt: --run must be a training's folder")
    if not 1 <= arguments.last <= len(paths):
        raise ValueError(
            f"--last must be between 1 and {len(paths)}, the number of weights kept in {arguments.run}, "
            f"got {arguments.last}"
        )
    chosen = paths[-arguments.last :]
    source = arguments.run / "model.safetensors"
    metadata = read_heated_metadata(source)
    model = create_model(recorded_recipe(metadata, source), len(metadata["classes"]))
    model.load_state_dict(average_checkpoints(chosen))
    kept = ("stage", "data", "classes", "fingerprint", "recipe", "ancestry")
    own = {name: metadata[name] for name in kept if name in metadata}
    path = arguments.run / "averaged.safetensors"
    save_heated(model, path, {**own, "averaged": [file.name for file in chosen]})
    print(f"{path}: the mean of {', '.join(file.name for file in chosen)}")
