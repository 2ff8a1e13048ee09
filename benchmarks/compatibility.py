"""Write the compatibility page from the results of the integration tests.

It runs tests/integrations, reads pytest's report, and writes benchmarks/COMPATIBILITY.md with the installed versions.
If a test fails, its cell says so and the script ends with an error.

Usage: python -m benchmarks.compatibility [--losses]
"""

import argparse
import datetime
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "COMPATIBILITY.md"

FRAMEWORKS = {
    "timm": ("timm tasks", ("timm",), 'hook = policy_noise.attach(task, optimizer, preset="learned")', "timm_task.py"),
    "lightning": (
        "Lightning",
        ("lightning",),
        'Trainer(callbacks=[PolicyNoiseCallback("model", "criterion")])',
        "lightning_callback.py",
    ),
    "transformers": (
        "transformers Trainer",
        ("transformers",),
        "Trainer(..., callbacks=[PolicyNoiseCallback()])",
        "transformers_trainer.py",
    ),
    "accelerate": (
        "accelerate",
        ("accelerate",),
        "hook = policy_noise.attach(model, optimizer, criterion)",
        "accelerate_loop.py",
    ),
    "monai": (
        "MONAI, ignite",
        ("monai", "pytorch-ignite"),
        "SupervisedTrainer(..., train_handlers=[PolicyNoiseHandler()])",
        "monai_volumes.py",
    ),
    "fastai": (
        "fastai",
        ("fastai",),
        "policy_noise.attach(learner.model, None)",
        "fastai_learner.py",
    ),
    "distributed": (
        "DDP, FSDP2",
        ("torch",),
        "hook = policy_noise.attach(model, optimizer, criterion)",
        "distributed.py",
    ),
}
OPTIMIZERS = {
    "sgd": "torch SGD",
    "adamw": "torch AdamW",
    "adamw_fused": "torch AdamW, fused",
    "lbfgs": "torch LBFGS, closure",
    "lookahead": "timm Lookahead(AdamW)",
    "adahessian": "timm Adahessian, second backward",
    "adamw_schedulefree": "schedulefree AdamW",
    "schedulefree_wrapper": "schedulefree wrapper (SGD)",
    "sam": "pytorch_optimizer SAM, closure",
}
VERSIONS = ("torch", "timm", "kornia", "schedulefree", "pytorch_optimizer", "lightning", "transformers", "accelerate")
VERSIONS += ("monai", "pytorch-ignite", "fastai", "pytorch-metric-learning", "segmentation-models-pytorch")
REFUSED = "refused, and the error names the remedy: `hook.observe`, or another `loss_method`"

LOSSES = (
    "All losses of these libraries that can be made with their defaults. Either the losses of the samples give the "
    "loss of the batch (*exact*), and the criterion's state and the random generators are those of a loop without the "
    "hook, or the loss is refused. *bf16*: the losses of a loop in autocast are those of the same inputs in fp32. "
    "*Sum of calls*: a loop trains on `loss(output) + 0.4 * loss(output)`, and the reward is this sum."
)

Outcomes = dict[str, list[tuple[str, bool]]]


def installed(package: str) -> str:
    """A package's version. The tests of a missing package are skipped."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def run_tests(report: Path) -> Outcomes:
    """Run the integration tests. Returns the (test, passed) of each module, without skipped tests."""
    command = [sys.executable, "-m", "pytest", "tests/integrations", f"--junitxml={report}", "-p", "no:cacheprovider"]
    subprocess.run(command, cwd=ROOT, check=False)
    outcomes: Outcomes = defaultdict(list)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            continue
        module = case.attrib["classname"].rsplit("test_", 1)[-1]
        outcomes[module].append((case.attrib["name"], len(case.findall("*[@message]")) == 0))
    return outcomes


def count(results: list[tuple[str, bool]]) -> str:
    passed = sum(ok for _, ok in results)
    return f"{passed} of {len(results)}" if results else "not run"


def framework_table(outcomes: Outcomes) -> list[str]:
    lines = [
        "| framework | lines to add | tested version | tests passed | example |",
        "| --- | --- | --- | --- | --- |",
    ]
    for module, (name, packages, line, example) in FRAMEWORKS.items():
        versions = ", ".join(installed(package) for package in packages)
        link = f"[{example}](../examples/integrations/{example})"
        lines.append(f"| {name} | `{line}` | {versions} | {count(outcomes[module])} | {link} |")
    return lines


def matrix_table(results: list[tuple[str, bool]]) -> list[str]:
    """Table of optimizers against precision and network. A cell counts its runs, with and without accumulation."""
    cells: dict[tuple[str, str], list[tuple[str, bool]]] = defaultdict(list)
    columns: list[str] = []
    for name, passed in results:
        precision, network, optimizer, *rest = re.search(r"\[(.*)\]", name)[1].split("-")  # type: ignore[index]
        if network in ("checkpointed_call", "compiled") or any(part.startswith("ema") for part in rest):
            continue
        column = f"{network.replace('_', ' ')}, {precision}"
        columns += [] if column in columns else [column]
        cells[optimizer, column].append((name, passed))
    columns.sort(key=lambda column: column.split(", ")[::-1], reverse=True)  # fp32 and plain first
    lines = ["| optimizer | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for optimizer, title in OPTIMIZERS.items():
        row = [count(cells[optimizer, column]) if cells[optimizer, column] else "-" for column in columns]
        lines.append(f"| {title} | " + " | ".join(row) + " |")
    return lines


def other_combinations(results: list[tuple[str, bool]]) -> list[str]:
    lines = ["| combination | outcome |", "| --- | --- |"]
    for name, passed in results:
        combination = re.search(r"\[(.*)\]", name)[1]  # type: ignore[index]
        if "ema_" in combination or "checkpointed_call" in combination or "compiled" in combination:
            text = combination.replace("ema_timm", "timm ModelEmaV3").replace("ema_torch", "torch AveragedModel")
            lines.append(f"| {text.replace('_', ' ').replace('-', ', ')} | {'passed' if passed else 'FAILED'} |")
    return lines


def criteria_table() -> list[str]:
    """How the losses of the samples are computed for each library, by tests/integrations/criteria.py."""
    sys.path.insert(0, str(ROOT / "tests" / "integrations"))
    import criteria

    lines = [
        "| library | losses | how the losses of the samples are computed | fp32 | bf16 | sum of calls |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for library in criteria.LIBRARIES:
        if installed(library) == "not installed":
            lines.append(f"| {library} | not installed | - | - | - | - |")
            continue
        ways: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name, way, *outcomes in criteria.table(library):
            ways[(REFUSED if way == "refused" else way, *outcomes)].append(name)
        lines += [f"| {library} | {', '.join(names)} | {' | '.join(cells)} |" for cells, names in ways.items()]
    return lines


def all_tests(outcomes: Outcomes) -> list[str]:
    lines = ["| what was checked | runs passed |", "| --- | --- |"]
    for module, results in outcomes.items():
        if module in ("matrix", "criteria"):
            continue
        tests: dict[str, list[tuple[str, bool]]] = defaultdict(list)
        for name, passed in results:
            tests[name.split("[")[0]].append((name, passed))
        for test, runs in tests.items():
            lines.append(f"| {module}: {test.removeprefix('test_').replace('_', ' ')} | {count(runs)} |")
    return lines


def page(outcomes: Outcomes) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    versions = ", ".join(f"{name} {installed(name)}" for name in VERSIONS)
    total = [result for results in outcomes.values() for result in results]
    sections = [
        "# Compatibility",
        "Written by `python -m benchmarks.compatibility` from the outcome of the tests under `tests/integrations`; "
        "nothing on this page is edited by hand.",
        f"{datetime.date.today()}, {device}, Python {platform.python_version()}, {versions}. "
        f"Tests passed: {count(total)}.",
        "## Frameworks",
        "Each framework trains with the installed library. The tests check that the policy learned, that validation "
        "saw no mask, and that a resumed run ended where the uninterrupted one did.",
        "\n".join(framework_table(outcomes)),
        "## Precisions, networks and optimizers",
        "fp16 is autocast with GradScaler, bf16 is autocast alone. Each run checks that the policy learned, that the "
        "loss equals that of the network without a hook on the same masked images, that evaluation is not masked, and "
        "that a run that was stopped and resumed ends bit for bit like the uninterrupted one. Runs have one or two "
        "microbatches per step. A sample of the combinations is run. A dash is one that is not run, or does not work "
        "without the package either (closures with GradScaler; optimizers that flatten gradients with channels_last).",
        "\n".join(matrix_table(outcomes["matrix"])),
        "## EMA, compiled networks, checkpointing",
        "\n".join(other_combinations(outcomes["matrix"])),
        "## Losses",
        LOSSES,
        "\n".join(criteria_table()),
        "## Everything else",
        "\n".join(all_tests(outcomes)),
        "## The reward with mixed targets or several views",
        "- Mixup and CutMix come before the model. The mixed image is masked, and the reward is the loss on the mixed "
        "targets.\n"
        "- AugMix with the Jensen-Shannon loss: every view gets its own mask, and each is rewarded with the whole loss "
        "of its image. Forward hooks do not run on timm's JsdCrossEntropy. In a timm task it works; in your own loop "
        "call `hook.observe(policy_noise.losses.per_sample_loss(criterion, output, target))`.\n"
        "- Distillation: the teacher sees the masked image, and the reward is the loss on the targets.\n"
        "- Segmentation: only images are masked. The reward is a sample's mean over its pixels, or its own overlap. "
        "Losses that sum over the batch before they divide (MONAI's `batch=True`) are computed for each sample alone.",
        "## Limits",
        "- Activation checkpointing of the hooked call itself needs `use_reentrant=False`. Blocks inside the model can "
        "be checkpointed either way.\n"
        "- Closures that are evaluated several times per step (LBFGS, SAM) draw new masks each time. So their line "
        "search and their second gradient see a noisy loss.\n"
        "- A forward pass whose loss comes after the next step (prefetching) is masked, but not learned from.\n"
        "- Ranks must be data parallel: tensor-parallel ranks would get different masks.\n"
        "- Strategies that gather the optimizer's state (FSDP, DeepSpeed) drop the policy from it. There, pass "
        "`state_in_optimizer=False` and save `hook.state_dict()`. The Lightning and transformers callbacks do this "
        "themselves.",
    ]
    return "\n\n".join(sections) + "\n"


def write_losses() -> None:
    """Renew the page's table of losses alone."""
    text = PAGE.read_text()
    start, end = text.index("## Losses\n"), text.index("## Everything else\n")
    table = "\n".join(criteria_table())
    PAGE.write_text(f"{text[:start]}## Losses\n\n{LOSSES}\n\n{table}\n\n{text[end:]}")
    print(f"wrote the table of losses in {PAGE.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", action="store_true", help="renew the table of losses alone, without any test")
    if parser.parse_args().losses:
        write_losses()
        return
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_tests(Path(folder) / "report.xml")
    PAGE.write_text(page(outcomes))
    print(f"wrote {PAGE.relative_to(ROOT)}")
    if not all(passed for results in outcomes.values() for _, passed in results):
        sys.exit("some tests failed: see the page")


if __name__ == "__main__":
    main()
