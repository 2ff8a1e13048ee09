"""The method on one page, against the package."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import policy_noise

PAGE = Path(__file__).parents[1] / "examples/one_page.py"


def test_five_steps_of_the_learned_preset_are_those_of_the_page():
    spec = importlib.util.spec_from_file_location("one_page", PAGE)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)]
    model, criterion = nn.Sequential(*layers), nn.CrossEntropyLoss()
    mine = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, mine)]
    hook = policy_noise.attach(model, optimizers[0], criterion, preset="learned")
    drawn, masked = [], []
    hook.augmentation.register_forward_hook(lambda module, args, output: drawn.append((args[1], output)))
    mine.register_forward_pre_hook(lambda module, args: masked.append(args[0]))

    shade, entropy_coef = page.LearnedShading(), 0.1
    shade.policy.load_state_dict(hook.augmentation.policy.state_dict())
    start = copy.deepcopy(shade.policy.state_dict())
    policy_optimizer = torch.optim.AdamW(shade.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(5):
        images, targets = torch.rand(32, 3, 48, 48), torch.randint(5, (32,))
        criterion(model(images), targets).backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
        sample, output = drawn[-1]
        entropy_coef = page.train_step(
            mine,
            optimizers[1],
            shade,
            policy_optimizer,
            images,
            targets,
            entropy_coef,
            action=sample.action,
            applied=sample.applied,
        )
        torch.testing.assert_close(masked[-1], output, rtol=0, atol=1e-5)
        for name, value in hook.augmentation.policy.state_dict().items():
            torch.testing.assert_close(shade.policy.state_dict()[name], value, rtol=0, atol=1e-4)
    assert hook.metrics["entropy_coef"] == pytest.approx(entropy_coef, rel=1e-5)
    assert any((value - start[name]).abs().max() > 1e-2 for name, value in shade.policy.state_dict().items())


def test_it_fits_on_a_page_and_takes_only_the_network_from_the_package():
    lines = PAGE.read_text().splitlines()
    assert len(lines) <= 60
    imports = [
        line.split("#")[0].strip() for line in lines if line.startswith(("import ", "from ")) and "noise" in line
    ]
    assert imports == ["from policy_noise.policy import SpatialPolicy"]
