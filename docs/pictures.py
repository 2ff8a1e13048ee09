"""Draw the pictures of README and documentation.

Usage: python docs/pictures.py
"""

from pathlib import Path

import numpy as np
import timm
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import policy_noise
from policy_noise import RandomShading
from policy_noise.plotting import plot_masks, plot_metrics

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "_static"
ORGANS = HERE.parent / "examples" / "data" / "organpatches.npz"


def photographs() -> Tensor:
    """scikit-learn's two photographs as squares, (2, 3, 224, 224), in [0, 1]."""
    squares = []
    for photograph in load_sample_images().images:
        height, width, _ = photograph.shape
        side = min(height, width)
        square = torch.from_numpy(photograph[:side, (width - side) // 2 :][:, :side].copy())
        squares.append(square.permute(2, 0, 1)[None] / 255)
    return nn.functional.interpolate(torch.cat(squares), 224, mode="area")


def patches(names: tuple[str, ...]) -> Tensor:
    """One CT patch of each organ, (B, 3, 224, 224), in [0, 1]."""
    with np.load(ORGANS) as data:
        known = list(data["names"])
        chosen = [np.flatnonzero(data["test_labels"].ravel() == known.index(name))[3] for name in names]
        images = torch.from_numpy(data["test_images"][chosen]).float() / 255
    images = images.reshape(len(names), 1, *images.shape[1:3])
    return nn.functional.interpolate(images, 224, mode="bilinear").expand(-1, 3, -1, -1)


def random_masks() -> None:
    """README's picture: photographs beside CT under random masks."""
    images = torch.cat([photographs(), patches(("liver", "spleen"))])
    titles = ["photograph", "photograph", "CT, liver", "CT, spleen"]
    mask = RandomShading(mean=0.0, std=1.0)
    figure = plot_masks(mask, images, titles, draws=1, mean=0.0, std=1.0, seed=5)
    figure.savefig(PICTURES / "random-masks.png", dpi=110)


def training_runs() -> None:
    """A healthy policy, and one that saturates because its learning rate is far too high."""
    with np.load(ORGANS) as data:
        images = (torch.from_numpy(data["train_images"]).float().reshape(-1, 1, 32, 32) / 255 - 0.5) / 0.25
        targets = torch.from_numpy(data["train_labels"].ravel()).long()
    criterion = nn.CrossEntropyLoss()
    for name, settings in (("healthy", {}), ("saturated", {"policy_lr": 1.0, "pattern_std": None})):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=int(targets.max()) + 1, in_chans=1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        hook = policy_noise.attach(model, optimizer, criterion, mean=0.5, std=0.25, **settings)
        history = []
        for step in range(200):
            chosen = torch.randint(len(images), (32,))
            loss = criterion(model(images[chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 5 == 4:
                history.append({"step": step, **hook.metrics})
        hook.remove()
        plot_metrics(history).savefig(PICTURES / f"{name}-run.png", dpi=90)


if __name__ == "__main__":
    torch.set_num_threads(1)
    random_masks()
    training_runs()
