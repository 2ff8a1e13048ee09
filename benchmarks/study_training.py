"""One run of the study: a classifier, a condition, a seed.

The mask is the package's own: drawn and applied by ``hook.apply``, rewarded by ``hook.observe``. Conditions of a seed
share initial weights, images, their order and their shifts in place; masks and augmentations draw from generators of
their own. On a GPU the classifier's forward and backward are replayed as CUDA graphs, as launches are what such small
networks cost.
"""

import copy
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from study_conditions import LEARNING_RATE, Condition, Job
from study_tasks import EvalSet, FewShot, TaskData, bias_field, train_indices
from torch import Tensor, nn
from torch.distributions.dirichlet import _Dirichlet_backward
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from policy_noise import MaskSample, PolicyNoiseMask, ReinforceHook
from policy_noise.experiments.transfer import draw_few_shot, embed, linear_probe
from policy_noise.policy import SpatialPolicy, StaticPolicy
from policy_noise.presets import get_preset

__all__ = ["SIGNALS", "ClassPolicy", "Classifier", "StudyMask", "build_hook", "evaluate", "macro_f1", "train"]

WEIGHT_DECAY = 0.05
PAPER_SIGMA = 6 / 224
"""The paper's blur, as a share of the image's side."""
FIRST_MASK: dict[str, Any] = {"grid_size": 8, "sigma": PAPER_SIGMA, "mask_std": None, "level_std": 0.0}
"""The package's default mask when the study began: what conditions leave out."""
CLEAN_SHARES = {"heated": 0.25, "long": 0.5, "throughout": 0.0, "recalibrated": 0.0}
"""Share of the epochs without masks, at the end, by schedule."""
POINTS = 8
"""Points of a learning curve."""
SHOTS = (16, 64, 256)
DRAWS = 10
EMA_DECAY = 0.98
BAND_MARGIN = 0.5
"""How far above the clean images' loss the band's target lies, in nats."""
PATHWISE = "pathwise-"
ROBUST_STD = 0.45
"""Standard deviation of the unlearned masks on the batch that ``robust`` looks at."""


class Classifier(nn.Module):
    """A small timm network that also gives its pooled features, detached.

    Shape:
        - images: (B, 1, S, S).
        - Output: (B, num_classes) and (B, features).
    """

    def __init__(self, kind: str, size: int, num_classes: int) -> None:
        super().__init__()
        self.network: nn.Module
        if kind in ("resnet", "resnet-half"):
            from timm.models.resnet import BasicBlock, ResNet

            network = ResNet(
                BasicBlock, (1, 1, 1, 1), num_classes, 1, stem_type="deep", stem_width=8, channels=(16, 32, 64, 128)
            )
            # Its stem is made for 224 px. At 64 px the stride keeps the feature maps those of 32 px.
            stride = max(1, size // 32) * (2 if kind == "resnet-half" else 1)
            network.conv1 = nn.Conv2d(1, 16, 3, stride=stride, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
            self.network = network
        elif kind in ("vit", "vit-half"):
            from timm.models.vision_transformer import VisionTransformer

            patch_size = 8 if kind == "vit-half" else 4
            self.network = VisionTransformer(
                size, patch_size, in_chans=1, num_classes=num_classes, embed_dim=96, depth=4, num_heads=3
            )
        else:
            raise ValueError(f"model must be 'resnet', 'resnet-half', 'vit' or 'vit-half', got {kind!r}")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.attached(images)
        return logits, features.detach()

    def attached(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same with the features' graph."""
        features = self.network.forward_head(self.network.forward_features(images), pre_logits=True)
        return self.network.get_classifier()(features), features


class StudyMask(PolicyNoiseMask):
    """The package's mask, which remembers what it applied, and can apply each mask to its neighbour in the batch.

    Batches are in random order, so the neighbour is any other image.
    """

    shuffled = False
    applied: Tensor

    def forward(self, images: Tensor, sample: MaskSample | None = None) -> Tensor:
        if sample is not None:
            if self.shuffled:
                sample = replace(sample, action=sample.action.roll(1, 0), applied=sample.applied.roll(1, 0))
            self.applied = sample.applied
        return super().forward(images, sample)

    def credit(self, signal: Tensor) -> Tensor:
        """Give each mask the number of the image that it was applied to."""
        return signal.roll(-1, 0) if self.shuffled else signal


class ClassPolicy(nn.Module):
    """One distribution for all images of a class, whose labels are set before each batch.

    Args:
        num_classes: Classes.
        grid_size: Cells along each axis.
    """

    labels: Tensor

    def __init__(self, num_classes: int, grid_size: tuple[int, ...]) -> None:
        super().__init__()
        self.log_concentration = nn.Parameter(torch.zeros(num_classes, 2, *grid_size))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        log_concentration1, log_concentration0 = self.log_concentration[self.labels].unsqueeze(2).unbind(1)
        return log_concentration1, log_concentration0


def build_hook(
    condition: Condition, data: TaskData, optimizer: torch.optim.Optimizer, device: torch.device, seed: int
) -> ReinforceHook:
    """Make a condition's mask and its hook."""
    assert condition.preset is not None
    preset = get_preset(condition.preset)
    settings = {**FIRST_MASK, **preset.mask, **condition.mask}
    settings["sigma"] = (settings["sigma"] or PAPER_SIGMA) * data.task.size
    grid = (settings["grid_size"],) * 2
    policy = dict(condition.policy)
    kind = policy.pop("kind", None)
    if kind == "class":
        settings["policy"] = ClassPolicy(data.num_classes, grid)
    elif kind == "static":
        both = policy.pop("concentration", 1.0)
        concentrations = [policy.pop(name, both) for name in ("concentration1", "concentration0")]
        settings["policy"] = StaticPolicy(grid, *concentrations)
    elif policy:
        settings["policy"] = SpatialPolicy(1, grid, **policy)
    mask = StudyMask(in_chans=1, mean=data.mean, std=data.std, **settings).to(device)
    mask.shuffled = condition.shuffled
    generator = torch.Generator(device).manual_seed(10_000 + seed)
    return ReinforceHook(mask, optimizer, generator=generator, **{**preset.hook, **condition.hook})


# -- what the policy is told -------------------------------------------------------------------------------------------


class Signals:
    """What a policy is told about each image of a batch, low for good unless the reward is adversarial.

    Args:
        name: One of :data:`SIGNALS`; with ``pathwise-`` before it the policy is told how the signal changes with each
            cell.
        model: The classifier, before its forward is replaced by a graph: the teacher is a copy.
        generator: Of the masks that ``robust`` draws.
        normalization: Of the images, as the mask takes it.
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
            dose: dict[str, Any] = {"mask_std": ROBUST_STD, "level_std": 0.0}
            self.noise = PolicyNoiseMask(1, 4, policy="static", p=1.0, **dose, **normalization)
            self.noise.to(generator.device)
        if name == "teacher":
            self.teacher = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def before(self, images: Tensor, labels: Tensor, other_images: Tensor, other_labels: Tensor) -> None:
        """Look at the unmasked batch, or at another one, before the classifier's own forward."""
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
        """How each image's signal changes with each cell of its mask, with the classifier in eval mode.

        Shape:
            - action: (B, 1, G, G), which the masked images (B, 1, S, S) were made with.
            - Output: that of the actions.
        """
        self.model.eval()
        signal = self.after(masked, applied, *self.model.attached(masked), labels)
        self.model.train()
        return torch.autograd.grad(signal.sum(), action)[0]

    @torch.no_grad()
    def step(self) -> None:
        """After the classifier's step. Young teachers forget faster, so that the initial weights are soon gone."""
        if self.teacher is None:
            return
        self.steps += 1
        decay = min(EMA_DECAY, self.steps / (9 + self.steps))
        # Not swa_utils.AveragedModel: it reads its counter from the device at every step.
        torch._foreach_lerp_(_floating(self.teacher), _floating(self.model), 1 - decay)


def pathwise_surrogate(sample: MaskSample, slopes: Tensor) -> Tensor:
    """One number an image whose gradient is that of its signal through the draw, by implicit reparameterisation.

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
    """Distance from a fixed step above the loss of the images that were not masked."""
    clean = torch.where(applied, 0, loss).sum() / (~applied).sum().clamp(min=1)
    state.clean_level = clean if state.clean_level is None else torch.lerp(state.clean_level, clean, 0.1)
    return (loss - state.clean_level - BAND_MARGIN).abs()


def _relative(state: Signals, loss: Tensor, *args: Tensor) -> Tensor:
    """What the mask added to the same image's loss."""
    assert state.reference is not None
    return loss - state.reference


def _align(state: Signals, loss: Tensor, masked: Tensor, applied: Tensor, *args: Tensor) -> Tensor:
    """How far this image's last-layer gradient turns away from that of another, clean batch: minus the cosine."""
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


# -- hand-set rivals ---------------------------------------------------------------------------------------------------


class Augmentation:
    """A hand-set augmentation of images in [0, 1], each at its usual strength.

    Args:
        name: ``"bias_field"`` (TorchIO's default, half of the images), ``"gaussian_noise"`` (std 0.1, half),
            ``"random_erasing"`` (kornia's, half), ``"mixup"`` (timm's, alpha 0.2), ``"randaugment"`` (torchvision's,
            2 operations of magnitude 9, drawn anew for each eighth of the batch) or ``"color_jitter"`` (kornia's at
            timm's default strength: brightness and contrast within 0.4 of 1).
        num_classes: For MixUp's targets.
        device: Where the images are.
        seed: Of the two that draw on the device; the others follow the global seeds.
    """

    def __init__(self, name: str, num_classes: int, device: torch.device, seed: int) -> None:
        self.name = name
        self.generator = torch.Generator(device).manual_seed(20_000 + seed)
        self.operation: Any = None
        if name == "random_erasing":
            from kornia.augmentation import RandomErasing

            self.operation = RandomErasing(p=0.5)
        elif name == "mixup":
            from timm.data import Mixup

            self.operation = Mixup(mixup_alpha=0.2, label_smoothing=0.0, num_classes=num_classes)
        elif name == "randaugment":
            from torchvision.transforms.v2 import RandAugment

            self.operation = RandAugment()
        elif name == "color_jitter":
            from kornia.augmentation import ColorJitter

            self.operation = ColorJitter(0.4, 0.4, 0.4)
        elif name not in ("bias_field", "gaussian_noise"):
            raise ValueError(f"unknown augmentation {name!r}")

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.name == "mixup":
            return self.operation(images, labels)
        if self.name == "randaugment":
            parts = (images * 255).round().to(torch.uint8).chunk(8)
            return torch.cat([self.operation(part) for part in parts]).float() / 255, labels
        if self.name == "random_erasing":
            return self.operation(images), labels
        if self.name == "color_jitter":
            return self.operation(images.expand(-1, 3, -1, -1))[:, :1], labels
        if self.name == "bias_field":
            changed = bias_field(images, self.generator, 0.5).clamp(0, 1)
        else:
            noise = torch.randn(images.shape, generator=self.generator, device=images.device)
            changed = (images + 0.1 * noise).clamp(0, 1)
        chosen = torch.rand(len(images), 1, 1, 1, generator=self.generator, device=images.device) < 0.5
        return torch.where(chosen, changed, images), labels


# -- a run -------------------------------------------------------------------------------------------------------------


class Batches:
    """Training batches on the device, normalised by nobody yet: images in [0, 1], moved by up to a 16th of their side.

    The order and the moves are drawn on the CPU from the seed alone, so they are those of every condition and device.
    """

    def __init__(self, data: TaskData, seed: int, epochs: int) -> None:
        size, batch = data.task.size, data.task.batch_size
        indices = train_indices(data, seed)
        self.steps_per_epoch = len(indices) // batch
        if self.steps_per_epoch == 0:
            raise ValueError(f"task {data.task.name!r} has {len(indices)} training images and batches of {batch}")
        reach = size // 16
        self.padded = F.pad(data.images.float() / 255, (reach,) * 4, mode="reflect")
        self.labels = data.labels
        rng = np.random.default_rng([seed, 29])
        order = [rng.permutation(indices)[: self.steps_per_epoch * batch] for _ in range(epochs)]
        moves = rng.integers(0, 2 * reach + 1, size=(epochs * self.steps_per_epoch, batch, 2))
        device = data.images.device
        self.order = torch.from_numpy(np.concatenate(order).reshape(-1, batch)).to(device)
        self.moves = torch.from_numpy(moves).to(device)
        self.window = torch.arange(size, device=device)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        index = self.order[step]
        rows = self.moves[step, :, :1] + self.window
        columns = self.moves[step, :, 1:] + self.window
        images = self.padded[index[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
        return images.unsqueeze(1), self.labels[index]


def train(job: Job, data: TaskData, *, graphs: bool = True) -> dict[str, Any]:
    """Train and score one run.

    Args:
        job: What to run.
        data: The job's task, with its evaluation sets.
        graphs: Replay the classifier's training step as CUDA graphs where the data is on a GPU.

    Returns:
        ``scores`` (split, set, macro F1), ``curve`` and ``policy`` (diagnostics while training), ``steps``,
        ``seconds``.
    """
    condition, task, seed = job.condition, job.task, job.seed
    device = data.images.device
    start = time.perf_counter()
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (timm's Mixup draws from the global state)
    random.seed(seed)
    model = Classifier(task.model, task.size, data.num_classes).to(device)
    if device.type == "cpu":
        model.to(memory_format=torch.channels_last)  # a quarter faster there
    generator = torch.Generator(device).manual_seed(30_000 + seed)
    signals = Signals(condition.signal, model, generator, {"mean": data.mean, "std": data.std})
    model.train()
    # Recalibration runs the model in training mode with another momentum than a graph would have recorded.
    if graphs and device.type == "cuda" and condition.schedule != "recalibrated":
        _graph(model, torch.zeros(task.batch_size, 1, task.size, task.size, device=device))
    batches = Batches(data, seed, task.epochs)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=device.type == "cuda"
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=len(batches), pct_start=0.1, cycle_momentum=False
    )
    noisy_epochs = task.epochs - round(CLEAN_SHARES[condition.schedule] * task.epochs)
    noisy_steps = noisy_epochs * batches.steps_per_epoch
    hook = None if condition.preset is None else build_hook(condition, data, optimizer, device, seed)
    augment = None
    if condition.augment is not None:
        augment = Augmentation(condition.augment, data.num_classes, device, seed)
    strength = None if hook is None else hook.mask.strength
    interval = max(1, len(batches) // POINTS)
    curve: list[dict[str, float]] = []
    policy: list[dict[str, float]] = []

    for step in range(len(batches)):
        if step == noisy_steps:
            augment = None
            if hook is not None:
                hook.remove()
                hook = None
        images, labels = batches[step]
        targets = labels
        if augment is not None:
            images, targets = augment(images, labels)
        images = (images - data.mean) / data.std
        if hook is None:
            loss = F.cross_entropy(model(images)[0], targets)
        else:
            if condition.curriculum:
                hook.mask.strength = strength * min(1.0, 2 * step / noisy_steps)
            other_images, other_labels = batches[(step + 1) % len(batches)]
            signals.before(images, labels, (other_images - data.mean) / data.std, other_labels)
            if isinstance(hook.mask.policy, ClassPolicy):
                hook.mask.policy.labels = labels
            masked = _mask_pathwise(hook, signals, images, labels) if signals.pathwise else hook.apply(images)
            logits, features = model(masked)
            losses = F.cross_entropy(logits, labels, reduction="none")
            if hook.learner.estimator == "paper":
                # The published surrogate scales the classifier's loss as well.
                losses = hook.observe(losses)
            elif not signals.pathwise:
                signal = signals.after(masked, hook.mask.applied, logits.detach(), features, labels)
                hook.observe(hook.mask.credit(signal))
            loss = losses.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        if hook is not None:
            signals.step()
        if (step + 1) % interval == 0:
            point = {"step": step + 1, "loss": float(loss.detach())}
            if "val" in data.evals:
                point["val_clean"] = macro_f1(model, data, data.evals["val"]["clean"])
            curve.append(point)
            if hook is not None:
                policy.append({"step": step + 1, **hook.metrics, **_diagnose(hook.mask, data)})
                model.train()
    if hook is not None:
        hook.remove()
    if condition.schedule == "recalibrated":
        last = range(len(batches) - batches.steps_per_epoch, len(batches))
        update_bn(((batches[step][0] - data.mean) / data.std for step in last), model)
    scores = {split: evaluate(model, data, split) for split in job.splits}
    return {
        "scores": scores,
        "curve": curve,
        "policy": policy,
        "steps": len(batches),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _mask_pathwise(hook: ReinforceHook, signals: Signals, images: Tensor, labels: Tensor) -> Tensor:
    """Mask a batch, with the signal's own gradient for its policy to learn from."""
    assert isinstance(hook.mask, StudyMask)
    sample = hook.mask.sample(images, hook.generator)
    action = sample.action.clone().requires_grad_()
    masked = hook.mask(images, replace(sample, action=action))
    surrogate = pathwise_surrogate(sample, signals.slopes(action, masked, hook.mask.applied, labels))
    # Without a baseline a loss of 1 gives each image's surrogate the same weight.
    hook.learner.observe(replace(sample, log_prob=surrogate), torch.ones_like(surrogate))
    return masked.detach()


def _graph(model: Classifier, sample: Tensor) -> None:
    """Replay forward and backward as CUDA graphs in training mode; eval mode keeps the model's own forward."""
    torch.cuda.make_graphed_callables(model, (sample,))
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()  # in place: the warm-up's images were no images
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def _diagnose(mask: PolicyNoiseMask, data: TaskData) -> dict[str, float]:
    """What the policy does now to the first training images of each kind (spread evenly over the set)."""
    stride = max(1, len(data.images) // 256)
    images = (data.images[::stride][:256].float() / 255 - data.mean) / data.std
    mask.eval()
    if isinstance(mask.policy, ClassPolicy):
        mask.policy.labels = data.labels[::stride][:256]
    sample = mask.sample(images, torch.Generator(images.device).manual_seed(0))
    mask.train()
    mean = sample.concentration1 / (sample.concentration1 + sample.concentration0)
    total = sample.concentration1 + sample.concentration0
    everywhere = replace(sample, applied=torch.ones_like(sample.applied))
    rendered = mask.render(everywhere, images.shape[2:])
    return {
        "alpha": float(sample.concentration1.mean()),
        "beta": float(sample.concentration0.mean()),
        "cell_mean": float(mean.mean()),
        "cell_std": float((mean * (1 - mean) / (total + 1)).sqrt().mean()),
        "mean_over_images_std": float(mean.std(0).mean()),
        "mean_over_cells_std": float(mean.mean(0).std()) if mean[0].numel() > 1 else 0.0,
        "rendered_std": float(rendered.flatten(1).std(1).mean()),
    }


@torch.no_grad()
def macro_f1(model: Classifier, data: TaskData, evals: EvalSet) -> float:
    """Macro F1 in eval mode; the model's mode is put back."""
    from sklearn.metrics import f1_score

    training = model.training
    model.eval()
    logits = torch.cat([model((part.float() / 255 - data.mean) / data.std)[0] for part in evals.images.split(2048)])
    model.train(training)
    classes = np.arange(data.num_classes) if evals.classes is None else np.array(evals.classes)
    predictions = classes[logits[:, classes].argmax(1).cpu().numpy()]
    return float(f1_score(evals.labels, predictions, labels=classes, average="macro", zero_division=0))


def evaluate(model: Classifier, data: TaskData, split: str) -> dict[str, float]:
    """Macro F1 on every set of a split, and after few-shot transfer."""
    scores = {name: macro_f1(model, data, evals) for name, evals in data.evals[split].items()}
    return scores | (_transfer(model, data, data.few_shot[split]) if split in data.few_shot else {})


def _transfer(model: Classifier, data: TaskData, target: FewShot) -> dict[str, float]:
    """Macro F1 of linear probes by the number of images, mean over draws, which are the same for all runs."""
    from sklearn.metrics import f1_score

    features, test_features = (
        embed(model.network, (images.float() / 255 - data.mean) / data.std)
        for images in (target.images, target.test.images)
    )
    scores = {}
    for shots in SHOTS:
        found = []
        for draw in range(DRAWS):
            drawn = draw_few_shot(target.labels, shots, np.random.default_rng([shots, draw]))
            probabilities = linear_probe(features[drawn], target.labels[drawn], test_features, target.num_classes)
            found.append(f1_score(target.test.labels, probabilities.argmax(1), average="macro", zero_division=0))
        scores[f"few_shot:{shots}"] = float(np.mean(found))
    return scores
