"""Precisions, models and optimizers that a loop is made of, in pairs, each in a few steps of a tiny network.

Each run is checked for four things: the policy moved; the loss is the unhooked network's on the same masked images;
evaluation (and an EMA copy) saw no mask; and a run stopped half-way and resumed ends bit for bit where the
uninterrupted one does.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import schedulefree
import torch
from pytorch_optimizer import SAM
from timm.optim import Adahessian, Lookahead
from timm.utils import ModelEmaV3
from tiny import (
    DEVICE,
    SETTINGS,
    TinyNet,
    Watch,
    assert_clean,
    assert_masked,
    parameters_equal,
    policy_vector,
    tiny_data,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import policy_noise

IMAGES, TARGETS = (tensor.to(DEVICE) for tensor in tiny_data().tensors)
STEPS, BATCH = 4, 8


@dataclass(frozen=True)
class Combination:
    """One training loop.

    Args:
        precision: ``"fp32"``, ``"bf16"`` (autocast) or ``"fp16"`` (autocast and GradScaler).
        network: ``"plain"``, ``"channels_last"``, ``"checkpointed_blocks"``, ``"checkpointed_call"`` or
            ``"compiled"``.
        optimizer: A name of OPTIMIZERS.
        accumulate: Microbatches a step.
        ema: ``""``, ``"timm"`` or ``"torch"``.
    """

    precision: str = "fp32"
    network: str = "plain"
    optimizer: str = "adamw"
    accumulate: int = 1
    ema: str = ""

    def __str__(self) -> str:
        parts = [self.precision, self.network, self.optimizer, f"accumulate{self.accumulate}", f"ema_{self.ema}"]
        return "-".join(part for part in parts if part not in ("accumulate1", "ema_"))


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    "adamw_fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "lookahead": lambda parameters: Lookahead(torch.optim.AdamW(parameters, lr=1e-2), k=2),
    "adamw_schedulefree": lambda parameters: schedulefree.AdamWScheduleFree(parameters, lr=1e-2),
    "schedulefree_wrapper": lambda parameters: schedulefree.ScheduleFreeWrapper(torch.optim.SGD(parameters, lr=0.05)),
    "sam": lambda parameters: SAM(parameters, torch.optim.SGD, lr=0.05, momentum=0.9),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3),
    "adahessian": lambda parameters: Adahessian(parameters, lr=1e-2, hessian_power=0.5),
}
CLOSURES = ("sam", "lbfgs")


def combinations() -> list[Combination]:
    """What users have: all optimizers in all precisions that they support.

    Networks and accumulation take turns, so that each meets every optimizer and every precision.
    """
    found = []
    networks = ("plain", "channels_last", "checkpointed_blocks")
    for row, precision in enumerate(("fp32", "bf16", "fp16")):
        for column, optimizer in enumerate(OPTIMIZERS):
            if precision == "fp16" and optimizer in CLOSURES:
                continue  # the scaler takes no closures
            network = networks[(row + column) % 3]
            if network == "channels_last" and optimizer in ("lbfgs", "schedulefree_wrapper"):
                network = "plain"  # they flatten gradients as contiguous memory, with and without the plug-in
            accumulate = 1 if optimizer in CLOSURES else 1 + (row + column // 3) % 2
            found.append(Combination(precision, network, optimizer, accumulate))
    ema = [Combination(ema=ema, optimizer=name) for ema in ("timm", "torch") for name in ("sgd", "lookahead")]
    call = [Combination("fp32", "checkpointed_call", accumulate=n) for n in (1, 2)]
    compiled = [Combination(precision, "compiled", name) for precision in ("fp32", "bf16") for name in ("sgd", "adamw")]
    return [*found, *ema, *call, *compiled]


class CheckpointedNet(TinyNet):
    def forward(self, x):
        for block in (self.block1, self.block2):
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x.flatten(2).mean(-1))


SEED = 300
"""Of the draws: with some, Adahessian's second derivatives leave half precision's range, mask or no mask."""


@dataclass
class Loop:
    """A user's loop with the one added line."""

    combination: Combination
    losses: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        kind = self.combination
        torch.manual_seed(0)
        self.network = CheckpointedNet() if kind.network == "checkpointed_blocks" else TinyNet()
        self.layout = torch.channels_last if kind.network == "channels_last" else torch.contiguous_format
        self.network.to(DEVICE, memory_format=self.layout)
        self.model: Any = self.network
        if kind.network == "compiled":
            self.model = torch.compile(self.network, backend="eager")
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = OPTIMIZERS[kind.optimizer](self.network.parameters())
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()  # schedule-free
        # A scale at which no step overflows. Overflows are tested elsewhere.
        self.scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8, enabled=kind.precision == "fp16")
        self.hook = policy_noise.attach(self.model, self.optimizer, self.criterion, **SETTINGS)
        # Registered after the hook, to see what it passed to the network and the criterion's loss.
        self.criterion.register_forward_hook(self._compare)
        self.ema: Any = {"timm": ModelEmaV3, "torch": AveragedModel}.get(kind.ema, lambda network: None)(self.network)

    def autocast(self) -> Any:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.combination.precision)
        return torch.autocast(DEVICE, dtype=dtype) if dtype else nullcontext()

    def _compare(self, criterion: nn.Module, args: Any, loss: torch.Tensor) -> None:
        """The loss of an unhooked copy of the network, on the images under the masks that the hook drew."""
        seen = self.hook._queue.scored[-1]
        sample, losses = seen.sample, seen.terms[-1][0].losses.values
        with torch.random.fork_rng(), torch.no_grad(), self.autocast():
            masked = self.hook.augmentation(self.images, sample)
            expected = nn.functional.cross_entropy(self.twin(masked), args[1])
        self.losses += [(loss.item(), expected.item()), (losses.mean().item(), expected.item())]

    def backward(self, rows: slice) -> torch.Tensor:
        self.images = IMAGES[rows].contiguous(memory_format=self.layout)
        # A forward before this one has moved BatchNorm's statistics, which training mode does not use.
        self.twin = copy.deepcopy(self.network)
        with self.autocast():
            if self.combination.network == "checkpointed_call":
                output = checkpoint(self.model, self.images, use_reentrant=False)
            else:
                output = self.model(self.images)
            loss = self.criterion(output, TARGETS[rows])
        second = getattr(self.optimizer, "is_second_order", False)
        self.scaler.scale(loss / self.combination.accumulate).backward(create_graph=second)
        return loss

    def train(self, first: int, last: int) -> None:
        self.model.train()
        for step in range(first, last):
            torch.manual_seed(SEED + step)
            if self.combination.optimizer == "adahessian":
                self.optimizer.generator.manual_seed(SEED + step)  # its state dict does not hold it
            rows = slice(BATCH * step, BATCH * (step + 1))
            if self.combination.optimizer in CLOSURES:

                def closure(rows=rows):
                    self.optimizer.zero_grad()
                    return self.backward(rows)

                if self.combination.optimizer == "sam":
                    closure()
                self.optimizer.step(closure)
            else:
                for part in torch.arange(rows.start, rows.stop).chunk(self.combination.accumulate):
                    self.backward(slice(int(part[0]), int(part[-1]) + 1))
                self.scaler.step(self.optimizer)
                self.scaler.update()
            self.optimizer.zero_grad()
            if self.ema is not None:
                (self.ema.update if self.combination.ema == "timm" else self.ema.update_parameters)(self.network)

    def state(self) -> dict[str, Any]:
        parts = {"network": self.network, "optimizer": self.optimizer, "scaler": self.scaler}
        return copy.deepcopy({name: part.state_dict() for name, part in parts.items()})

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("combination", combinations(), ids=str)
def test_combination(combination, tmp_path):
    loop = Loop(combination)
    watch = Watch(loop.network.block1)
    before = policy_vector(loop.hook)
    loop.train(0, STEPS // 2)
    torch.save(loop.state(), tmp_path / "half.pt")
    loop.train(STEPS // 2, STEPS)

    # The policy moved, by every sample.
    assert not torch.equal(before, policy_vector(loop.hook))
    assert policy_vector(loop.hook).isfinite().all()
    evaluations = {"sam": 2, "lbfgs": 3}.get(combination.optimizer, 1)
    assert loop.hook.metrics["samples_seen"] == STEPS * BATCH * evaluations
    assert loop.hook.metrics["samples_dropped"] == 0
    assert loop.hook._draws.steps == STEPS

    # The loss is the unhooked network's on the same sample.
    hooked, unhooked = torch.tensor(loop.losses).T
    tolerance = 1e-5 if combination.precision == "fp32" else 2e-2
    torch.testing.assert_close(hooked, unhooked, rtol=tolerance, atol=tolerance)

    # Evaluation is clean, and so are copies.
    if combination.network != "compiled":  # there the recorder would see what Dynamo traces
        assert_masked(watch.training, IMAGES)
        loop.model.eval()
        with torch.no_grad():
            loop.model(IMAGES)
        assert_clean(watch.validation, IMAGES)
    loop.model.eval()
    torch.testing.assert_close(loop.model(IMAGES), copy.deepcopy(loop.network)(IMAGES))
    if loop.ema is not None:
        loop.ema.train()
        torch.testing.assert_close(loop.ema.module(IMAGES), loop.ema.module(IMAGES), rtol=0, atol=0)

    # Resumed equals uninterrupted.
    resumed = Loop(replace(combination, ema=""))
    resumed.load(torch.load(tmp_path / "half.pt", weights_only=True))
    resumed.train(STEPS // 2, STEPS)
    assert parameters_equal(loop.network, resumed.network)
    assert torch.equal(policy_vector(loop.hook), policy_vector(resumed.hook))
    assert loop.hook.metrics == resumed.hook.metrics
