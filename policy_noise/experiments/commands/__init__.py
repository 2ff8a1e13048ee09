"""The command ``policy-noise``. The scripts under ``examples/`` call the same subcommands.

A subcommand is a module of this package with ``add_arguments(parser)`` and ``run(arguments)``. Its docstring is the
command's help. To add one, write the module and name it in :data:`COMMANDS`.
"""

import argparse
import importlib
import importlib.util
import os
import shlex
import sys
import warnings
from collections.abc import Sequence

from ..world import started_first

__all__ = ["COMMANDS", "main"]

COMMANDS = (
    "quickstart",
    "pretrain",
    "finetune",
    "evaluate",
    "transfer",
    "average",
    "report",
    "compare",
    "verdict",
    "check_data",
)

NEEDED = {
    "matplotlib": "matplotlib",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "statsmodels": "statsmodels",
    "tqdm": "tqdm",
}


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
    modules = {name: importlib.import_module(f".{name}", __name__) for name in COMMANDS}
    for name, module in modules.items():
        about = (module.__doc__ or "").strip()
        own = commands.add_parser(
            name.replace("_", "-"), help=about.partition("\n")[0], description=about, allow_abbrev=False
        )
        module.add_arguments(own)
    parsed = parser.parse_args(words)
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        sys.exit(f'error: {", ".join(missing)} {verb} not installed: pip install "policy_noise[examples]"')
    python_format, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        modules[parsed.command.replace("-", "_")].run(parsed)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        _end_bars()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        if started_first():
            print(f"\nstopped{_resumption(parsed, words)}", file=sys.stderr)
        sys.exit(130)
    finally:
        warnings.formatwarning = python_format


def _end_bars() -> None:
    """Close open progress bars, so that an error stands on a line of its own."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning for the command line: without file, line number and source line."""
    return f"warning: {message}\n"


def _resumption(parsed: argparse.Namespace, words: Sequence[str]) -> str:
    """Say how to resume, if there is a run to resume."""
    if not hasattr(parsed, "resume") or not (parsed.output / "recipe.json").is_file():
        return ""
    again = ["policy-noise", *words, *([] if parsed.resume else ["--resume"])]
    processes = os.environ.get("WORLD_SIZE", "1")
    return f"; {f'on {processes} processes again, ' if processes != '1' else ''}resume with: {shlex.join(again)}"
