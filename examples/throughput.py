"""Measure the speed of the parts of the paper's training on this machine, and estimate 90 epochs of RadImageNet.

It measures reading (decoding grayscale 224-px PNG files in one process), augmentation (with Kornia on the device, and
with torchvision on one CPU core), a training step, and the memory of an index of 1.35 million files. All data are
synthetic:

    python examples/throughput.py --model resnet50
"""

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

import policy_noise
from policy_noise.experiments import file_sets, tables
from policy_noise.experiments.batches import augment
from policy_noise.experiments.images import Reading
from policy_noise.experiments.recipes import RECIPES, override
from policy_noise.experiments.runs import environment
from policy_noise.experiments.training import create_model
from policy_noise.experiments.world import World

IMAGES, CLASSES, EPOCHS = 1_350_000, 165, 90


def rate(work: Callable[[], object], images: int, seconds: float, device: torch.device) -> float:
    """Images per second, after one warm-up call."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    work()
    wait()
    start, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - start < seconds:
        work()
        calls += 1
        wait()
    return images * calls / (time.perf_counter() - start)


def reading(folder: Path, size: int, seconds: float) -> float:
    """Images per second of one reading process. Images are smoothed noise, which compresses about as well as a scan."""
    rng = np.random.default_rng(0)
    for index in range(32):
        coarse = Image.fromarray(rng.integers(0, 256, (56, 56), np.uint8))
        coarse.resize((224, 224), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.png")
    names = np.array([f"{index:02d}.png".encode() for index in range(32)])
    files = file_sets.Files(
        root=str(folder.parent),
        folders=(folder.name,),
        folder=np.zeros(32, np.uint16),
        names=names,
        sizes=np.zeros(32, np.int64),
        reading=Reading(size),
    )
    return rate(lambda: files.read(range(32)), 32, seconds, torch.device("cpu"))


def index_memory(root: Path) -> tuple[float, float, float]:
    """Memory of a full-size index in bytes per image, kept and at the peak, and the seconds it took to make."""
    folders = [f"radiology_ai/MR/anatomy{label % 7}/label{label}" for label in range(CLASSES)]
    for folder in folders:
        (root / folder).mkdir(parents=True)
    shares = {"train": 0.75, "val": 0.1, "test": 0.15}
    for split, share in shares.items():
        with (root / f"RadiologyAI_{split}.csv").open("w") as file:
            file.write("filename,label\n")
            for number in range(int(IMAGES * share)):
                file.write(f"{folders[number % CLASSES]}/{split}-{number:07d}.png,label{number % CLASSES}\n")
    # The files do not exist, which the index would report.
    with mock.patch.object(file_sets, "_sizes", side_effect=lambda files: np.ones(len(files))):
        tracemalloc.start()
        start = time.perf_counter()
        data = tables.load_radimagenet(root, Reading(256))
        seconds = time.perf_counter() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    kept = sum(part.images.nbytes + part.labels.nbytes for part in data.parts.values())
    return kept / IMAGES, peak / IMAGES, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="timm model")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    parser.add_argument("--amp", action="store_true", help="bfloat16")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here, size = World(0, 1, device), arguments.batch_size
    recipe = override(RECIPES["paper"]["pretrain"], [f"model={arguments.model}", f"batch_size={size}"])
    present = torch.ones(size, dtype=torch.bool)
    raw = torch.randint(0, 256, (size, 1, recipe.load_size, recipe.load_size), dtype=torch.uint8)
    on_device = raw.to(device)
    place = environment()
    print(f"{place['processor']}; {place['device']}; {torch.get_num_threads()} torch threads; {place['date']}\n")
    print("| what | images/s |\n|---|---|")

    with tempfile.TemporaryDirectory() as folder:
        read = reading(Path(folder), recipe.load_size, arguments.seconds)
    print(f"| decode and resize PNG, one process | {read:.0f} |")
    transform = v2.Compose([v2.RandomResizedCrop(recipe.image_size, antialias=True), v2.RandomHorizontalFlip()])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a reading process
    single = rate(lambda: [transform(image) for image in raw], size, arguments.seconds, torch.device("cpu"))
    torch.set_num_threads(threads)
    print(f"| augment through torchvision, image by image on one CPU core | {single:.0f} |")
    kornia = rate(lambda: augment(on_device, recipe, 0, here, present), size, arguments.seconds, device)
    print(f"| augment through Kornia, batches on the {device.type} | {kornia:.0f} |")

    model = create_model(recipe, CLASSES).to(device, memory_format=torch.channels_last).train()
    images, targets = augment(on_device, recipe, 0, here, present), torch.randint(CLASSES, (size,), device=device)
    rates = {}
    for noise in ("plain", "learned", "paper"):
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        criterion = torch.nn.CrossEntropyLoss()
        hook = None
        if noise != "plain":
            normal = {"mean": [recipe.mean] * 3, "std": [recipe.std] * 3}
            hook = policy_noise.attach(model, optimizer, criterion, preset=noise, **normal)

        def step(optimizer: torch.optim.Optimizer = optimizer, criterion: torch.nn.Module = criterion) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=arguments.amp):
                output = model(images)
            loss = criterion(output.float(), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        rates[noise] = rate(step, size, arguments.seconds, device)
        print(f"| train {arguments.model}, {noise} | {rates[noise]:.1f} |")
        if hook is not None:
            hook.remove()

    total = IMAGES * 0.75 * EPOCHS
    print(f"\n90 epochs of {IMAGES * 0.75 / 1e6:.2f} M training images are {total / 1e6:.0f} M images:")
    for devices in (1, 8):
        hours = total / (rates["learned"] * devices) / 3600
        need = rates["learned"] * devices / read
        print(f"- {devices} of this device: {hours:.0f} h, if reading keeps up ({need:.2g} processes as above)")
    with tempfile.TemporaryDirectory() as folder:
        kept, peak, seconds = index_memory(Path(folder))
    print(
        f"\nIndex of {IMAGES:,} files: {kept:.1f} bytes an image kept ({kept * IMAGES / 1e6:.0f} MB), {peak:.1f} at "
        f"the peak, {seconds:.0f} s (traced, which slows it)"
    )


if __name__ == "__main__":
    main()
