"""The policy's own optimizer, which steps from a flat gradient."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..utils.checks import check_one_of
from .rate import PolicyRate

__all__ = ["PolicyOptimizer", "flat_gradient"]


def flat_gradient(
    outputs: Sequence[Tensor], weights: Sequence[Tensor], parameters: Sequence[nn.Parameter]
) -> Tensor | None:
    """Gradient of the weighted sum of outputs in all parameters, one after the other in one vector.

    Returns:
        None where no output has a graph.
    """
    if not any(output.requires_grad for output in outputs):
        return None
    gradients = torch.autograd.grad(outputs, parameters, weights, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


class PolicyOptimizer:
    """AdamW or SGD over a policy's parameters, its rate beside the user's.

    Args:
        parameters: The policy's.
        name: ``"adamw"`` or ``"sgd"`` (momentum 0.9).
        rate: How its learning rate follows the user's.
        weight_decay: Of this optimizer.
    """

    def __init__(
        self, parameters: list[nn.Parameter], name: Literal["adamw", "sgd"], rate: PolicyRate, weight_decay: float
    ) -> None:
        check_one_of("policy_optimizer", name, ("adamw", "sgd"))
        self.parameters = parameters
        self.rate = rate
        settings: dict[str, Any] = {"lr": rate.lr or 0.0, "weight_decay": weight_decay, "fused": self._fused()}
        self.inner: torch.optim.Optimizer | None = None
        if not parameters:
            return
        if name == "sgd":
            self.inner = torch.optim.SGD(parameters, momentum=0.9, **settings)
        else:
            self.inner = torch.optim.AdamW(parameters, **settings)
        self._fill()

    def step(self, gradient: Tensor, lr: float | None) -> None:
        """Step by the gradient in all parameters, one after the other in one vector.

        Args:
            gradient: (sum of the parameters' sizes,).
            lr: The learning rate; None leaves it as it is.
        """
        if self.inner is None:
            return
        if lr is not None:
            for group in self.inner.param_groups:
                group["lr"] = lr
        pieces = gradient.split([parameter.numel() for parameter in self.parameters])
        for parameter, flat in zip(self.parameters, pieces, strict=True):
            piece = flat.view_as(parameter)
            # Fused optimizers take gradients that lie in memory as their parameters do.
            same = piece.stride() == parameter.stride() and piece.dtype == parameter.dtype
            parameter.grad = piece if same else torch.empty_like(parameter).copy_(piece)
        self.inner.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's; without groups where there is nothing to learn."""
        return {"state": {}, "param_groups": []} if self.inner is None else self.inner.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state for the device where the policy is now: whether it is fused belongs to the device."""
        if self.inner is None:
            return
        groups = [{**group, "fused": self._fused()} for group in state_dict["param_groups"]]
        self.inner.load_state_dict({**state_dict, "param_groups": groups})
        self._fill()

    def _fill(self) -> None:
        """Give each parameter the state that its first step would make, for loaders that fill what is there."""
        assert self.inner is not None
        group = self.inner.param_groups[0]
        for parameter in self.parameters:
            state = self.inner.state[parameter]
            if not state and "betas" in group:
                # A step that is not fused counts on the CPU.
                device = parameter.device if group["fused"] else torch.device("cpu")
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            elif not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)

    def _fused(self) -> bool:
        return bool(self.parameters) and self.parameters[0].device.type in ("cpu", "cuda")
