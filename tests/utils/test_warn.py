"""Each warning names the user's line, however deep in torch or a framework it comes up."""

import ast
import copy
import functools
import gc
import pathlib
import runpy
import time
import unittest.mock
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import policy_noise
from policy_noise import attach
from policy_noise.utils.warn import warn

ROOT = pathlib.Path(policy_noise.__file__).parent
HERE = pathlib.Path(__file__).name
IMAGES, TARGETS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2


def parts(**settings):
    model, criterion = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 2)), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, criterion, optimizer, attach(model, optimizer, criterion, **{"p": 1.0, "grid_size": 2, **settings})


def train(model, criterion, optimizer, steps=6):
    for _ in range(steps):
        criterion(model(IMAGES), TARGETS).backward()
        optimizer.step()


def eval_mode():
    model, criterion, optimizer, _ = parts()
    train(model.eval(), criterion, optimizer)


def a_copy_is_trained():
    model, criterion, *_ = parts()
    trained = copy.deepcopy(model)
    train(trained, criterion, torch.optim.SGD(trained.parameters(), lr=0.1))


def another_optimizer():
    model, criterion, optimizer, _ = parts()
    train(model, criterion, torch.optim.SGD(model.parameters(), lr=0.1))
    return optimizer


def foreign_parameters():
    attach(parts()[0], torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), nn.CrossEntropyLoss(), replace=True)


def a_loaded_optimizer():
    model = nn.Conv2d(3, 2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(IMAGES).sum().backward()
    optimizer.step()
    attach(model, optimizer, nn.CrossEntropyLoss())


def torch_func():
    model, criterion, *_ = parts()
    weights = dict(model.named_parameters())
    torch.func.grad(lambda w: criterion(torch.func.functional_call(model, w, (IMAGES,)), TARGETS))(weights)


def a_state_without_a_policy():
    _, _, optimizer, _ = parts()
    state = optimizer.state_dict()
    del state["policy_noise"]
    optimizer.load_state_dict(state)


def a_second_hook():
    model, criterion, *_ = parts()
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion)


def a_forward_without_a_loss():
    model, criterion, optimizer, _ = parts(max_pending=2)
    train(model, criterion, optimizer, steps=1)
    for _ in range(3):
        model(IMAGES)


def a_wrong_black():
    model, *_ = parts(mean=0.5, std=0.1)
    model(IMAGES)


def black_far_away():
    model, *_ = parts(black=-1000.0)
    model(IMAGES)


def several_inputs():
    model = nn.Bilinear(8, 8, 2)
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1), preset="random", in_chans=3)
    model(IMAGES, IMAGES)


def no_step():
    model, criterion, *_ = parts()
    for _ in range(257):
        criterion(model(IMAGES), TARGETS)


def a_loss_of_nan():
    model, criterion, optimizer, _ = parts()
    criterion(model(IMAGES * torch.nan), TARGETS).backward()
    optimizer.step()


def labels_that_are_all_ignored():
    model, criterion, optimizer, _ = parts()
    for _ in range(5):
        criterion(model(IMAGES), torch.full_like(TARGETS, -100)).backward()
        optimizer.step()


def a_climbing_rate():
    model, criterion, optimizer, _ = parts()
    for rate in (0.1, 0.2):
        optimizer.param_groups[0]["lr"] = rate
        train(model, criterion, optimizer, steps=1)


class Loss(nn.Module):
    """A criterion that does something besides, in each call."""

    def __init__(self, besides=None):
        super().__init__()
        self.besides = besides

    def forward(self, output, target):
        if self.besides is not None:
            self.besides(output)
        return nn.functional.cross_entropy(output, target)


def with_criterion(criterion, steps=1):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, criterion):
        train(model, criterion, optimizer, steps)


LOG = []


def a_criterion_that_logs():
    with_criterion(Loss(lambda output: LOG.append(len(output))))


def a_criterion_that_holds_an_iterator():
    criterion = Loss()
    criterion.batches = iter([IMAGES])
    criterion.more = (image for image in IMAGES)
    with_criterion(criterion)


def a_large_memory():
    criterion = Loss()
    criterion.register_buffer("bank", torch.zeros(2**23))
    with_criterion(criterion)


def a_slow_criterion():
    with unittest.mock.patch("policy_noise.losses._splitter.NOTICEABLE", 0.05):
        with_criterion(Loss(lambda output: time.sleep(0.02) if float(output.sum()) else None), steps=6)


def a_loss_that_nobody_sees():
    model, _, optimizer, _ = parts()
    nn.functional.cross_entropy(model(IMAGES), TARGETS).backward()
    optimizer.step()


def a_penalty_besides_the_criterion():
    model, criterion, optimizer, _ = parts()
    output = model(IMAGES)
    (criterion(output, TARGETS) + output.square().sum()).backward()
    optimizer.step()


def a_function_of_the_losses():
    model, criterion = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), nn.CrossEntropyLoss(reduction="none")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, criterion, in_chans=3)
    (1 - (-criterion(model(IMAGES), TARGETS)).exp()).mean().backward()
    optimizer.step()


def a_loss_without_a_backward_pass():
    model, criterion, optimizer, _ = parts()
    criterion(model(IMAGES), TARGETS)
    optimizer.step()


TRIGGERS = [
    a_loss_that_nobody_sees,
    a_penalty_besides_the_criterion,
    a_function_of_the_losses,
    a_loss_without_a_backward_pass,
    a_criterion_that_logs,
    a_criterion_that_holds_an_iterator,
    a_large_memory,
    a_slow_criterion,
    eval_mode,
    a_copy_is_trained,
    another_optimizer,
    foreign_parameters,
    a_loaded_optimizer,
    torch_func,
    a_state_without_a_policy,
    a_second_hook,
    a_forward_without_a_loss,
    a_wrong_black,
    black_far_away,
    several_inputs,
    no_step,
    a_loss_of_nan,
    labels_that_are_all_ignored,
    a_climbing_rate,
]


@functools.cache
def warnings_of(trigger):
    gc.collect()  # hooks of earlier tests watch all optimizers until they are collected
    gc.freeze()  # what is left stays, and the next collection is quick
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        trigger()
    return [warning for warning in record if str(warning.message).startswith("policy_noise: ")]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_warning_names_the_line_of_the_loop(trigger):
    found = warnings_of(trigger)
    assert found
    assert {pathlib.Path(warning.filename).name for warning in found} == {HERE}
    assert {warning.category for warning in found} == {UserWarning}


def calls_in(path):
    """The text of each call of ``warn`` or ``say`` in a file: its literal parts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("warn", "say"):
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            yield [text for text in texts if len(str(text).split()) > 2]


def core():
    skipped = {"experiments", "integrations"}  # these need their frameworks: tested there
    return [path for path in ROOT.rglob("*.py") if not skipped & set(path.parts)]


def test_every_warning_of_the_core_is_triggered_here():
    said = " ".join(str(warning.message) for trigger in TRIGGERS for warning in warnings_of(trigger))
    silent = [text for path in core() for text in calls_in(path) if text and not any(part in said for part in text)]
    assert not silent


def test_every_warning_goes_through_the_helper():
    found = [
        path.name
        for path in ROOT.rglob("*.py")
        if "experiments" not in path.parts and "warnings.warn" in path.read_text(encoding="utf-8")
    ]
    assert found == ["warn.py"]


def test_a_script_that_is_installed_is_named_itself(tmp_path):
    """Then all frames are of libraries, and the first one beyond this package and torch counts."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    script = folder / "script.py"
    script.write_text("from policy_noise.utils.warn import warn\nwarn('read me')\n")
    with pytest.warns(UserWarning, match="policy_noise: read me") as said:
        ThreadPoolExecutor(1).submit(runpy.run_path, str(script)).result()  # a stack without a frame of the tests
    assert [(warning.filename, warning.lineno) for warning in said] == [(str(script), 2)]


def test_a_warning_is_shown_once_for_a_line_as_pythons_are():
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("default")
        for _ in range(3):
            warn("again")
    assert len(record) == 1
