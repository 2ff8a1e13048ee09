"""MedMNIST's files: downloaded on request, completely, and checked against the published ones."""

import hashlib
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch
from filelock import FileLock

from policy_noise.experiments.medmnist import load_medmnist


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small file that stands for the published one, and the list of what was fetched."""
    import medmnist

    path = tmp_path / "published.npz"
    content = {}
    for split in ("train", "val", "test"):
        content[f"{split}_images"] = np.zeros((4, 8, 8), np.uint8)
        content[f"{split}_labels"] = np.array([[0], [1], [0], [1]])
    np.savez(path, **content)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(medmnist.INFO["pneumoniamnist"], "MD5", md5)
    fetched = []

    def fetch(url, target):
        fetched.append(url)
        with open(target, "wb") as file:
            file.write(path.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    return path, fetched


def test_a_missing_and_a_truncated_file_are_fetched_once(tmp_path, published):
    whole, fetched = published
    root = tmp_path / "root"
    assert load_medmnist("pneumoniamnist", root, download=True).num_classes == 2
    assert len(fetched) == 1
    load_medmnist("pneumoniamnist", root, download=True)
    assert len(fetched) == 1
    (root / "pneumoniamnist.npz").write_bytes(whole.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"not the published file by its MD5: pass --download"):
        load_medmnist("pneumoniamnist", root)
    load_medmnist("pneumoniamnist", root, download=True)
    assert len(fetched) == 2


def test_a_second_process_waits_for_the_first(tmp_path, published):
    whole, fetched = published
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / ".pneumoniamnist.npz.lock"):
            waiting = pool.submit(load_medmnist, "pneumoniamnist", tmp_path, download=True)
            assert not wait([waiting], 0.2).done
            (tmp_path / "pneumoniamnist.npz").write_bytes(whole.read_bytes())
        assert waiting.result().num_classes == 2
    assert fetched == []


def test_a_damaged_download_leaves_nothing(tmp_path, published, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, target: open(target, "wb").write(b"half"))  # noqa: SIM115
    root = tmp_path / "root"
    with pytest.raises(OSError, match=r"pneumoniamnist\.npz could not be fetched \(its MD5 is not .*get it from https"):
        load_medmnist("pneumoniamnist", root, download=True)
    assert [path.name for path in root.iterdir()] == [".pneumoniamnist.npz.lock"]


def test_without_a_network_one_line_says_where_the_file_is(tmp_path, published, monkeypatch):
    def no_network(url, target):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(OSError, match=r"could not be fetched .*not known.*get it from https") as caught:
        load_medmnist("pneumoniamnist", tmp_path / "root", download=True)
    assert "\n" not in str(caught.value)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "policy_noise\[examples\]".*--npz'):
        load_medmnist("pneumoniamnist", tmp_path)
