"""Run folders: settings, environment and results, intact even if the process is killed at any moment."""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..masks import RandomShading
from ..presets import PRESETS
from ..utils.files import PathLike, write_atomic

__all__ = [
    "Run",
    "digest",
    "environment",
    "only_one",
    "read_json",
    "read_lines",
    "require_free",
    "write_atomic",
    "write_json",
]

PACKAGES = ("policy_noise", "torch", "timm", "kornia", "numpy", "scikit-learn", "medmnist")


def write_json(path: PathLike, value: Any) -> None:
    """Write JSON, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def read_json(path: PathLike) -> Any:
    """Read JSON. The error for a broken file names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON and of UTF-8
        raise ValueError(f"{path} is damaged, it is not JSON: {error}") from error


def digest(path: PathLike) -> str:
    """A file's SHA-256."""
    with open(path, "rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def environment() -> dict[str, Any]:
    """The environment of a run: command, time, machine, packages and git revision of this code."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"

    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        command = ["git", *arguments]
        try:
            done = subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # Installed from a wheel there may still be a repository around it, such as the user's own: it says nothing of this
    # code unless it holds this code.
    tracked = git("ls-files", "--error-unmatch", Path(__file__).relative_to(package).as_posix()) is not None

    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        "packages": versions,
        "git_revision": git("rev-parse", "HEAD") if tracked else None,
        "git_modified": bool(git("status", "--porcelain", "--untracked-files=no", ".")) if tracked else None,
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def require_free(folder: PathLike) -> None:
    """Refuse a folder that holds a run.

    Raises:
        FileExistsError: If it does.
        NotADirectoryError: If it is a file.
    """
    if Path(folder).is_file():
        raise NotADirectoryError(f"--output must be a folder, and {folder} is a file")
    if (Path(folder) / "recipe.json").is_file():
        raise FileExistsError(f"{folder} already holds a run: pass --resume, or another --output")


@contextlib.contextmanager
def only_one(folder: PathLike) -> Iterator[None]:
    """Hold a folder for this process while the ``with`` block runs, so that two do not write into it.

    Raises:
        OSError: If another process holds it.
        NotADirectoryError: If it is a file.
    """
    from filelock import FileLock, Timeout

    if Path(folder).is_file():
        raise NotADirectoryError(f"--output must be a folder, and {folder} is a file")
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"{folder} is in use by another process: wait for it, or take another --output") from None
    try:
        yield
    finally:
        lock.release()


class Run:
    """A run's folder.

    It holds ``recipe.json`` (all settings), ``environment.json`` (with ``resumed``, the environments of later
    resumptions), ``metrics.jsonl``, ``checkpoints/`` and the results of the stage: ``model.safetensors``,
    ``scores.json``, ``figures/``, ``report.html``. Only rank 0 writes.

    Args:
        folder: The folder. It is made if it is missing.
        stage: Name of the stage.
        recipe: The resolved recipe, a dataclass.
        data: Description of the data set, compared on resuming.
        resume: Continue a run that is in the folder.
        writes: Whether this process checks and writes.

    Raises:
        FileExistsError: If the folder holds a run and ``resume`` is off.
        ValueError: If it holds a run of another stage, recipe or data set, or its record is damaged.
    """

    def __init__(
        self, folder: PathLike, stage: str, recipe: Any, data: Mapping[str, Any], *, resume: bool, writes: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.writes = writes
        record = {"stage": stage, "data": dict(data), "recipe": dataclasses.asdict(recipe)}
        record["presets"] = _settings_of_presets(stage, recipe)
        record = json.loads(json.dumps(record))  # as it will be read back
        path = self.folder / "recipe.json"
        # Only one process checks: the others might see the record that it has just written.
        if writes and not resume:
            require_free(self.folder)
        if path.is_file() and writes:
            added = ("data.skip_bad_files", False, True)  # as one may want when a bad file turns up at the end
            differing = [entry for entry in _differing(read_json(path), record) if entry != added]
            if differing:
                changed = "; ".join(f"{name} was {_short(old)} and is {_short(new)}" for name, old, new in differing)
                raise ValueError(f"{path} belongs to another run: {changed}. Ask for the same, or for another --output")
            place, now = self.folder / "environment.json", environment()
            if place.is_file():
                first = read_json(place)
                now = {**first, "resumed": [*first.get("resumed", []), now]}
            write_json(place, now)
            for leftover in self.checkpoints.glob(".*.pt.*"):
                leftover.unlink(missing_ok=True)  # from a process killed while writing
        elif writes:
            write_json(self.folder / "environment.json", environment())
            write_json(path, record)  # last: from here on it is a run
        self.record = record

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        if self.writes:
            path = self.folder / "metrics.jsonl"
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            except OSError as error:  # a full disk's names no file
                raise OSError(error.errno, f"{error.strerror}; continue the run with --resume", str(path)) from error

    def history(self) -> list[dict[str, Any]]:
        """All complete lines of ``metrics.jsonl``."""
        return read_lines(self.folder / "metrics.jsonl")

    def rewind(self, step: int | None = None) -> None:
        """Drop the lines of later steps, which will be written again, and an incomplete last line."""
        if self.writes:
            entries = self.history()
            kept = [json.dumps(entry) + "\n" for entry in entries if step is None or entry["step"] <= step]
            write_atomic(self.folder / "metrics.jsonl", lambda path: path.write_text("".join(kept), encoding="utf-8"))

    def save(self, name: str, state: Any) -> None:
        """Write a checkpoint, atomically."""
        if self.writes:
            write_atomic(self.checkpoints / name, lambda path: torch.save(state, path))


def _settings_of_presets(stage: str, recipe: Any) -> dict[str, Any]:
    """Return what the presets of a run stand for. A version of the package that changes them must not go on with it."""
    masked = getattr(recipe, "noise", "plain") != "plain"
    names = PRESETS if stage == "compare" else [recipe.preset] if masked else []
    shading = {name: parameter.default for name, parameter in inspect.signature(RandomShading).parameters.items()}
    return {
        name: {
            "mask": {**(shading if name == "random" else {}), **PRESETS[name].mask},
            "hook": dict(PRESETS[name].hook),
        }
        for name in names
    }


def _differing(found: Any, asked: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted names of the entries in which two records differ, and both values."""
    if isinstance(found, dict) and isinstance(asked, dict):
        keys = sorted(found.keys() | asked.keys())
        parts = [_differing(found.get(key), asked.get(key), f"{name}.{key}" if name else key) for key in keys]
    elif isinstance(found, list) and isinstance(asked, list) and len(found) == len(asked):
        parts = [_differing(*pair, f"{name}[{i}]") for i, pair in enumerate(zip(found, asked, strict=True))]
    else:
        return [] if found == asked else [(name, found, asked)]
    return [entry for part in parts for entry in part]


def _short(value: Any) -> str:
    text = "not recorded" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file. An incomplete last line is skipped; a missing file gives an empty list.

    Raises:
        ValueError: If a line before the last is damaged.
    """
    entries = []
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is damaged, it holds no JSON: {error}") from error
    return entries
