"""All losses of five libraries, with inputs for each. The compatibility page lists them."""

import copy
import importlib
import inspect
import random
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from policy_noise import PairingError, attach
from policy_noise.losses import CriterionError, LossSplitter, is_hookable

LIBRARIES = {
    "torch": "torch.nn",
    "timm": "timm.loss",
    "monai": "monai.losses",
    "pytorch-metric-learning": "pytorch_metric_learning.losses",
    "segmentation-models-pytorch": "segmentation_models_pytorch.losses",
}
CLASSES, SIZE = 4, 12
ARGUMENTS = {
    "mode": lambda: "multiclass",
    "num_classes": lambda: CLASSES,
    "classes": lambda: CLASSES,
    "embedding_size": lambda: 16,
    "descriptors_dim": lambda: 16,
    "in_features": lambda: 16,
    "n_classes": lambda: CLASSES,
    "spatial_dims": lambda: 2,
    "dim": lambda: 2,
    "margin": lambda: 0.4,
    "Tn": lambda: 10.0,
    "l": lambda: 16,
    "class_counts": lambda: [5, 3, 2, 2],
    "num_samples": lambda: SIZE,
    "dist_matrix": lambda: 1.0 - np.eye(CLASSES, dtype=np.float32),
}
"""Arguments for losses that cannot be made with their defaults."""
BASES = {"BaseMetricLossFunction", "BaseLossWrapper", "GenericPairLoss", "MultipleLosses", "SelfSupervisedLoss"}
"""Base classes, and wrappers that need a loss to wrap."""
OTHER_INPUTS = {
    "ManifoldLoss": "clusters more than 50 embeddings",
    "PatchAdversarialLoss": "takes a discriminator's output alone",
    "SURELoss": "takes an operator",
    "PerceptualLoss": "downloads weights",
    "AdaptiveLogSoftmaxWithLoss": "needs cutoffs",
    "LinearCrossEntropyLoss": "holds the last layer",
}


def losses_of(library):
    """(name, loss) of each loss of a library that can be instantiated, without aliases."""
    module = importlib.import_module(LIBRARIES[library])
    made = set()
    for name in sorted(dir(module), key=lambda name: (name.islower(), name)):
        kind = getattr(module, name)
        if not (inspect.isclass(kind) and issubclass(kind, nn.Module)) or kind in made or name in BASES:
            continue
        if name in OTHER_INPUTS or (library == "torch" and not name.endswith("Loss")):
            continue
        made.add(kind)
        loss = _made(module, kind)
        if loss is not None:
            yield name, loss


def _made(module, kind):
    needed = [
        p.name
        for owner in inspect.getmro(kind)
        if "__init__" in vars(owner) and owner.__module__.startswith(module.__name__.split(".")[0])
        for p in inspect.signature(owner.__init__).parameters.values()
        if p.default is p.empty and p.name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    arguments = {name: ARGUMENTS[name]() for name in needed if name in ARGUMENTS}
    if "loss" in needed:
        inner = {"pytorch_metric_learning": "ContrastiveLoss", "monai": "DiceLoss"}
        arguments["loss"] = getattr(module, inner[module.__name__.split(".")[0]])()
    torch.manual_seed(0)
    for given in ({}, arguments):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return kind(**given)
        except (TypeError, KeyError):
            continue
    return None


def inputs():
    """Calls of many kinds, by what they are for."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(SIZE, CLASSES, generator=draw)
    labels = torch.arange(SIZE) % CLASSES
    embeddings, others, more = torch.randn(3, SIZE, 16, generator=draw)
    soft = torch.rand(SIZE, CLASSES, generator=draw).softmax(1)
    signs = 2 * (labels % 2) - 1
    maps = torch.randn(4, CLASSES, 16, 16, generator=draw)
    pixels = torch.randint(CLASSES, (4, 16, 16), generator=draw)
    pixels[:, 4:8] = torch.arange(4)[:, None, None]
    one_hot = F.one_hot(pixels, CLASSES).movedim(-1, 1).float()
    boxes = torch.rand(SIZE, 4, generator=draw).cumsum(1)
    return {
        "maps, maps": (maps.sigmoid(), one_hot),
        "maps, pixels": (maps, pixels),
        "maps, (N, 1) pixels": (maps, pixels[:, None]),
        "one map, one map": (maps[:, :1].sigmoid(), one_hot[:, :1]),
        "maps, soft maps": (maps, maps.flip(1).softmax(1)),
        "maps": (maps,),
        "flow": (maps[:, :2],),
        "probabilities, soft": (logits.softmax(1).log(), soft),
        "logits, labels": (logits, labels),
        "logits, soft": (logits, soft),
        "logits, multi-hot": (logits, (soft > 0.25).float()),
        "embeddings, labels": (embeddings, labels),
        "pairs": (embeddings, others),
        "scores, signs": (logits[:, 0], signs.float()),
        "scores, labels": (logits[:, :1].sigmoid(), (labels[:, None] % 2).float()),
        "two, signs": (embeddings, others, signs),
        "scores, scores, signs": (logits[:, 0], logits[:, 1], signs.float()),
        "triplets": (embeddings, others, more),
        "mean, target, variance": (logits, soft, soft + 0.1),
        "boxes": (boxes, boxes + 0.1),
        "characters": (
            torch.randn(20, SIZE, CLASSES, generator=draw).log_softmax(2),
            labels.view(SIZE, 1).repeat(1, 3) % 3 + 1,
            torch.full((SIZE,), 20),
            torch.full((SIZE,), 3),
        ),
        "logits, index lists": (logits, torch.stack([labels, -torch.ones_like(labels)], 1).repeat(1, 2)),
        "volumes, volumes": (torch.rand(2, 1, 8, 8, 8, generator=draw), torch.rand(2, 1, 8, 8, 8, generator=draw)),
        "pyramid": ([maps.sigmoid(), maps[:, :, ::2, ::2].sigmoid()], one_hot),
        "embeddings": (embeddings, None, None, others),
    }


EXPECTED = {
    "torch": ("logits, labels", "logits, multi-hot", "scores, signs"),
    "timm": ("logits, labels", "logits, multi-hot", "logits, soft"),
    "monai": ("maps, maps", "maps, pixels", "maps, (N, 1) pixels", "one map, one map"),
    "pytorch-metric-learning": ("embeddings, labels",),
    "segmentation-models-pytorch": ("maps, pixels", "one map, one map"),
}
"""The usual inputs of a library's losses. All others are tried afterwards."""
CHOSEN = {
    "BCELoss": "scores, labels",
    "KLDivLoss": "probabilities, soft",
    "NLLLoss": "logits, labels",
    "CosineEmbeddingLoss": "two, signs",
    "MarginRankingLoss": "scores, scores, signs",
    "L1Loss": "logits, soft",
    "MSELoss": "logits, soft",
    "HuberLoss": "logits, soft",
    "SmoothL1Loss": "logits, soft",
    "GaussianNLLLoss": "mean, target, variance",
    "CTCLoss": "characters",
    "PoissonNLLLoss": "logits, soft",
    "TripletMarginLoss": "triplets",
    "TripletMarginWithDistanceLoss": "triplets",
    "VICRegLoss": "embeddings",
    "AsymmetricLossMultiLabel": "logits, multi-hot",
    "SoftTargetCrossEntropy": "logits, soft",
    "PolyBinaryCrossEntropy": "logits, multi-hot",
    "ZlprLoss": "logits, multi-hot",
    "TwoWayLoss": "logits, multi-hot",
    "DeepSupervisionLoss": "pyramid",
    "MultiLabelMarginLoss": "logits, index lists",
    "LocalNormalizedCrossCorrelationLoss": "volumes, volumes",
    "BarlowTwinsLoss": "pairs",
    "AUCMLoss": "scores, labels",
    "SoftBCEWithLogitsLoss": "maps, maps",
    "BoxGIoULoss": "boxes",
}


def call_for(library, name, loss):
    """The first inputs for which the loss is finite and not 0, or None."""
    kinds = inputs()
    chosen = () if library == "pytorch-metric-learning" and name == "TripletMarginLoss" else (CHOSEN.get(name),)
    for kind in dict.fromkeys([*chosen, *EXPECTED[library], *kinds]):
        if kind is None:
            continue
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                value = (loss.forward if is_hookable(loss) else loss)(*kinds[kind])
        except Exception:
            continue
        if isinstance(value, torch.Tensor) and value.numel() == 1 and value.isfinite() and value != 0:
            return kinds[kind]
    return None


def outcome(loss, args):
    """How per-sample losses are computed: (phrase, losses), or ("refused", the reason)."""
    splitter = LossSplitter(loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splitter.before(args, {})
        value = (loss.forward if is_hookable(loss) else loss)(*args)
        try:
            losses = splitter(args, {}, value)
            return (splitter.describe(), losses), value
        except CriterionError as error:
            return ("refused", str(error)), value


def generators():
    """The states of the global generators, to compare."""
    state = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), state[1].tolist(), state[2], random.getstate()


def in_half(loss, args):
    """Whether the losses in bfloat16 autocast are those of the same inputs in fp32."""
    rounded = tree_map(
        lambda leaf: leaf.bfloat16() if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf, args
    )
    again = tree_map(lambda leaf: leaf.float() if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf, rounded)
    generators = torch.get_rng_state()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (_, losses), _ = outcome(copy.deepcopy(loss), rounded)
    except Exception:
        return "the loss fails itself"
    torch.set_rng_state(generators)
    (_, expected), _ = outcome(copy.deepcopy(loss), again)
    if isinstance(losses, str):
        return "refused"
    if isinstance(expected, str):
        return "WRONG"
    return "exact" if torch.allclose(losses.values, expected.values, rtol=1e-3, atol=1e-5) else "WRONG"


class Given(nn.Module):
    """A model that returns given numbers."""

    def __init__(self, values):
        super().__init__()
        self.values, self.weight = values, nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return self.values + self.weight


def in_a_sum(loss, args):
    """Whether two calls, the second with weight 0.4, are rewarded as they are trained on."""
    if not is_hookable(loss):
        return "not hookable"
    leaves, spec = tree_flatten(args)
    place = next(i for i, leaf in enumerate(leaves) if torch.is_tensor(leaf) and leaf.is_floating_point())
    model = Given(leaves[place])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rewards = []
    with warnings.catch_warnings(), attach(model, optimizer, loss, in_chans=1, mean=None, std=None) as hook:
        warnings.simplefilter("ignore")
        observe = hook.learner.observe
        hook.learner.observe = lambda sample, values, valid=None: (
            rewards.append(values),
            observe(sample, values, valid),
        )
        output = model(torch.rand(len(leaves[place]), 1, 8, 8))
        try:
            calls = [
                loss(*tree_unflatten([tensor if i == place else leaf for i, leaf in enumerate(leaves)], spec))
                for tensor in (output, output * 1.0)
            ]
        except (CriterionError, PairingError):
            return "refused"
        (calls[0] + 0.4 * calls[1]).backward()
        first, second = (term.losses.values for term, _ in hook._queue.scored[0].terms)
        optimizer.step()
    return "exact" if torch.allclose(rewards[0] * 1.4, first + 0.4 * second, rtol=1e-3, atol=1e-5) else "WRONG"


def table(library):
    """Rows (loss, how it is computed per sample, fp32, bf16, sum of calls) for the compatibility page."""
    rows = []
    for name, loss in losses_of(library):
        args = call_for(library, name, copy.deepcopy(loss))
        if args is None:
            continue
        way = outcome(copy.deepcopy(loss), args)[0][0]
        single = "refused" if way == "refused" else "exact"
        rows.append((name, way, single, in_half(loss, args), in_a_sum(copy.deepcopy(loss), args)))
    return rows
