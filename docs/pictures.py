"""Draw the pictures of README and documentation.

Usage: python docs/pictures.py
"""

from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import policy_noise
from policy_noise import RandomShading
from policy_noise.plotting import FACTORS, plot_masks, plot_metrics

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "_static"
GREY = "#767676"
"""Legible on white and on black."""
ORGANS = HERE.parent / "policy_noise" / "experiments" / "embedded" / "organpatches.npz"


def save(figure: Figure, name: str, dpi: int) -> None:
    """Save a picture of images, small and without a white ground."""
    figure.savefig(PICTURES / name, dpi=dpi, transparent=True, pil_kwargs={"quality": 85})


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


def random_masks(suffix: str) -> None:
    """README's picture: photographs beside CT under random masks."""
    images = torch.cat([photographs(), patches(("liver", "spleen"))])
    titles = ["photograph", "photograph", "CT, liver", "CT, spleen"]
    mask = RandomShading(grid_size=3, pattern_std=0.25, brightness_std=0.15, upsample="cubic", black=0.0)
    figure = plot_masks(mask, images, titles, draws=1, mean=0.0, std=1.0, seed=3)
    save(figure, f"random-masks{suffix}.webp", dpi=160)


SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "pattern": {f"pattern_std={value}": {"pattern_std": value} for value in (0.05, 0.1, 0.25, 0.4)},
    "brightness": {f"brightness_std={value}": {"brightness_std": value} for value in (0.0, 0.2, 0.4, 0.6)},
    "grid": {f"grid_size={value}": {"grid_size": value} for value in (2, 3, 5, 8)},
    "form": {
        'upsample="nearest"': {},
        'upsample="linear"': {"upsample": "linear"},
        'upsample="cubic"': {"upsample": "cubic"},
        "per_channel=True": {"upsample": "cubic", "per_channel": True},
    },
    "strength": {f"strength={value}": {"strength": value} for value in (0.25, 0.5, 0.75, 1.0)},
    "black": {
        "black=0 (right here)": {"black": 0.0},
        'black="minimum"': {"black": "minimum"},
        'black="percentile"': {"black": "percentile"},
        "black=0.5 (wrong here)": {"black": 0.5},
    },
}
"""Rows of the settings gallery: what each column is called, and its settings."""
STRONG = {"p": 1.0, "grid_size": 3, "pattern_std": 0.3, "brightness_std": 0.0, "upsample": "cubic", "black": 0.0}
"""What the gallery's rows have in common. Stronger than the default, so that it can be seen."""


def settings() -> None:
    """One picture for each setting: the factor, a photograph and a CT patch, at several values of the setting."""
    images = torch.cat([photographs()[:1], patches(("liver",))])
    for name, columns in SETTINGS.items():
        figure = Figure(figsize=(1.75 * len(columns) + 0.5, 5.2), layout="constrained")
        for line, axes in zip(columns.items(), figure.subplots(3, len(columns)).T, strict=True):
            title, values = line
            defaults = {**STRONG, "brightness_std": 0.5} if name == "brightness" else STRONG
            shade = RandomShading(**{**defaults, **({"upsample": "nearest"} if name == "form" else {}), **values})
            sample = shade.sample(images, torch.Generator().manual_seed(3))
            masked = shade(images, sample).clamp(0, 1)
            factor = shade.render(sample, images.shape[2:])[0].mean(0)
            axes[0].set_title(title, fontsize=8, color=GREY)
            axes[0].imshow(factor, cmap=FACTORS, vmin=0.2, vmax=1.8)
            for place, image in zip(axes[1:], masked, strict=True):
                place.imshow(image.permute(1, 2, 0))
            for place in axes:
                place.set_axis_off()
        save(figure, f"setting-{name}.webp", dpi=130)


def training_runs() -> dict[str, list[dict[str, float]]]:
    """A healthy policy, and one that saturates because its learning rate is far too high."""
    histories = {}
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
        histories[name] = history
    return histories


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings()
    runs = training_runs()
    for style, suffix in (("default", ""), ("dark_background", "-dark")):
        with matplotlib.style.context(style):
            random_masks(suffix)
            for name, history in runs.items():
                figure = plot_metrics(history, entropy_target=-0.3)
                figure.savefig(PICTURES / f"{name}-run{suffix}.png", dpi=90, transparent=True)
