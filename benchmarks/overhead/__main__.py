"""Command line of the overhead benchmark.

    python -m benchmarks.overhead --suite cpu --threads 2 --deadline 1800
    python -m benchmarks.overhead --suite small --threads 1
    python -m benchmarks.overhead --suite compiled --threads 2
    python -m benchmarks.overhead --suite scaling --threads 2 --deadline 540
    python -m benchmarks.overhead --suite launches --threads 1
    python -m benchmarks.overhead --suite peers --threads 1
    python -m benchmarks.overhead --suite gpu
    python -m benchmarks.overhead --suite quick --models resnet18 --sizes 32 64 --batches 8

Results are written to OUTPUT/SUITE.json and a table (.md) after each configuration, and to a plot (.png) at the end.
``--report FILE.json`` makes table and plot again without measuring. If a configuration fails, its error is recorded and
the others continue.
"""

import argparse
import gc
import json
import math
import os
import platform
import sys
import time
import traceback
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import kornia
import timm
import torch

import policy_noise
from benchmarks.overhead.clock import guarded
from benchmarks.overhead.measure import measure
from benchmarks.overhead.peers import SHAPES, library_versions, measure_peers
from benchmarks.overhead.report import report, to_markdown, write
from benchmarks.overhead.suites import MODELS, PEERS, PRECISIONS, SUITES, Configuration, suite
from benchmarks.overhead.variants import make_variant

RESULTS = Path(__file__).parent / "results"


def describe_machine(device: torch.device) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
        "cpu": cpu,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "kornia": kornia.__version__,
        "policy_noise": policy_noise.__version__,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolution": torch.backends.cudnn.allow_tf32,
        "load_at_start": os.getloadavg()[0],
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=(*SUITES, PEERS), default="quick")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--device", help="default: cuda for the gpu suite, else cpu")
    parser.add_argument("--threads", type=int, help="number of torch's CPU threads")
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), help="instead of the suite's")
    parser.add_argument("--sizes", nargs="+", type=int, help="image sides in pixels, instead of the suite's")
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes, instead of the suite's")
    parser.add_argument("--grids", nargs="+", type=int, help="grid sizes, instead of the presets'")
    parser.add_argument("--precisions", nargs="+", choices=sorted(PRECISIONS), help="instead of the suite's")
    parser.add_argument("--compile", action="store_true", help="compile the models")
    parser.add_argument("--seconds", type=float, help="time for a configuration's repetitions, instead of the suite's")
    parser.add_argument("--deadline", type=float, help="seconds after which no new measurement starts")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="only write table and plot of a results file")
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> list[Configuration]:
    """The suite's configurations with the command line's changes, without duplicates."""
    configurations = suite(options.suite)
    for name, values in (
        ("model", options.models),
        ("size", options.sizes),
        ("batch", options.batches),
        ("grid", options.grids),
        ("precision", options.precisions),
        ("compile", [True] if options.compile else None),
        ("seconds", [options.seconds] if options.seconds else None),
    ):
        if values:
            configurations = [replace(one, **{name: value}) for one in configurations for value in values]
    first: dict[str, Configuration] = {}
    for one in configurations:
        first.setdefault(one.label(), one)
    return list(first.values())


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.report:
        report(json.loads(options.report.read_text()), options.report)
        return
    command = " ".join(["python -m benchmarks.overhead", *(arguments or sys.argv[1:])])
    if options.threads or options.suite == PEERS:
        torch.set_num_threads(options.threads or 1)
    device = torch.device(options.device or ("cuda" if options.suite == "gpu" else "cpu"))
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{options.suite}.json"
    results = {
        "suite": options.suite,
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(device),
        "default_grid": policy_noise.PolicyNoiseMask().grid_size[0],
        "configurations": [],
    }
    start = time.perf_counter()
    if options.suite == PEERS:
        results["libraries"] = library_versions()
        results[PEERS] = {kind: measure_peers(kind, device) for kind in SHAPES}
        results["seconds"] = time.perf_counter() - start
        write(results, path)
        report(results, path)
        return
    until = start + (options.deadline or math.inf)
    if device.type == "cuda":  # permanent workspaces would be counted as memory of the first variant
        first = make_variant("learned", Configuration("resnet10t", 64, 8), device)
        guarded(first.step)
        first.close()
    for configuration in chosen(options):
        if time.perf_counter() > until:
            record = {"label": configuration.label(), "configuration": asdict(configuration)}
            results["configurations"].append({**record, "error": f"left out after {options.deadline:.0f} s"})
            continue
        print(f"{time.perf_counter() - start:6.0f} s  {configuration.label()}", file=sys.stderr, flush=True)
        try:
            record = measure(configuration, device, until)
        except Exception:
            record = {"label": configuration.label(), "configuration": asdict(configuration)}
            record["error"] = traceback.format_exc()
        results["configurations"].append(record)
        write(results, path)
        path.with_suffix(".md").write_text(to_markdown(results))
        gc.collect()
        if device.type == "cuda":
            torch._dynamo.reset()
            torch.cuda.empty_cache()
    if options.suite == "gpu" and time.perf_counter() < until:
        results["libraries"] = library_versions()
        results[PEERS] = {kind: measure_peers(kind, device) for kind in ("batch", "volume")}
    results["seconds"] = time.perf_counter() - start
    write(results, path)
    report(results, path)


if __name__ == "__main__":
    main()
