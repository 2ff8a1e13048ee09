"""What bias fields of other libraries do to black, how strong they are, and what they do with a batch.

    python -m benchmarks.bias_fields

Every transform has its default settings and is always applied. Those that are not installed are named. AlbumentationsX
and TorchIO 2 can't stand beside Albumentations and TorchIO 1: put a folder that holds them first on PYTHONPATH.
"""

from collections.abc import Callable
from importlib.metadata import version
from statistics import mean, quantiles

import torch
from torch import Tensor

from benchmarks.pages import head, row

Transform = Callable[[Tensor], Tensor]

BLACK, WHITE = -2.0, 2.0
"""Of images normalized with a mean of 0.5 and a standard deviation of 0.25."""
DRAWS = 200


def _ours() -> Transform:
    from policy_noise import RandomShading

    return RandomShading(p=1.0, grid_size=(3, 3, 3), mean=0.5, std=0.25)


def _ours_unit() -> Transform:
    from policy_noise import RandomShading

    return RandomShading(p=1.0, grid_size=(3, 3, 3), mean=0.0, std=1.0)


def _monai() -> Transform:
    from monai.transforms import RandBiasField

    field = RandBiasField(prob=1.0)
    return lambda volume: torch.as_tensor(field(volume))


def _torchio() -> Transform:
    import torchio

    name = "RandomBiasField" if hasattr(torchio, "RandomBiasField") else "BiasField"  # of TorchIO 1 and 2
    return getattr(torchio, name)(p=1.0)


def _albumentationsx() -> Transform:
    from albumentations import BiasField

    field = BiasField(p=1.0)

    def transform(volume: Tensor) -> Tensor:
        key = "volume" if volume.ndim == 4 else "volumes"
        return torch.from_numpy(field(**{key: volume.movedim(-4, -1).numpy()})[key]).movedim(-1, -4)

    return transform


FIELDS: dict[str, tuple[str, Callable[[], Transform], Callable[[], Transform]]] = {
    "RandomShading": ("policy_noise", _ours, _ours_unit),
    "MONAI RandBiasField": ("monai", _monai, _monai),
    "TorchIO bias field": ("torchio", _torchio, _torchio),
    "AlbumentationsX BiasField": ("albumentationsx", _albumentationsx, _albumentationsx),
}
"""By name the package, and makers of the transform for normalized images and for images in [0, 1]."""


def measure(normalized: Transform, unit: Transform, draws: int = DRAWS, side: int = 32) -> list[str]:
    """The cells of a table's row."""
    torch.manual_seed(0)
    volume = torch.rand(1, side, side, side) * (WHITE - BLACK) + BLACK
    volume[:, : side // 2] = BLACK
    black = mean(float((normalized(volume)[:, : side // 2] - BLACK).abs().mean()) for _ in range(draws))
    grey = torch.full_like(volume, 0.25)  # far from white, where some clip
    fields = [unit(grey) / 0.25 for _ in range(draws)]
    cells = [f"{black / (WHITE - BLACK):.3f}"]
    means = [float(one.mean()) for one in fields]
    for values in ([float(one.std()) / factor for one, factor in zip(fields, means, strict=True)], means):
        low, *_, high = quantiles(values, n=20)
        cells.append(f"{mean(values):.2f} ({low:.2f} to {high:.2f})")
    return [*cells, _batched(unit, grey)]


def _batched(transform: Transform, volume: Tensor) -> str:
    try:
        result = transform(torch.stack([volume] * 4))
    except Exception:  # whatever a library raises
        return "refused"
    return {1: "one for all", 4: "one each"}.get(len(result.flatten(1).unique(dim=0)), "other")


def main(draws: int = DRAWS) -> None:
    """Print the table."""
    print(
        f"Volumes of 32 x 32 x 32, {draws} draws, mean (5 to 95 %). The share of the range from black to white by which"
    )
    print("black moves, and the field's standard deviation, divided by its mean, and its mean.\n")
    columns = ["default settings", "black moves by", "deviation by mean", "mean", "a batch (B, C, D, H, W)"]
    lines, missing = head(columns), []
    for name, (package, normalized, unit) in FIELDS.items():
        try:
            lines.append(row([f"{name} {version(package)}", *measure(normalized(), unit(), draws)]))
        except (ImportError, AttributeError) as error:
            missing.append(f"- {name}: {error}")
    print("\n".join([*lines, "", *missing]))


if __name__ == "__main__":
    main()
