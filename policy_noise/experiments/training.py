"""Pretraining and fine-tuning: one loop, resumable bit for bit, on one process or several."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import policy_noise
from policy_noise.heated import save_heated

from .batches import augment, epoch_batches, loader_of, predict
from .gallery import mask_gallery, save_seen
from .initialisation import Initialisation
from .metrics import classification_metrics, cross_entropy
from .recipes import TrainRecipe, name_of
from .rivals import RunAugmentation
from .runs import Run
from .world import World

__all__ = ["attach_noise", "check_mask", "create_model", "train"]

LOGS_PER_EPOCH = 20


def create_model(
    recipe: TrainRecipe, num_classes: int, *, init: Path | None = None, fresh_head: bool = False
) -> nn.Module:
    """Make the recipe's classifier, from scratch with its seed or from the file of a trained model.

    Args:
        recipe: The recipe, which names the model.
        num_classes: Number of classes of its last layer.
        init: File of a trained model.
        fresh_head: Do not load the file's last layer, because its classes differ.

    Raises:
        ValueError: If timm does not know the model or refuses ``model_options``, or the file is of another
            architecture.
        FileNotFoundError: If the file is missing.
    """
    published = (recipe.weights or "imagenet") if recipe.pretrained else "scratch"
    options: dict[str, Any] = {"heated": init is not None, "normalize_images": recipe.normalize_images}
    start = Initialisation(
        "pretrained", str(init or published), recipe.model, recipe.in_chans, recipe.model_options, **options
    )
    return start.create(num_classes, recipe.seed, fresh_head=fresh_head)


def attach_noise(
    model: nn.Module, optimizer: Any, criterion: nn.Module, recipe: TrainRecipe, steps: int, generator: torch.Generator
) -> tuple[Any, Any]:
    """Attach the recipe's mask, with a cosine schedule for the policy if the recipe has one. It is updated every epoch.

    In the recipe's ``clean_epochs`` nothing is masked.
    """
    noisy_steps = steps * (recipe.epochs - recipe.clean_epochs)
    options: dict[str, Any] = {
        "preset": recipe.preset,
        "mean": [recipe.mean] * recipe.in_chans,
        "std": [recipe.std] * recipe.in_chans,
        "frozen": recipe.noise == "random",
        "generator": generator,
        **({"strength_schedule": lambda step: float(step < noisy_steps)} if recipe.clean_epochs else {}),
        **recipe.noise_options,
    }
    falling = recipe.policy_lr is not None and recipe.noise == "learned"
    options |= {"policy_lr": recipe.policy_lr, "follow_schedule": False} if falling else {}
    hook: Any = policy_noise.attach(model, optimizer, criterion, **options)
    if not falling:
        return hook, None
    return hook, torch.optim.lr_scheduler.LambdaLR(
        hook.policy_optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * (step // steps) / recipe.epochs))
    )


def check_mask(model: nn.Module, recipe: TrainRecipe, *, multi_label: bool) -> None:
    """Try the model, and attach the recipe's mask and remove it again, so that wrong settings are found before a run.

    Raises:
        ValueError: If the model does not take such batches, or ``preset``, ``noise_options`` or ``policy_lr`` are
            refused.
    """
    images = torch.zeros(min(recipe.batch_size, 2), recipe.in_chans, recipe.image_size, recipe.image_size)
    try:
        with torch.no_grad():
            model.train()(images)
    except Exception as error:  # whatever the architecture makes of it
        raise ValueError(
            f"{recipe.model} does not take batches of batch_size={recipe.batch_size} images of "
            f"image_size={recipe.image_size} pixels: {error}" + "; try --set batch_size=2" * (recipe.batch_size == 1)
        ) from error
    if recipe.noise == "plain":
        return
    criterion: nn.Module = nn.BCEWithLogitsLoss() if multi_label else nn.CrossEntropyLoss()
    try:
        hook, _ = attach_noise(model, _optimizer(model, recipe), criterion, recipe, 1, torch.Generator())
        hook.augmentation.sample(torch.zeros(2, recipe.in_chans, recipe.image_size, recipe.image_size))
        hook.remove()
    except Exception as error:  # TypeError of an unknown name, ValueError of a value, and what a policy raises
        raise ValueError(
            f"noise_options {dict(recipe.noise_options)} do not suit preset={recipe.preset!r} at {recipe.image_size} "
            f"pixels: {error}"
        ) from error


def train(
    run: Run,
    recipe: TrainRecipe,
    data: Any,
    world: World,
    *,
    init: Path | None = None,
    fresh_head: bool = False,
    ancestry: Sequence[Mapping[str, Any]] = (),
) -> nn.Module:
    """Train a classifier into a run's folder. Continue from its last checkpoint if there is one.

    Writes the log, the weights of the last epochs, pictures of the masks during training, and ``model.safetensors``.

    Args:
        run: The run's folder.
        recipe: The settings.
        data: The set.
        world: The processes.
        init: Trained model to start from.
        fresh_head: Do not load its last layer, because its classes differ.
        ancestry: The trainings of that model, the first one first; they are written into the new model's file.

    Returns:
        The trained model, without wrappers and hooks.

    Raises:
        ValueError: If a loss or the model's outputs on the validation split are not finite.
    """
    from tqdm import tqdm

    model = create_model(recipe, data.num_classes, init=init, fresh_head=fresh_head)
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
    if recipe.noise != "plain":
        hook, policy_scheduler = attach_noise(wrapped, optimizer, criterion, recipe, steps, generator)
    extra = None
    if recipe.extra_augmentation != "none":
        own: dict[str, Any] = {"seed": recipe.seed, "rank": world.rank, "mean": recipe.mean, "std": recipe.std}
        extra = RunAugmentation(recipe.extra_augmentation, data.num_classes, world.device, **own)
    noisy_epochs = recipe.epochs - recipe.clean_epochs
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if policy_scheduler is not None:
        parts["policy_scheduler"] = policy_scheduler
    torch.manual_seed(recipe.seed * 1009 + world.rank)  # for users of the global generator, such as dropout
    done, skipped = _restore(run, parts, generator, world)

    batches: list[list[int]] = []
    loader = loader_of(data.train, batches, recipe.workers)
    stage, name = run.record["stage"], name_of(run.record["recipe"], run.record["data"])
    bar = tqdm(
        total=steps * recipe.epochs,
        initial=done,
        unit="step",
        desc=f"{stage}, {name}" if stage == "pretrain" else stage,
        mininterval=world.pace,
        disable=not world.shows,
    )
    losses: list[Tensor] = []  # since the last look, which waits for the device
    for epoch in range(done // steps, recipe.epochs):
        batches[:] = epoch_batches(len(data.train), recipe, epoch, world)[done % steps :]
        wrapped.train()
        for images, targets, present in loader:
            skipped += int((~present).sum())
            x = augment(images.to(world.device, non_blocking=True), recipe, done, world, present)
            y = targets.to(world.device, non_blocking=True)
            if extra is not None and epoch < noisy_epochs:
                x, y = extra(x, y, done)
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
            losses.append(loss.detach())
            if done % max(1, steps // LOGS_PER_EPOCH) == 0:
                entry = {"step": done, "epoch": done / steps, "loss": _last_finite(losses, done, steps, lr), "lr": lr}
                entry |= {} if hook is None or epoch >= noisy_epochs else hook.metrics
                run.log(entry)
                bar.set_postfix_str(f"loss {entry['loss']:.3f}", refresh=False)
            if recipe.checkpoint_steps and done % recipe.checkpoint_steps == 0 and done % steps:
                _last_finite(losses, done, steps, lr)
                _save(run, parts, generator, world, done, skipped)
        _last_finite(losses, done, steps, optimizer.param_groups[0]["lr"])
        world.share_buffers(model)
        targets_, probabilities = predict(model, data.val, recipe, world, multi_label=data.multi_label)
        scores = classification_metrics(targets_, probabilities) | {"loss": cross_entropy(targets_, probabilities)}
        entry = {"step": done, "epoch": done / steps, **{f"val_{name}": value for name, value in scores.items()}}
        left_out = sum(world.gather(skipped))
        run.log({**entry, "files_skipped": left_out} if left_out else entry)
        skipped = 0
        mask = None if hook is None else hook.augmentation
        # A comparison's page shows what save_seen draws, at a tenth of the time.
        alone, figures = "arm" not in run.record["data"], run.folder / "figures"
        if run.writes and mask is not None and alone and epoch in (0, noisy_epochs // 2, noisy_epochs - 1):
            moment = "3-end" if epoch == noisy_epochs - 1 else "2-middle" if epoch else "1-start"
            mask_gallery(figures / f"gallery-{moment}.png", mask, data, recipe, world, f"{name}, epoch {epoch + 1}")
        if run.writes and epoch == noisy_epochs - 1:
            save_seen(figures / "seen.png", mask, extra, data, recipe, world)
        run.save(f"weights-{epoch + 1:04d}.pt", {"model": model.state_dict()})
        _save(run, parts, generator, world, done, skipped)
        if run.writes:
            old = run.checkpoints / f"weights-{epoch + 1 - recipe.keep_checkpoints:04d}.pt"
            old.unlink(missing_ok=True)
    bar.close()
    if hook is not None:
        hook.remove()
    if run.writes:
        metadata = {"stage": stage, "data": data.name, "classes": list(data.class_names), "ancestry": list(ancestry)}
        metadata["fingerprint"] = run.record["data"].get("fingerprint")
        save_heated(model, run.folder / "model.safetensors", {**metadata, "recipe": run.record["recipe"]})
    world.barrier()
    return model


def _last_finite(losses: list[Tensor], done: int, steps: int, lr: float) -> float:
    """The last loss. Raises if any loss since the last call is not finite."""
    if not losses:
        return math.nan
    values = torch.stack(losses).tolist()
    losses.clear()
    for step, value in enumerate(values, start=done - len(values) + 1):
        if not math.isfinite(value):
            raise ValueError(
                f"training diverged: the loss at step {step} (epoch {(step - 1) // steps + 1}, lr {lr:g}) is {value}; "
                "try a lower lr in another --output"
            )
    return values[-1]


def _optimizer(model: nn.Module, recipe: TrainRecipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: TrainRecipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule. It is stepped after every training step, whatever the schedule's unit."""
    schedulers = torch.optim.lr_scheduler
    if recipe.schedule == "onecycle":
        return schedulers.OneCycleLR(optimizer, recipe.lr, total_steps=max(2, steps * recipe.epochs))
    if recipe.schedule == "step":
        return schedulers.StepLR(optimizer, 30 * steps, 0.1)
    # The paper's warm-up moves once an epoch.
    return schedulers.LambdaLR(
        optimizer, lambda step: 0.01 + 0.99 * min(1.0, (step // steps) / max(1, recipe.warmup_epochs))
    )


# -- checkpoints -------------------------------------------------------------------------------------------------------


def _save(run: Run, parts: dict[str, Any], generator: torch.Generator, world: World, step: int, skipped: int) -> None:
    """Save everything the next step depends on, from all processes. The optimizer's state contains the policy."""
    own = {"mask": generator.get_state(), "cpu": torch.get_rng_state(), "skipped": skipped}
    if world.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(world.device)
    ranks = world.gather(own)
    run.save("last.pt", {"step": step, "ranks": ranks, **{name: part.state_dict() for name, part in parts.items()}})


def _restore(run: Run, parts: dict[str, Any], generator: torch.Generator, world: World) -> tuple[int, int]:
    """Load the last checkpoint, if any. Returns the steps taken and the files left out in its epoch."""
    path = run.checkpoints / "last.pt"
    if not path.is_file():
        run.rewind(0)
        return 0, 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken zip archive or pickle: each has errors of its own
        raise ValueError(
            f"{path} is damaged and cannot be resumed from ({error}); delete it to start this run from the beginning"
        ) from error
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
