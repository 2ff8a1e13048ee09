"""The policy's optimizer: one fused step, in any layout and precision."""

import io

import pytest
import torch
from policies import moved, observed

from policy_noise import PolicyNoiseMask
from policy_noise.learning import PolicyLearner


@pytest.mark.parametrize(("name", "reference"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_fused_optimizer_steps_as_the_plain_one(name, reference):
    learner = PolicyLearner(moved(PolicyNoiseMask(p=1.0, grid_size=4)), policy_optimizer=name, policy_weight_decay=0.01)
    twin = [parameter.detach().clone().requires_grad_() for parameter in learner.parameters]
    settings = {"momentum": 0.9} if name == "sgd" else {}
    plain = reference(twin, lr=1e-2, weight_decay=0.01, fused=False, foreach=False, **settings)

    def take_gradients(optimizer, args, kwargs):
        for parameter, own in zip(twin, learner.parameters, strict=True):
            parameter.grad = own.grad.clone()

    learner.optimizer.register_step_pre_hook(take_gradients)
    for _ in range(4):
        observed(learner)
        learner.step({"lr": 0.1})
        plain.step()
    for own, expected in zip(learner.parameters, twin, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)


def test_state_of_an_unfused_optimizer_is_taken_over():
    learner = PolicyLearner(moved(PolicyNoiseMask(grid_size=4)))
    observed(learner)
    learner.step({"lr": 0.1})
    file = io.BytesIO()
    state = learner.state_dict()
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = False
    torch.save(state, file)
    file.seek(0)
    learner.load_state_dict(torch.load(file, weights_only=True))
    assert all(group["fused"] for group in learner.optimizer.param_groups)
    before = [parameter.detach().clone() for parameter in learner.parameters]
    observed(learner)
    learner.step({"lr": 0.1})
    assert any(not torch.equal(new, old) for new, old in zip(learner.parameters, before, strict=True))


@pytest.mark.parametrize("change", [{"memory_format": torch.channels_last}, {"dtype": torch.float64}])
def test_policy_in_another_layout_or_precision_learns(change):
    mask = moved(PolicyNoiseMask(p=1.0, grid_size=4))
    if "dtype" in change:
        mask.policy.place.data = mask.policy.place.data.double()
    else:
        mask.to(**change)
    learner = PolicyLearner(mask)
    before = [parameter.detach().clone() for parameter in learner.parameters]
    observed(learner)
    learner.step({"lr": 0.1})
    for new, old in zip(learner.parameters, before, strict=True):
        assert new.stride() == old.stride()
        assert new.dtype == old.dtype
        assert not torch.equal(new, old)
