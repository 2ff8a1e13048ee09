"""The augmentations that random shading is compared with."""

import json

import pytest
import torch

from benchmarks.overhead import __main__ as main
from benchmarks.overhead import peers


@pytest.mark.parametrize("kind", peers.SHAPES)
def test_every_transform_changes_every_image(kind):
    torch.manual_seed(0)
    images = torch.rand(peers.SHAPES[kind])
    for name, make in peers.peers(kind).items():
        if name.startswith("preset"):
            continue
        try:
            transform = make()
        except ImportError:  # an optional library, which the page then names
            continue
        changed = transform(images.clone())
        changed = changed[0] if isinstance(changed, tuple) else changed  # Mixup mixes the targets too
        assert changed.shape == images.shape, name
        different = torch.as_tensor(changed) != images
        assert bool(different.flatten(1).any(1).all()), name  # of a single image or volume every channel


def test_the_preset_masks_half_of_the_images_and_waits_for_no_loss():
    transform = peers.peers("batch")['preset "random", hooked, half of the images']()
    images = torch.rand(64, 3, 8, 8)
    changed = [(transform(images) != images).flatten(1).any(1).float().mean().item() for _ in range(20)]
    assert 0.4 < sum(changed) / 20 < 0.6


def test_the_page_has_a_row_for_each_fastest_first_and_names_what_failed(tmp_path, monkeypatch, capsys):
    def fails():
        raise ImportError("no such library")

    def work(times):
        return lambda: lambda images: [images.mul_(1.0) for _ in range(times)]

    monkeypatch.setattr(peers, "SHAPES", {"image": (3, 64, 64)})
    monkeypatch.setattr(main, "SHAPES", peers.SHAPES)
    made = {"slow": work(100), peers.OURS: work(1), "torchvision ColorJitter": work(10), "absent": fails}
    monkeypatch.setattr(peers, "peers", lambda kind, device: made)
    monkeypatch.setattr(peers, "ROUNDS", 5)
    main.main(["--suite", "peers", "--output", str(tmp_path)])
    page = (tmp_path / "peers.md").read_text()
    assert page in capsys.readouterr().out
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == [peers.OURS, "torchvision ColorJitter", "slow"]
    assert "- absent: ImportError: no such library" in page
    results = json.loads((tmp_path / "peers.json").read_text())
    assert len(results["peers"]["image"]["slow"]) >= 5
    main.main(["--report", str(tmp_path / "peers.json")])
    assert (tmp_path / "peers.md").read_text() == page
