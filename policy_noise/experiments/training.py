"""Pretraining and fine-tuning: one loop, resumable to the bit, on one process or several."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import policy_noise
from policy_noise.heated import load_heated, save_heated

from .data import match_channels
from .distributed import World
from .figures import LABELS, mask_gallery
from .metrics import classification_metrics
from .recipes import TrainRecipe
from .runs import Run

__all__ = ["augment", "create_model", "epoch_batches", "predict", "train"]

LOGS_PER_EPOCH = 20
GALLERY_IMAGES = 8


def create_model(recipe: TrainRecipe, num_classes: int, *, init: Path | None = None) -> nn.Module:
    """Make the recipe's classifier, from scratch under its seed or from a heated model's file.

    Raises:
        ValueError: If timm does not know the model, or the file is of another architecture.
        FileNotFoundError: If the file is missing.
    """
    import timm

    if not timm.is_model(recipe.model):
        raise ValueError(f"model must be a name that timm.list_models() lists, got {recipe.model!r}")
    torch.manual_seed(recipe.seed)
    model = timm.create_model(
        recipe.model, num_classes=num_classes, in_chans=recipe.in_chans, **dict(recipe.model_options)
    )
    if init is not None:
        load_heated(model, init)
    return model


# -- data --------------------------------------------------------------------------------------------------------------


class _Images(Dataset):
    """A split for a DataLoader that asks for whole batches."""

    def __init__(self, split: Any) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        images, kept = self.split.read(indices)
        tensor = torch.from_numpy(np.ascontiguousarray(images))
        tensor = tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
        return tensor, torch.from_numpy(self.split.labels[kept]), torch.from_numpy(np.isin(indices, kept))


class _Batches:
    """Batches of positions for a DataLoader's ``batch_sampler``, replaced before every epoch."""

    def __init__(self) -> None:
        self.batches: Sequence[list[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _same(batch: Any) -> Any:
    return batch


def _loader(split: Any, batches: _Batches, workers: int) -> DataLoader:
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

    The order depends on seed and epoch alone, and each step's images are dealt out over the processes: two processes
    see in a step what one with the double batch does. What is left of the last batch waits for another epoch.

    Returns:
        Positions of each step's images.

    Raises:
        ValueError: If the split does not fill one batch of all processes.
    """
    together = recipe.batch_size * world.size
    if images < together:
        raise ValueError(
            f"batch_size {recipe.batch_size} on {world.size} processes needs {together} training images, got {images}"
        )
    order = np.random.default_rng([recipe.seed, epoch]).permutation(images)
    steps = images // together
    mine = order[: steps * together].reshape(steps, world.size, recipe.batch_size)[:, world.rank]
    return [batch.tolist() for batch in mine]


def augment(
    images: Tensor, recipe: TrainRecipe, step: int, world: World, present: Tensor, *, train: bool = True
) -> Tensor:
    """Normalise a batch on its device, and in training augment it through Kornia.

    Parameters are drawn for the batch of all processes from seed and step alone, and each takes its part: neither the
    number of processes nor a restart changes them.

    Args:
        images: uint8 images.
        recipe: The recipe.
        step: Steps taken so far in all.
        world: The processes.
        present: Which of the batch's images could be read.
        train: Whether to augment; else images larger than the recipe's are cropped at their centre.

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
def predict(model: nn.Module, split: Any, recipe: TrainRecipe, world: World, *, multi_label: bool) -> tuple[Any, Any]:
    """Targets and probabilities of a whole split, on every process: no image twice, none left out.

    Returns:
        Targets (N,) or (N, K), and probabilities (N, K), in the split's order.

    Raises:
        ValueError: If no image could be read.
    """
    from tqdm import tqdm

    model.eval()
    batches = _Batches()
    batches.batches = [
        list(part)
        for part in np.array_split(
            np.arange(world.rank, len(split), world.size), -(-len(split) // world.size // 256) or 1
        )
        if len(part)
    ]
    positions, outputs = [], []
    loader = _loader(split, batches, recipe.workers)
    bar = tqdm(loader, desc="scoring", unit="batch", delay=5, leave=False, disable=not world.main)
    for indices, (images, _, present) in zip(batches.batches, bar, strict=True):
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
    sorting = np.argsort(order)
    return split.labels[order[sorting]], probabilities[sorting]


# -- training ----------------------------------------------------------------------------------------------------------


def train(run: Run, recipe: TrainRecipe, data: Any, world: World, *, init: Path | None = None) -> nn.Module:
    """Train a classifier into a run's folder, going on from its last checkpoint if there is one.

    Writes the log, the weights of the last epochs, pictures of the masks over training, and ``model.safetensors``.

    Args:
        run: The run's folder.
        recipe: How.
        data: An :class:`~policy_noise.experiments.data.ImageSet` or
            :class:`~policy_noise.experiments.radimagenet.FileSet`.
        world: The processes.
        init: Heated model to start from.

    Returns:
        The trained model, without wrappers and hooks.
    """
    from tqdm import tqdm

    model = create_model(recipe, data.num_classes, init=init)
    if world.size > 1 and world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    wrapped: nn.Module = model
    if world.size > 1:
        wrapped = DistributedDataParallel(model, device_ids=[world.device] if world.device.type == "cuda" else None)
    criterion: nn.Module = nn.BCEWithLogitsLoss() if data.multi_label else nn.CrossEntropyLoss()
    optimizer = _optimizer(model, recipe)
    steps = len(epoch_batches(len(data.train), recipe, 0, world))
    scheduler = _scheduler(optimizer, recipe, steps)
    hook = policy_scheduler = None
    generator = torch.Generator(world.device).manual_seed(recipe.seed * 1009 + world.rank)
    if recipe.noise != "conventional":
        hook, policy_scheduler = _attach(wrapped, optimizer, criterion, recipe, steps, generator)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if policy_scheduler is not None:
        parts["policy_scheduler"] = policy_scheduler
    torch.manual_seed(recipe.seed * 1009 + world.rank)  # what is left to the global source: dropout and the like
    done, skipped = _restore(run, parts, generator, world)

    batches = _Batches()
    loader = _loader(data.train, batches, recipe.workers)
    writer = _tensorboard(run) if world.main else None
    stage = run.record["stage"]
    bar = tqdm(
        total=steps * recipe.epochs,
        initial=done,
        unit="step",
        desc=f"{stage}, {LABELS[recipe.noise]}" if stage == "pretrain" else stage,
        disable=not world.main,
    )
    for epoch in range(done // steps, recipe.epochs):
        batches.batches = epoch_batches(len(data.train), recipe, epoch, world)[done % steps :]
        wrapped.train()
        for images, targets, present in loader:
            skipped += int((~present).sum())
            x = augment(images.to(world.device, non_blocking=True), recipe, done, world, present)
            y = targets.to(world.device, non_blocking=True)
            with torch.autocast(world.device.type, torch.bfloat16, enabled=recipe.amp):
                output = wrapped(x)
            loss = criterion(output.float(), y.float() if data.multi_label else y)
            optimizer.zero_grad()
            loss.backward()
            lr = optimizer.param_groups[0]["lr"]
            optimizer.step()
            scheduler.step()
            if policy_scheduler is not None:
                policy_scheduler.step()
            done += 1
            bar.update()
            if done % max(1, steps // LOGS_PER_EPOCH) == 0:
                entry = {"step": done, "epoch": done / steps, "loss": loss.item(), "lr": lr}
                entry |= {} if hook is None else hook.metrics
                _report(run, writer, entry)
                bar.set_postfix_str(f"loss {entry['loss']:.3f}")
            if recipe.checkpoint_steps and done % recipe.checkpoint_steps == 0 and done % steps:
                _save(run, parts, generator, world, done, skipped)
        world.share_buffers(model)
        targets_, probabilities = predict(model, data.val, recipe, world, multi_label=data.multi_label)
        scores = classification_metrics(targets_, probabilities)
        entry = {"step": done, "epoch": done / steps, **{f"val_{name}": value for name, value in scores.items()}}
        left_out = sum(world.gather(skipped))
        _report(run, writer, {**entry, "files_skipped": left_out} if left_out else entry)
        skipped = 0
        if hook is not None and run.writes:
            _gallery(run, hook.mask, data, recipe, world, epoch)
        run.save(f"weights-{epoch + 1:04d}.pt", {"model": model.state_dict()})
        _save(run, parts, generator, world, done, skipped)
        _prune(run, epoch + 1 - recipe.keep_checkpoints)
    bar.close()
    if hook is not None:
        hook.remove()
    if run.writes:
        if writer is not None:
            writer.close()
        metadata = {"stage": stage, "data": data.name, "classes": list(data.class_names)}
        save_heated(model, run.folder / "model.safetensors", {**metadata, "recipe": run.record["recipe"]})
    world.barrier()
    return model


def _optimizer(model: nn.Module, recipe: TrainRecipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: TrainRecipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Stepped once a step, whatever the schedule's own unit is."""
    schedulers = torch.optim.lr_scheduler
    if recipe.schedule == "onecycle":
        return schedulers.OneCycleLR(optimizer, recipe.lr, total_steps=max(2, steps * recipe.epochs))
    if recipe.schedule == "step":
        return schedulers.StepLR(optimizer, 30 * steps, 0.1)
    # The paper's warm-up moves once an epoch.
    return schedulers.LambdaLR(
        optimizer, lambda step: 0.01 + 0.99 * min(1.0, (step // steps) / max(1, recipe.warmup_epochs))
    )


def _attach(
    model: nn.Module, optimizer: Any, criterion: nn.Module, recipe: TrainRecipe, steps: int, generator: torch.Generator
) -> tuple[Any, Any]:
    """Hook the recipe's mask on, with a cosine of its own where the recipe has one. Cosines move once an epoch."""
    options: dict[str, Any] = {
        "preset": recipe.preset,
        "mean": [recipe.mean] * recipe.in_chans,
        "std": [recipe.std] * recipe.in_chans,
        "frozen": recipe.noise == "frozen",
        "generator": generator,
        **recipe.noise_options,
    }
    if recipe.policy_lr is None or recipe.noise == "frozen":
        return policy_noise.attach(model, optimizer, criterion, **options), None
    hook = policy_noise.attach(model, optimizer, criterion, **options, lr=recipe.policy_lr, follow_schedule=False)
    return hook, torch.optim.lr_scheduler.LambdaLR(
        hook.policy_optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * (step // steps) / recipe.epochs))
    )


# -- checkpoints and reports -------------------------------------------------------------------------------------------


def _save(run: Run, parts: dict[str, Any], generator: torch.Generator, world: World, step: int, skipped: int) -> None:
    """Everything that the next step depends on, of all processes. The policy travels in the optimizer's state."""
    own = {"mask": generator.get_state(), "cpu": torch.get_rng_state(), "skipped": skipped}
    if world.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(world.device)
    ranks = world.gather(own)
    run.save("last.pt", {"step": step, "ranks": ranks, **{name: part.state_dict() for name, part in parts.items()}})


def _restore(run: Run, parts: dict[str, Any], generator: torch.Generator, world: World) -> tuple[int, int]:
    """Load the last checkpoint, if there is one; the steps it had taken, and the files left out in its epoch."""
    path = run.checkpoints / "last.pt"
    if not path.is_file():
        run.rewind(0)
        return 0, 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if len(state["ranks"]) != world.size:
        raise ValueError(f"{path} was written by {len(state['ranks'])} processes, and this run has {world.size}")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    own = state["ranks"][world.rank]
    generator.set_state(own["mask"])
    torch.set_rng_state(own["cpu"])
    if "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], world.device)
    run.rewind(state["step"])
    return state["step"], own["skipped"]


def _prune(run: Run, epoch: int) -> None:
    if run.writes and epoch > 0:
        (run.checkpoints / f"weights-{epoch:04d}.pt").unlink(missing_ok=True)


def _tensorboard(run: Run) -> Any:
    """A writer if TensorBoard is installed, else None."""
    with contextlib.suppress(ImportError):
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(run.folder / "tensorboard")
    return None


def _report(run: Run, writer: Any, entry: dict[str, Any]) -> None:
    run.log(entry)
    if writer is not None:
        for name, value in entry.items():
            if name != "step":
                writer.add_scalar(name, value, entry["step"])


def _gallery(run: Run, mask: Any, data: Any, recipe: TrainRecipe, world: World, epoch: int) -> None:
    """The same validation images at the start, the middle and the end of training."""
    moments = {0: "1-start", recipe.epochs // 2: "2-middle", recipe.epochs - 1: "3-end"}
    if epoch not in moments:
        return
    labels = data.val.labels
    if data.multi_label:  # the first label stands for the image; without any it is not shown
        labels = np.where(labels.any(1), labels.argmax(1), -1)
    found, firsts = np.unique(labels, return_index=True)
    firsts = firsts[found >= 0]
    chosen = firsts[np.linspace(0, len(firsts) - 1, min(GALLERY_IMAGES, len(firsts))).round().astype(int)]
    images, kept = data.val.read(chosen)
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    tensor = tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
    present = torch.ones(len(kept), dtype=torch.bool)
    mask_gallery(
        mask,
        augment(tensor.to(world.device), recipe, 0, world, present, train=False),
        [data.class_names[label].rpartition("/")[2].replace("_", " ")[:18] for label in labels[kept]],
        run.figures / f"gallery-{moments[epoch]}.png",
        mean=recipe.mean,
        std=recipe.std,
        heading=f"{LABELS[recipe.noise]}, after epoch {epoch + 1} (validation images)",
    )
