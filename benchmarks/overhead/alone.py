"""Measurements of the mask alone: its rendering, checks on a GPU, and an input pipeline."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import kornia
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import policy_noise
import policy_noise.functional as PF
from benchmarks.overhead.clock import synchronize, timed
from benchmarks.overhead.suites import MEAN, STD, Configuration
from benchmarks.overhead.variants import Variant, dense_blur, make_batch


def rendering(configuration: Configuration, device: torch.device) -> dict[str, float]:
    """Seconds of the rendering, of one elementwise multiply, and of the blurs that the rendering replaces."""
    images, _ = make_batch(configuration, device)
    size = images.shape[2:]
    mask = policy_noise.PolicyNoiseMask(mean=MEAN, std=STD).to(device)
    sample = mask.sample(images).detach()
    fine = torch.rand(configuration.batch, 1, 64, 64, device=device) if min(size) >= 64 else sample.action
    factor = torch.rand(configuration.batch, 1, *size, device=device)
    return {
        "elementwise multiply": timed(lambda: images * factor),
        "default: render, scale and apply": timed(lambda: mask(images, sample)),
        "paper: render and apply": timed(lambda: PF.noise_mask(images, fine, kernel_size=13, sigma=6.0)),
        "matrix products, mask alone": timed(lambda: PF.render_mask(fine, size, 13, 6.0)),
        "Kornia's separable blur, mask alone": timed(lambda: kornia_mask(fine, size, 13, 6.0)),
        "dense blur, mask alone": timed(lambda: dense_blur(F.interpolate(fine, size, mode="nearest"))),
    }


def kornia_mask(action: Tensor, size: torch.Size, kernel_size: int, sigma: float) -> Tensor:
    """What the matrix products replace."""
    enlarged = F.interpolate(action, size, mode="nearest")
    return kornia.filters.gaussian_blur2d(enlarged, (kernel_size,) * 2, (sigma,) * 2, border_type="reflect")


@contextmanager
def sync_debug_mode(mode: str) -> Iterator[None]:
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_no_synchronisation(variant: Variant, configuration: Configuration, device: torch.device) -> str:
    if configuration.precision == "fp16":
        return "not checked: GradScaler itself waits for the device"
    with sync_debug_mode("error"):
        variant.step()
    return "passed"


def check_graph(configuration: Configuration, device: torch.device) -> str:
    images, _ = make_batch(configuration, device)
    mask = policy_noise.PolicyNoiseMask(mean=MEAN, std=STD).to(device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            mask(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masked = mask(images)
    graph.replay()
    first = masked.clone()
    graph.replay()
    if torch.equal(first, masked) or not bool(torch.isfinite(masked).all()):
        return "failed: two replays drew the same masks, or none that are finite"
    return "passed"


def measure_pipeline(device: torch.device, seconds: float = 3.0) -> dict[str, float]:
    """Images per second of an input pipeline: bytes from memory, normalized, flipped and masked on the device."""
    images = torch.randint(256, (2048, 3, 64, 64), dtype=torch.uint8)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=128, shuffle=True)
    normalize = nn.Sequential(
        kornia.enhance.Normalize(torch.tensor(MEAN), torch.tensor(STD)), kornia.augmentation.RandomHorizontalFlip()
    ).to(device)
    mask = policy_noise.PolicyNoiseMask(mean=MEAN, std=STD).to(device)
    erasing = kornia.augmentation.RandomErasing(p=0.25)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "without a mask": lambda x: x,
        "with the default mask": mask,
        "with Kornia's RandomErasing": erasing,
    }
    rates = {}
    with torch.no_grad():
        for name, augment in ways.items():
            for warm in (True, False):
                seen, start = 0, time.perf_counter()
                while time.perf_counter() - start < (0.5 if warm else seconds):
                    for (batch,) in loader:
                        augment(normalize(batch.to(device, non_blocking=True).float() / 255))
                        seen += len(batch)
                    synchronize(device)
                rates[name] = seen / (time.perf_counter() - start)
    return rates
