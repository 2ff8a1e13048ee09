"""Random shading compared with other libraries' augmentations, each alone on one thread.

Times are the CPU time of the process. On one thread this is the time of a call on an idle machine, because time taken
by other processes is not counted.
"""

import functools
import random
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import policy_noise
from benchmarks.overhead.clock import guarded, synchronize
from benchmarks.overhead.suites import CLASSES, MEAN, STD
from benchmarks.pages import head, row

SHAPES = {
    "batch": (16, 3, 224, 224),
    "image": (3, 224, 224),
    "volume": (1, 96, 96, 96),
}
TITLES = {
    "batch": "A batch of 16 x 3 x 224 x 224",
    "image": "One image of 3 x 224 x 224, in a data set's transforms",
    "volume": "One volume of 1 x 96 x 96 x 96, in a data set's transforms",
}
OURS = "RandomShading"
NORMALIZED = "RandomShading, normalised images"
"""Here black is not zero, which takes a second pass."""
BESIDE = {"batch": "one multiply", "image": "torchvision ColorJitter", "volume": "MONAI RandBiasField"}
"""The row of each table that all rows are compared with, besides RandomShading."""
JITTER = (0.4, 0.4, 0.4)
"""Brightness, contrast and saturation: timm's default."""
ROUNDS = 31
CPU = torch.device("cpu")

Transform = Callable[[Tensor], Any]


def peers(kind: str, device: torch.device = CPU) -> dict[str, Callable[[], Transform]]:
    """Functions that make the compared transforms, by name. All change every image, except preset "random"."""
    if kind == "batch":
        factor = torch.rand(16, 1, 224, 224, device=device)
        return {
            "one multiply": lambda: lambda images: images * factor,
            OURS: lambda: policy_noise.RandomShading(p=1.0, mean=0.0, std=1.0),
            NORMALIZED: lambda: policy_noise.RandomShading(p=1.0, mean=MEAN, std=STD),
            'preset "random", hooked, half of the images': _preset,
            "timm RandomErasing": _timm_erasing,
            "timm Mixup": _timm_mixup,
            "torchvision ColorJitter, one factor a batch": lambda: _torchvision("ColorJitter", *JITTER),
            "torchvision ColorJitter, image by image": lambda: _each(_torchvision("ColorJitter", *JITTER)),
            "Kornia RandomBrightness": lambda: _kornia("RandomBrightness", (0.6, 1.4), p=1.0),
            "Kornia RandomLinearIllumination": lambda: _kornia("RandomLinearIllumination", p=1.0),
            "Kornia RandomErasing": lambda: _kornia("RandomErasing", p=1.0),
            "Kornia ColorJitter": lambda: _kornia("ColorJitter", *JITTER, p=1.0),
            "Kornia RandomGaussianIllumination": lambda: _kornia("RandomGaussianIllumination", p=1.0),
            "MONAI RandBiasField, image by image": lambda: _each(_monai()),
            "AlbumentationsX BiasField, one field a batch": lambda: _albumentations("BiasField", "images"),
        }
    if kind == "image":
        return {
            OURS: lambda: policy_noise.RandomShading(p=1.0, mean=0.0, std=1.0),
            NORMALIZED: lambda: policy_noise.RandomShading(p=1.0, mean=MEAN, std=STD),
            "torchvision ColorJitter": lambda: _torchvision("ColorJitter", *JITTER),
            "MONAI RandBiasField": _monai,
            "Albumentations Illumination": lambda: _albumentations("Illumination", "image"),
            "AlbumentationsX BiasField": lambda: _albumentations("BiasField", "image"),
            "batchgeneratorsv2 BrightnessGradientAdditive": _batchgenerators,
        }
    return {
        OURS: lambda: policy_noise.RandomShading(p=1.0, grid_size=(2, 2, 2), mean=0.0, std=1.0),
        "MONAI RandBiasField": _monai,
        "TorchIO bias field": _torchio,
        "AlbumentationsX BiasField": lambda: _albumentations("BiasField", "volume"),
        "batchgeneratorsv2 BrightnessGradientAdditive": _batchgenerators,
    }


def measure_peers(kind: str, device: torch.device = CPU, seconds: float = 0.05) -> dict[str, Any]:
    """Time all transforms in turn, in a shuffled order.

    Args:
        kind: One of :data:`SHAPES`.
        device: Where the images are. On a GPU wall time is taken, until the device has finished.
        seconds: Approximate length of a turn. Short calls are timed several in a row.

    Returns:
        By name the seconds of a call in each round, or the message of an error.
    """
    torch.manual_seed(0)
    images = torch.rand(SHAPES[kind])
    calls: dict[str, Callable[[], Any]] = {}
    found: dict[str, Any] = {}
    for name, make in peers(kind, device).items():
        made = guarded(make)
        made = made.to(device) if isinstance(made, nn.Module) else made
        if isinstance(made, str):
            found[name] = made
            continue
        call = functools.partial(made, images.to(device, copy=True))  # some work in place
        failed = guarded(call)
        if isinstance(failed, str):
            found[name] = failed
        else:
            calls[name] = call
    times = {name: max(1, round(seconds / _seconds(call, 2, device))) for name, call in calls.items()}
    order, shuffled = list(calls), random.Random(0)
    for name in order:
        found[name] = []
    for _ in range(ROUNDS):
        shuffled.shuffle(order)
        for name in order:
            found[name].append(_seconds(calls[name], times[name], device))
    return {name: found[name] for name in peers(kind, device)}


def library_versions() -> dict[str, str]:
    """Versions of the compared libraries that are installed."""
    found = {}
    libraries = ("albumentations", "albumentationsx", "batchgeneratorsv2", "kornia", "monai", "timm", "torchio")
    for library in (*libraries, "torchvision"):
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    if "albumentationsx" in found:  # it stands before Albumentations on the path
        found.pop("albumentations", None)
    return found


def _seconds(call: Callable[[], Any], times: int, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    start = clock()
    for _ in range(times):
        call()
    synchronize(device)
    return (clock() - start) / times


def tables(results: dict[str, Any]) -> list[str]:
    """The tables of the page, fastest first."""
    lines = ["", ", ".join(f"{library} {number}" for library, number in results["libraries"].items()) + "."]
    for kind, found in results["peers"].items():
        middle = {name: 1e3 * median(seconds) for name, seconds in found.items() if isinstance(seconds, list)}
        columns = [name for name in (BESIDE[kind], OURS) if name in middle]
        lines += ["", f"## {TITLES[kind]}", ""]
        lines += head(["", "ms", "middle half of the rounds", *(f"x {name}" for name in columns)])
        for name in sorted(middle, key=lambda name: middle[name]):
            low, high = _middle_half(found[name])
            ratios = [f"{middle[name] / middle[other]:.2f}" for other in columns]
            lines.append(row([name, f"{middle[name]:.2f}", f"{1e3 * low:.2f} to {1e3 * high:.2f}", *ratios]))
        failures = [f"- {name}: {words}" for name, words in found.items() if isinstance(words, str)]
        lines += ["", *failures] if failures else []
    return lines


def _middle_half(seconds: list[float]) -> tuple[float, float]:
    ordered = sorted(seconds)
    quarter = len(ordered) // 4
    return ordered[quarter], ordered[-1 - quarter]


def _preset() -> Transform:
    model = nn.Conv2d(3, 1, 1)
    hook = policy_noise.attach(model, None, preset="random", mean=0.0, std=1.0)

    def transform(images: Tensor) -> Tensor:
        masked = hook.apply(images)
        hook.step()
        return masked

    return transform


def _timm_erasing() -> Transform:
    from timm.data.random_erasing import RandomErasing

    return RandomErasing(probability=1.0, mode="pixel", device="cpu")


def _timm_mixup() -> Transform:
    from timm.data import Mixup

    mixup, targets = Mixup(mixup_alpha=0.2, num_classes=CLASSES), torch.arange(16)
    return lambda images: mixup(images, targets)


def _torchvision(name: str, *settings: Any) -> Transform:
    from torchvision.transforms import v2

    return getattr(v2, name)(*settings)


def _kornia(name: str, *settings: Any, **more: Any) -> Transform:
    import kornia.augmentation

    return getattr(kornia.augmentation, name)(*settings, **more)


def _monai() -> Transform:
    from monai.transforms import RandBiasField

    return RandBiasField(prob=1.0)


def _torchio() -> Transform:
    import torchio  # versions 1 and 2 cannot stand beside each other

    return torchio.RandomBiasField(p=1.0) if hasattr(torchio, "RandomBiasField") else torchio.BiasField(p=1.0)


def _albumentations(name: str, key: str) -> Transform:
    """Of Albumentations, or of AlbumentationsX, which has the same name and cannot stand beside it."""
    import albumentations

    if not hasattr(albumentations, name):
        raise ImportError(f"albumentations {albumentations.__version__} has no {name}")
    transform = getattr(albumentations, name)(p=1.0)
    made: dict[Tensor, Any] = {}  # the images channels-last in NumPy, as that library's users have them

    def call(images: Tensor) -> Tensor:
        if images not in made:
            made[images] = images.movedim(-4 if key == "volume" else -3, -1).contiguous().numpy()
        return torch.from_numpy(transform(**{key: made[images]})[key]).movedim(-1, -4 if key == "volume" else -3)

    return call


def _batchgenerators() -> Transform:
    from batchgeneratorsv2.transforms.local.brightness_gradient import BrightnessGradientAdditiveTransform

    transform = BrightnessGradientAdditiveTransform(scale=32.0)
    return lambda image: transform(image=image)["image"]


def _each(transform: Transform) -> Transform:
    return lambda images: torch.stack([transform(image) for image in images])
