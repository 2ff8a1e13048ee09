"""Batches of a split: their order, reading, augmentation on the device, and prediction for a whole split."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .data import channels_first, match_channels
from .recipes import TrainRecipe
from .world import World

__all__ = ["augment", "epoch_batches", "loader_of", "outputs", "predict"]


class _Images(Dataset):
    """A split as a Dataset that reads a whole batch in one call."""

    def __init__(self, split: Any) -> None:
        self.split = split

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        images, kept = self.split.read(indices)
        return (
            channels_first(images),
            torch.from_numpy(self.split.labels[kept]),
            torch.from_numpy(np.isin(indices, kept)),
        )


def _same(batch: Any) -> Any:
    return batch


def loader_of(split: Any, batches: list[list[int]], workers: int) -> DataLoader:
    """Load a split in batches.

    Args:
        split: The images and labels.
        batches: The positions of each batch. The list may be filled anew before an epoch.
        workers: Processes that read images; 0 reads in this process.

    Returns:
        A loader of (images, labels, present). Images that cannot be read are missing from images and labels.

    Shape:
        - images: (B, C, H, W), uint8.
        - labels: (B,) or (B, K).
        - present: (batch,) bool, True for the B images that could be read.
    """
    return DataLoader(
        _Images(split),
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_same,
        pin_memory=torch.cuda.is_available(),
    )


def epoch_batches(images: int, recipe: TrainRecipe, epoch: int, world: World) -> list[list[int]]:
    """This process's batches of an epoch.

    The order depends only on seed and epoch. Each step's images are divided among the processes, so two processes
    together see what one process with twice the batch size would see. An incomplete last batch is dropped.

    Args:
        images: Images in the split.
        recipe: The recipe, for batch size and seed.
        epoch: Number of the epoch, from 0.
        world: The processes.

    Returns:
        The positions of each step's images.

    Raises:
        ValueError: If the split has fewer images than one batch of all processes.
    """
    together = recipe.batch_size * world.size
    if images < together:
        raise ValueError(
            f"batch_size {recipe.batch_size} on {world.size} processes needs {together} training images, got {images}: "
            f"pass --set batch_size={max(1, images // world.size)} or less"
        )
    order = np.random.default_rng([recipe.seed, epoch]).permutation(images)
    steps = images // together
    mine = order[: steps * together].reshape(steps, world.size, recipe.batch_size)[:, world.rank]
    return [batch.tolist() for batch in mine]


def augment(
    images: Tensor, recipe: TrainRecipe, step: int, world: World, present: Tensor, *, train: bool = True
) -> Tensor:
    """Normalize a batch on its device. In training, augment it with Kornia first.

    Parameters are drawn from seed and step for the batch of all processes, and each process uses its part of them.
    Neither the number of processes nor a restart changes them.

    Args:
        images: uint8 images.
        recipe: The recipe.
        step: Steps taken since the start of training.
        world: The processes.
        present: Which of the batch's images could be read.
        train: Whether to augment. Otherwise images larger than the recipe's are cropped at the centre.

    Shape:
        - images: (B, 1 or 3, load_size, load_size).
        - present: (batch,) bool, with B times True.
        - Output: (B, in_chans, image_size, image_size).
    """
    import kornia.augmentation as K
    from kornia.geometry import center_crop

    size = (recipe.image_size, recipe.image_size)
    x = match_channels(images.float().div_(255), recipe.in_chans)
    if train and recipe.augmentation != "none":
        steps: list[Any] = []
        if recipe.augmentation == "resized_crop":
            steps = [K.RandomResizedCrop(size, p=1.0, cropping_mode="resample"), K.RandomHorizontalFlip(p=0.5)]
        else:
            margin = max(1, recipe.image_size // 10)
            x = nn.functional.pad(x, (margin,) * 4, mode="reflect")
            steps = [K.RandomCrop(size, p=1.0, cropping_mode="slice")]
        shape = torch.Size((len(present) * world.size, *x.shape[1:]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(np.random.default_rng([recipe.seed, step, 1]).integers(2**62))
            drawn = [transform.forward_parameters(shape) for transform in steps]
        mine = torch.zeros(shape[0], dtype=torch.bool)
        mine[world.rank * len(present) : (world.rank + 1) * len(present)] = present
        for transform, parameters in zip(steps, drawn, strict=True):
            own = {
                name: value[mine] if value.ndim > 0 and len(value) == shape[0] else value
                for name, value in parameters.items()
                if name != "forward_input_shape"
            }
            x = transform(x, params={**own, "forward_input_shape": torch.tensor(x.shape)})
    elif x.shape[2:] != size:
        x = center_crop(x, size)
    return x.sub(recipe.mean).div(recipe.std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def outputs(model: nn.Module, split: Any, recipe: TrainRecipe, world: World, *, multi_label: bool) -> tuple[Any, Any]:
    """Predict probabilities for a whole split. Each readable image is predicted once; every process gets the result.

    Args:
        model: The classifier; it is left in evaluation mode.
        split: The images.
        recipe: The recipe, for image size, normalization and precision.
        world: The processes, which share the work.
        multi_label: Whether an image may have several labels (sigmoid) or has one (softmax).

    Returns:
        Positions in the split, (N,), ascending, and probabilities (N, K).

    Raises:
        ValueError: If no image could be read, or the model's outputs are not finite.
    """
    from tqdm import tqdm

    model.eval()
    mine = np.arange(world.rank, len(split), world.size)
    batches = [part.tolist() for part in np.array_split(mine, -(-len(split) // world.size // 256) or 1) if len(part)]
    positions, outputs = [], []
    loader = loader_of(split, batches, recipe.workers)
    bar = tqdm(loader, desc="scoring", unit="batch", delay=5, leave=False, disable=not world.shows)
    for indices, (images, _, present) in zip(batches, bar, strict=True):
        if not len(images):
            continue
        x = augment(images.to(world.device, non_blocking=True), recipe, 0, world, present, train=False)
        with torch.autocast(world.device.type, torch.bfloat16, enabled=recipe.amp):
            logits = model(x)
        logits = logits.float()
        outputs.append((logits.sigmoid() if multi_label else logits.softmax(1)).cpu().numpy())
        positions.append(np.asarray(indices)[present.numpy()])
    shares = world.gather((np.concatenate(positions), np.concatenate(outputs)) if outputs else None)
    found = [share for share in shares if share is not None]
    if not found:
        raise ValueError("no image of the split could be read")
    order = np.concatenate([share[0] for share in found])
    probabilities = np.concatenate([share[1] for share in found])
    if not np.isfinite(probabilities).all():
        bad = int((~np.isfinite(probabilities).all(1)).sum())
        raise ValueError(f"the model diverged: its outputs are not finite for {bad} of {len(probabilities)} images")
    sorting = np.argsort(order)
    return order[sorting], probabilities[sorting]


def predict(model: nn.Module, split: Any, recipe: TrainRecipe, world: World, *, multi_label: bool) -> tuple[Any, Any]:
    """The labels, (N,) or (N, K), and the probabilities, (N, K), of a whole split; see :func:`outputs`."""
    positions, probabilities = outputs(model, split, recipe, world, multi_label=multi_label)
    return split.labels[positions], probabilities
