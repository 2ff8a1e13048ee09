"""What masks are compared with: augmentations of other libraries, normalization of each image, and your own.

To add an augmentation, write its factory here and name it in :data:`RIVALS`: it is then an arm of ``compare``.
"""

import functools
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .shifts import bias_field, own_generators

__all__ = ["RIVALS", "Augmentation", "Own", "Rival", "RunAugmentation", "normalize_each_image", "own_transform"]

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From images in [0, 1], (N, C, H, W), and labels, to images and labels, or to class probabilities."""


class Rival(NamedTuple):
    """An augmentation to compare with.

    Args:
        about: What it does, in words for tables.
        build: From the number of classes and a generator on the images' device to a :data:`Transform`. It may draw from
            the global generators instead.
    """

    about: str
    build: Callable[[int, torch.Generator], Transform]


def _images_only(work: Callable[[Tensor], Tensor]) -> Transform:
    return lambda images, labels: (work(images), labels)


def _half(work: Callable[[Tensor, torch.Generator], Tensor]) -> Callable[[int, torch.Generator], Transform]:
    """Change each image with probability one half."""

    def build(num_classes: int, generator: torch.Generator) -> Transform:
        def transform(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            changed = work(images, generator)
            chosen = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
            return torch.where(chosen, changed, images), labels

        return transform

    return build


def _torchvision(name: str) -> Callable[[int, torch.Generator], Transform]:
    """One of torchvision's automatic augmentations of uint8 images, drawn anew for each eighth of a batch."""

    def build(num_classes: int, generator: torch.Generator) -> Transform:
        from torchvision.transforms import v2

        operation = getattr(v2, name)()

        return _images_only(
            lambda images: torch.cat([operation(part) for part in _to_uint8(images).chunk(8)]).float() / 255
        )

    return build


def _color_jitter(num_classes: int, generator: torch.Generator) -> Transform:
    from kornia.augmentation import ColorJitter

    operation = ColorJitter(0.4, 0.4, 0.4)  # of three channels
    return _images_only(lambda images: operation(images.expand(-1, 3, -1, -1))[:, : images.shape[1]])


def _random_erasing(num_classes: int, generator: torch.Generator) -> Transform:
    from kornia.augmentation import RandomErasing

    return _images_only(RandomErasing(p=0.5))


def _mixup(num_classes: int, generator: torch.Generator) -> Transform:
    from timm.data import Mixup

    operation = Mixup(mixup_alpha=0.2, label_smoothing=0.0, num_classes=num_classes)

    def transform(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if labels.ndim == 2:  # timm's would take each label for an image
            raise ValueError("mixup needs one label per image, and these have several")
        count = len(images)
        if count % 2:  # timm's mixes pairs
            images, labels = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
        images, labels = operation(images, labels)
        return images[:count], labels[:count]

    return transform


@_half
def _bias_field(images: Tensor, generator: torch.Generator) -> Tensor:
    return bias_field(images, generator, 0.5).clamp(0, 1)


@_half
def _gaussian_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + 0.1 * noise).clamp(0, 1)


@_half
def _swap_statistics(images: Tensor, generator: torch.Generator) -> Tensor:
    std, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
    order = torch.randperm(len(images), generator=generator, device=images.device)
    normalized = (images - mean) / std.clamp_min(1e-6)
    return (normalized * std[order] + mean[order]).clamp(0, 1)


@_half
def _randconv(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mix each image with itself under a random filter (RandConv's RC-mix 1-7, Xu et al. 2021).

    A size of 1, 3, 5 or 7 for each batch, and a filter and a share for each image. As in the authors' code, grey of 0.5
    is zero to the filters.
    """
    count, channels = images.shape[:2]
    place: dict[str, Any] = {"generator": generator, "device": images.device}
    size = 1 + 2 * int(torch.randint(4, (), **place))
    filters = torch.randn(count * channels, channels, size, size, **place) / (channels * size**2) ** 0.5
    flat = (images - 0.5).reshape(1, count * channels, *images.shape[2:])
    filtered = F.conv2d(flat, filters, padding=size // 2, groups=count).reshape(images.shape) + 0.5
    return torch.lerp(filtered, images, torch.rand(count, 1, 1, 1, **place))


RIVALS: Mapping[str, Rival] = MappingProxyType(
    {
        "bias_field": Rival("multiplied by the exponential of a random cubic, TorchIO's .5, half of them", _bias_field),
        "gaussian_noise": Rival("normal noise of deviation 0.1, half of the images", _gaussian_noise),
        "random_erasing": Rival("kornia's RandomErasing, half of the images", _random_erasing),
        "mixup": Rival("images and labels of two mixed, timm's Mixup, alpha 0.2", _mixup),
        "randaugment": Rival("torchvision's RandAugment, 2 operations of magnitude 9", _torchvision("RandAugment")),
        "trivialaugment": Rival("torchvision's TrivialAugmentWide, one operation", _torchvision("TrivialAugmentWide")),
        "augmix": Rival("torchvision's AugMix, severity 3", _torchvision("AugMix")),
        "color_jitter": Rival("kornia's ColorJitter(0.4, 0.4, 0.4); of grey images, no saturation", _color_jitter),
        "swap_statistics": Rival("mean and deviation of another image of the batch, half of them", _swap_statistics),
        "randconv": Rival("a random convolution, mixed with the image (RandConv), half of them", _randconv),
    }
)


class Own(NamedTuple):
    """A transform of your own, with what it takes. A factory returns it where the defaults do not fit.

    Args:
        call: Changes an image, or a batch, and returns one of the same shape.
        per: ``"image"``, called with (C, H, W), or ``"batch"``, called with (N, C, H, W).
        images: ``"uint8"`` tensors, ``"float"`` tensors in [0, 1], or ``"array"``: uint8 NumPy arrays (H, W, C) that
            are passed as ``image=``, the result under the same name, as Albumentations has it.
    """

    call: Callable[..., Any]
    per: str = "image"
    images: str = "float"


_DEFAULTS = {"kornia": ("batch", "float"), "torchvision": ("image", "uint8"), "albumentations": ("image", "array")}
"""What a library's transforms take; all others: one image, float."""


def own_transform(name: str) -> Own:
    """Import a transform of the user's own.

    Args:
        name: ``"package.module:name"``. The module may lie in the current folder. The name is that of a transform, or
            of a factory or class that can be called without arguments and gives one (or an :class:`Own`).

    Raises:
        ValueError: If it cannot be imported, or is not callable.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"transform {name!r} cannot be imported as package.module:name ({error})") from error
    finally:
        sys.path.pop(0)
    if inspect.isclass(found) or (inspect.isfunction(found) and not _required(found)):
        found = found()
    if not isinstance(found, Own):
        library = "albumentations" if type(found).__module__.startswith("albu") else type(found).__module__
        found = Own(found, *_DEFAULTS.get(library.partition(".")[0], ("image", "float")))
    if not callable(found.call) or found.per not in ("image", "batch") or found.images not in _READ:
        raise ValueError(f"transform {name!r} must be or give a callable, or Own(callable, per, images), got {found}")
    return found


def _required(function: Callable[..., Any]) -> bool:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return any(entry.default is entry.empty and entry.kind not in kinds for entry in parameters)


def _to_uint8(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


_READ: dict[str, Callable[[Tensor, Own], Any]] = {
    "float": lambda image, own: own.call(image),
    "uint8": lambda image, own: own.call(_to_uint8(image)),
    "array": lambda image, own: own.call(image=_to_uint8(image).movedim(-3, -1).cpu().numpy()),
}


def _apply_own(own: Own, name: str) -> Transform:
    def one(image: Tensor) -> Tensor:
        result = _READ[own.images](image, own)
        if own.images == "array":
            array = np.ascontiguousarray(result["image"] if isinstance(result, Mapping) else result)
            result = torch.from_numpy(array.reshape(*array.shape[: image.ndim - 1], -1)).movedim(-1, -3)
        if not isinstance(result, Tensor) or result.shape != image.shape:
            got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"transform {name!r} must return a tensor of shape {tuple(image.shape)}, got {got}")
        plain = result.as_subclass(Tensor).to(image.device)
        plain = plain.float() / 255 if plain.dtype == torch.uint8 else plain.float()
        if not plain.isfinite().all():
            raise ValueError(f"transform {name!r} gave values that are NaN or infinite")
        return plain

    def work(images: Tensor) -> Tensor:
        return one(images) if own.per == "batch" else torch.stack([one(image) for image in images])

    return _images_only(work)


class Augmentation:
    """An augmentation of images in [0, 1], at its usual strength.

    Args:
        name: One of :data:`RIVALS`, or ``"package.module:name"`` of a transform of the user's own.
        num_classes: Number of classes, for MixUp's targets.
        device: Device of the images.
        seed: Seed of what draws on the device. The others use the global seeds.
    """

    def __init__(self, name: str, num_classes: int, device: torch.device, seed: int) -> None:
        if ":" not in name and name not in RIVALS:
            raise ValueError(f"unknown augmentation {name!r}: it must be one of {list(RIVALS)} or package.module:name")
        self.generator = torch.Generator(device).manual_seed(20_000 + seed)
        self.own = own_transform(name) if ":" in name else None
        self.transform = _apply_own(self.own, name) if self.own else RIVALS[name].build(num_classes, self.generator)

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(images, labels)


class RunAugmentation:
    """An augmentation for resumable runs: its random draws depend only on seed, step and process.

    Args:
        name: See :class:`Augmentation`.
        num_classes: Number of classes, for MixUp's targets.
        device: Device of the images.
        seed: The run's seed.
        rank: Number of the process.
        mean: Mean of the images' normalization.
        std: Standard deviation of the images' normalization.
    """

    def __init__(
        self, name: str, num_classes: int, device: torch.device, *, seed: int, rank: int, mean: float, std: float
    ) -> None:
        self.augmentation = Augmentation(name, num_classes, device, seed)
        self.seed, self.rank, self.mean, self.std = seed, rank, mean, std

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Augment a normalized batch at a step, counted from 0. The global random generators are left unchanged.

        Returns:
            The images, and the labels or, for MixUp, class probabilities.
        """
        seed = int(np.random.default_rng([self.seed, step, 2, self.rank]).integers(2**31))
        self.augmentation.generator.manual_seed(seed)
        own = None if self.augmentation.own is None else self.augmentation.own.call
        # Albumentations and MONAI have generators of their own. Albumentations' set_random_state takes two of them.
        reseed = getattr(own, "set_random_seed", None) or getattr(own, "set_random_state", None)
        if reseed is not None:
            reseed(seed)
        with own_generators(seed, images.device):
            x, y = self.augmentation((images * self.std + self.mean).clamp(0, 1), labels)
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last), y


def normalize_each_image(model: nn.Module) -> nn.Module:
    """Make a timm model subtract each image's mean and divide by its deviation first, in training and in testing.

    It stands inside the model, after any mask or augmentation: a factor for the whole image is undone by it.

    Args:
        model: A timm model, changed in place.

    Returns:
        The same model.
    """
    forward: Any = model.forward_features
    setattr(model, "forward_features", functools.partial(_normalized, forward))  # noqa: B010  (no parameter or module)
    return model


def _normalized(forward: Callable[..., Any], images: Tensor, *arguments: Any, **options: Any) -> Any:
    # Single-precision statistics also under autocast; an image of one value becomes 0.
    values = images.float()
    std, mean = torch.std_mean(values, (1, 2, 3), keepdim=True)
    return forward(((values - mean) / std.clamp_min(1e-4)).to(images.dtype), *arguments, **options)
