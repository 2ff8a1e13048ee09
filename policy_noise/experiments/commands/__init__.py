"""The command ``policy-noise``. The scripts under ``examples/`` call the same subcommands.

A subcommand is a function that adds its options to a parser and sets ``work``, which runs it, as a default. Its
docstring is the command's help. To add one, write the function and name it in :data:`COMMANDS`.
"""

import argparse
import importlib.util
import inspect
import os
import shlex
import sys
import warnings
from collections.abc import Sequence

from ..world import started_first
from . import check_data, compare, evaluate, train, transfer, verdict

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "quickstart": compare.quickstart,
    "pretrain": train.pretrain,
    "finetune": train.finetune,
    "evaluate": evaluate.evaluate,
    "transfer": transfer.transfer,
    "average": train.average,
    "report": verdict.report,
    "compare": compare.compare,
    "verdict": verdict.verdict,
    "check-data": check_data.check_data,
}

NEEDED = ("matplotlib", "pandas", "scipy", "sklearn", "statsmodels", "tqdm")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line. Bad input ends it with a one-line error instead of a traceback.

    Args:
        arguments: The subcommand and its options. By default those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="policy-noise", description="Train, fine-tune, score and compare classifiers under shading masks."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add_options in COMMANDS.items():
        about = inspect.getdoc(add_options) or ""
        add_options(commands.add_parser(name, help=about.partition("\n")[0], description=about, allow_abbrev=False))
    parsed = parser.parse_args(words)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names, verb = ", ".join(missing).replace("sklearn", "scikit-learn"), "is" if len(missing) == 1 else "are"
        sys.exit(f'error: {names} {verb} not installed: pip install "policy_noise[examples]"')
    python_format = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # without file, number and source line
    try:
        parsed.work(parsed)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        bars = getattr(sys.modules["tqdm"].tqdm, "_instances", ()) if "tqdm" in sys.modules else ()
        for bar in list(bars):  # so that the error stands on a line of its own
            bar.close()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        if started_first():
            print(f"\nstopped{_resumption(parsed, words)}", file=sys.stderr)
        sys.exit(130)
    finally:
        warnings.formatwarning = python_format


def _resumption(parsed: argparse.Namespace, words: Sequence[str]) -> str:
    """Say how to resume, if there is a run to resume."""
    if not hasattr(parsed, "resume") or not (parsed.output / "recipe.json").is_file():
        return ""
    again = ["policy-noise", *words, *([] if parsed.resume else ["--resume"])]
    processes = os.environ.get("WORLD_SIZE", "1")
    return f"; {f'on {processes} processes again, ' if processes != '1' else ''}resume with: {shlex.join(again)}"
