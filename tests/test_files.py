"""Files are written completely or not at all, even if writing fails."""

import os
import resource
import signal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from policy_noise.heated import load_heated, save_heated
from policy_noise.utils.files import write_atomic

WEIGHTS = {"a": torch.zeros(100_000)}
WRITERS = {
    "checkpoint": lambda path: torch.save(WEIGHTS, path),
    "weights": lambda path: save_file(WEIGHTS, str(path)),
    "page": lambda path: path.write_text("x" * 400_000),
}


def in_child(act):
    """Run something in a process of its own, which may be limited or killed; its exit status, and what it raised."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act()
        except Exception as error:
            os.write(theirs, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def limited(act):
    """As on a full disk: no file may grow beyond 64 KiB."""

    def run():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        act()

    return run


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, kind, before):
    path = tmp_path / "file"
    if before:
        path.write_bytes(before)
    _, said = in_child(limited(lambda: write_atomic(path, WRITERS[kind])))
    assert said.startswith("OSError: [Errno 27] File too large, nothing was changed:")
    assert str(path) in said
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == ([("file", b"old")] if before else [])


def test_a_heated_model_is_saved_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model.safetensors"
    save_heated(nn.Linear(4, 4), path)
    before = path.read_bytes()
    _, said = in_child(limited(lambda: save_heated(nn.Linear(200, 200), path)))
    assert "File too large, nothing was changed" in said
    assert path.read_bytes() == before
    load_heated(nn.Linear(4, 4), path)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_kill_while_writing_leaves_the_old_file(tmp_path, kind):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_and_die(temporary):
        WRITERS[kind](temporary)
        os.truncate(temporary, temporary.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    status, _ = in_child(lambda: write_atomic(path, write_and_die))
    assert status == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_what_a_killed_process_left_is_removed_once_nobody_can_be_writing_it(tmp_path):
    path = tmp_path / "file"
    names = {
        "abandoned": ".file.0123abcd",
        "written": ".file.4567cdef",
        "other": ".other.0123abcd",
        "own": ".file.notes",
    }
    for name, file in names.items():
        (tmp_path / file).write_bytes(b"half")
        if name != "written":
            os.utime(tmp_path / file, (0, 0))
    write_atomic(path, lambda temporary: temporary.write_bytes(b"new"))
    assert path.read_bytes() == b"new"
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", *names.values()} - {names["abandoned"]}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    folder.chmod(0o555)

    def act():
        os.chdir(folder)
        if os.getuid() == 0:
            os.setuid(65534)  # root may write everywhere
        write_atomic("file", WRITERS[kind])

    _, said = in_child(act)
    folder.chmod(0o755)
    assert said.startswith("PermissionError: [Errno 13] Permission denied, nothing was changed")
    assert said.endswith("'file'")
    assert [(entry.name, entry.read_bytes()) for entry in folder.iterdir()] == [("file", b"old")]


def test_an_error_of_the_writer_itself_is_its_own(tmp_path):
    with pytest.raises(KeyError, match="mine"):
        write_atomic(tmp_path / "file", lambda path: {}["mine"])
    assert not list(tmp_path.iterdir())
