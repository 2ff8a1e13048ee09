"""The signals from which a policy's reward is made."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions.dirichlet import _Dirichlet_backward

from benchmarks.study.classifier import Classifier
from policy_noise import MaskSample, PolicyNoiseMask

EMA_DECAY = 0.98
BAND_MARGIN = 0.5
"""Distance of the band's target loss above the loss of clean images, in nats."""
PATHWISE = "pathwise-"
ROBUST_STD = 0.45
"""Standard deviation of the unlearned masks on the batch that ``robust`` looks at."""


class Signals:
    """The signal of each image of a batch. Low is good, unless the reward is adversarial.

    Args:
        name: One of :data:`SIGNALS`. With the prefix ``pathwise-`` the policy gets the signal's gradient in each cell.
        model: The classifier, before its forward is replaced by a CUDA graph, because the teacher is a copy.
        generator: Generator of the masks that ``robust`` draws.
        normalization: The images' normalization, in the mask's form.
    """

    def __init__(
        self, name: str, model: Classifier, generator: torch.Generator, normalization: Mapping[str, float]
    ) -> None:
        self.pathwise = name.startswith(PATHWISE)
        name = name.removeprefix(PATHWISE)
        if name not in SIGNALS:
            raise ValueError(f"signal must be one of {sorted(SIGNALS)}, got {name!r}")
        self.name = name
        self.model = model
        self.teacher: Classifier | None = None
        self.steps = 0
        self.clean_level: Tensor | None = None
        self.reference: Tensor | None = None
        self.other: tuple[Tensor, Tensor, Tensor] | None = None
        self.noise: PolicyNoiseMask | None = None
        self.generator = generator
        if name == "robust":
            dose: dict[str, Any] = {"pattern_std": ROBUST_STD, "brightness_std": 0.0}
            self.noise = PolicyNoiseMask(1, 4, policy="static", p=1.0, **dose, **normalization)
            self.noise.to(generator.device)
        if name == "teacher":
            self.teacher = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def before(self, images: Tensor, labels: Tensor, other_images: Tensor, other_labels: Tensor) -> None:
        """Compute what the signal needs from the unmasked or another batch, before the classifier's own forward."""
        if self.name not in ("relative", "align", "virtual", "robust"):
            return
        self.model.eval()
        if self.name == "relative":
            self.reference = F.cross_entropy(self.model(images)[0], labels, reduction="none")
        elif self.name != "align":
            if self.noise is not None:
                other_images = self.noise(other_images, self.noise.sample(other_images, self.generator))
            self.other = (*self.model(other_images), other_labels)
        else:
            logits, features = self.model(other_images)
            self.reference = _error(logits, other_labels).T @ features
        self.model.train()

    def after(self, masked: Tensor, applied: Tensor, logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """The signal of a masked batch."""
        loss = F.cross_entropy(logits, labels, reduction="none")
        return SIGNALS[self.name](self, loss, masked, applied, logits, features, labels)

    def slopes(self, action: Tensor, masked: Tensor, applied: Tensor, labels: Tensor) -> Tensor:
        """The derivative of each image's signal in each cell of its mask, with the classifier in eval mode.

        Shape:
            - action: (B, 1, G, G), the actions that masked the images (B, 1, S, S).
            - Output: (B, 1, G, G).
        """
        self.model.eval()
        signal = self.after(masked, applied, *self.model.attached(masked), labels)
        self.model.train()
        return torch.autograd.grad(signal.sum(), action)[0]

    @torch.no_grad()
    def step(self) -> None:
        """Update the teacher after the classifier's step, faster at first to forget the initial weights."""
        if self.teacher is None:
            return
        self.steps += 1
        decay = min(EMA_DECAY, self.steps / (9 + self.steps))
        # Not swa_utils.AveragedModel: it reads its counter from the device at every step.
        torch._foreach_lerp_(_floating(self.teacher), _floating(self.model), 1 - decay)


def pathwise_surrogate(sample: MaskSample, slopes: Tensor) -> Tensor:
    """One number per image whose gradient is that of its signal through the draw, by implicit reparameterisation.

    Figurnov et al., Implicit Reparameterization Gradients (2018), with PyTorch's own derivative of a Dirichlet draw.

    Shape:
        - slopes: of :meth:`Signals.slopes`, (B, 1, G, G).
        - Output: (B,).
    """
    concentration = torch.stack([sample.concentration1, sample.concentration0], dim=-1)
    action = torch.stack([sample.action, 1 - sample.action], dim=-1)
    slope = torch.stack([slopes, torch.zeros_like(slopes)], dim=-1)
    return (_Dirichlet_backward(action, concentration.detach(), slope) * concentration).flatten(1).sum(1)


def _floating(model: nn.Module) -> list[Tensor]:
    return [value for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()]


def _error(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(1) - F.one_hot(labels, logits.shape[1])


def _loss(state: Signals, loss: Tensor, *args: Tensor) -> Tensor:
    return loss


def _teacher(state: Signals, loss: Tensor, masked: Tensor, applied: Tensor, *args: Tensor) -> Tensor:
    """Hard for the classifier and yet recognised by its moving average (TeachAugment, CVPR 2022)."""
    assert state.teacher is not None
    return F.cross_entropy(state.teacher(masked)[0], args[-1], reduction="none") - loss


def _band(state: Signals, loss: Tensor, masked: Tensor, applied: Tensor, *args: Tensor) -> Tensor:
    """Distance from a target loss that lies a fixed step above the loss of the unmasked images."""
    clean = torch.where(applied, 0, loss).sum() / (~applied).sum().clamp(min=1)
    state.clean_level = clean if state.clean_level is None else torch.lerp(state.clean_level, clean, 0.1)
    return (loss - state.clean_level - BAND_MARGIN).abs()


def _relative(state: Signals, loss: Tensor, *args: Tensor) -> Tensor:
    """What the mask added to the same image's loss."""
    assert state.reference is not None
    return loss - state.reference


def _align(state: Signals, loss: Tensor, masked: Tensor, applied: Tensor, *args: Tensor) -> Tensor:
    """Minus the cosine between this image's last-layer gradient and that of another, clean batch."""
    logits, features, labels = args
    assert state.reference is not None
    error = _error(logits, labels)
    inner = ((error @ state.reference) * features).sum(1)
    return -inner / (error.norm(dim=1) * features.norm(dim=1) * state.reference.norm()).clamp(min=1e-8)


def _virtual(state: Signals, loss: Tensor, masked: Tensor, applied: Tensor, *args: Tensor) -> Tensor:
    """Loss of another batch after the last layer took a step on this image alone.

    The step's length is one for the whole batch: it would move an average image's own logits by their error.
    """
    logits, features, labels = args
    assert state.other is not None
    other_logits, other_features, other_labels = state.other
    # The layer has a bias, which acts as one more feature of value 1.
    inner = features @ other_features.T + 1
    step = inner / (other_features.square().sum(1).mean() + 1)
    moved = other_logits - step.unsqueeze(2) * _error(logits, labels).unsqueeze(1)
    losses = F.cross_entropy(moved.flatten(0, 1), other_labels.repeat(len(moved)), reduction="none")
    return losses.view(len(moved), -1).mean(1)


SIGNALS: dict[str, Callable[..., Tensor]] = {
    "loss": _loss,
    "teacher": _teacher,
    "band": _band,
    "relative": _relative,
    "align": _align,
    "virtual": _virtual,
    "robust": _virtual,  # the other batch under strong unlearned masks
}
