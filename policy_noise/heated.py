"""After training under masks: average weights, save and load.

The paper calls a classifier that was trained under masks *heated*. It is used and fine-tuned without masks. Its
BatchNorm statistics come from masked images; :func:`torch.optim.swa_utils.update_bn` recomputes them on clean ones. Its
weights can be averaged over the last epochs, as in the paper. :func:`save_heated` writes it as safetensors with
metadata, and :func:`load_heated` also loads it into a model with another number of classes.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .utils.files import PathLike, write_atomic
from .utils.model import unwrap
from .version import __version__

__all__ = ["average_checkpoints", "load_heated", "read_heated_metadata", "save_heated"]


WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)+")
"""Prefixes of torch.compile and DDP. Older versions of timm remove only one of them."""


def average_checkpoints(paths: Sequence[PathLike]) -> dict[str, Tensor]:
    """Average the weights of checkpoints. The paper's model is the mean of the last three epochs.

    Args:
        paths: Files from ``torch.save`` or safetensors: a state dict, or a dict that holds one as ``state_dict`` or
            ``model``. Prefixes of DDP and torch.compile are removed. Files are loaded without unpickling code.

    Returns:
        The state dict. Floating-point tensors are averaged in fp64 and keep their dtype. Integer tensors (counters) are
        taken from the last file.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If ``paths`` is empty, a file cannot be read, or the files belong to different models.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for epoch in (1, 2, 3):
        ...         torch.save({"weight": torch.full((2,), float(epoch))}, f"{folder}/{epoch}.pt")
        ...     average_checkpoints([f"{folder}/{epoch}.pt" for epoch in (1, 2, 3)])
        {'weight': tensor([2., 2.])}
    """
    from timm.models import load_state_dict  # knows the layouts, and loads weights only

    if not paths:
        raise ValueError("paths must name at least one checkpoint, got none")
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"checkpoint {os.fspath(path)} does not exist")
    total: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    for path in paths:
        try:
            state = load_state_dict(os.fspath(path), use_ema=False, weights_only=True)  # not every timm's default
        except Exception as error:  # zip, safetensors and pickle readers raise different errors for broken files
            raise ValueError(f"checkpoint {os.fspath(path)} cannot be read without running code: {error}") from error
        values = {WRAPPERS.sub("", name): value for name, value in state.items() if isinstance(value, Tensor)}
        if last and {n: v.shape for n, v in values.items()} != {n: v.shape for n, v in last.items()}:
            raise ValueError(
                f"checkpoint {os.fspath(path)} holds another model than {os.fspath(paths[0])}: "
                "the names or shapes of their tensors differ"
            )
        for name, value in values.items():
            if value.is_floating_point():
                total[name] = total.get(name, 0) + value.double()
        last = values
    if not last:
        raise ValueError(f"checkpoint {os.fspath(paths[0])} holds no tensors")
    return {
        name: (total[name] / len(paths)).to(value.dtype) if name in total else value for name, value in last.items()
    }


def save_heated(model: nn.Module, path: PathLike, metadata: Mapping[str, Any] | None = None) -> None:
    """Save a model's weights as safetensors. An interrupted write leaves no partial file.

    If the model is a DDP or compiled wrapper, the model inside is saved. The metadata always contains this package's
    version, and for timm models the architecture, the number of classes and the normalization.

    Args:
        model: The trained model.
        path: File to write.
        metadata: Additional metadata that JSON can represent, such as data set, recipe and scores.

    Raises:
        TypeError: If the metadata cannot be written as JSON.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_heated(model, f"{folder}/model.safetensors", {"epochs": 90})
        ...     read_heated_metadata(f"{folder}/model.safetensors")["epochs"]
        ...     load_heated(nn.Linear(2, 3), f"{folder}/model.safetensors")["kept"]
        90
        []
    """
    from safetensors.torch import save_model

    inner = unwrap(model)
    record: dict[str, Any] = {"policy_noise": __version__}
    config = getattr(inner, "pretrained_cfg", None) or {}
    for name in ("architecture", "mean", "std"):
        if config.get(name) is not None:
            record[name] = config[name]
    if hasattr(inner, "num_classes"):
        record["num_classes"] = inner.num_classes
    try:
        text = json.dumps({**record, **(metadata or {})})
    except TypeError as error:
        raise TypeError(f"metadata must be JSON-serializable, got {metadata!r}: {error}") from error
    write_atomic(path, lambda temporary: save_model(inner, str(temporary), metadata={"heated": text}))


def read_heated_metadata(path: PathLike) -> dict[str, Any]:
    """Read the metadata of a file that :func:`save_heated` wrote, without its weights.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If :func:`save_heated` did not write the file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_heated(nn.Linear(2, 3), f"{folder}/model.safetensors", {"recipe": "mine"})
        ...     read_heated_metadata(f"{folder}/model.safetensors")["recipe"]
        'mine'
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"heated model {os.fspath(path)} does not exist")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} is not a safetensors file: {error}") from error
    if "heated" not in metadata:
        raise ValueError(f"{os.fspath(path)} has no metadata of a heated model")
    return json.loads(metadata["heated"])


def load_heated(
    model: nn.Module, path: PathLike, *, classifier: str | None = None, fresh_classifier: bool = False
) -> dict[str, Any]:
    """Load weights that :func:`save_heated` wrote, also into a model with another number of classes.

    Args:
        model: Model to load into. It is changed only if everything fits.
        path: File written by :func:`save_heated`.
        classifier: Name of the classification layer. If its shape differs from the file's, the model keeps its own. By
            default the name is read from timm's configuration of the model.
        fresh_classifier: Keep the model's own classification layer even if the file's has the same shape. Set this if
            the classes differ but their number is the same.

    Returns:
        The file's metadata, with ``"kept"``: the names of the model's own tensors that were not replaced.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it belongs to another architecture, or ``fresh_classifier`` is set and no tensor of the model
            belongs to a known classification layer.

    Example:
        >>> import tempfile, timm
        >>> pretrained, model = (timm.create_model("test_resnet", num_classes=classes) for classes in (5, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_heated(pretrained, f"{folder}/model.safetensors")
        ...     sorted(load_heated(model, f"{folder}/model.safetensors")["kept"])
        ['fc.bias', 'fc.weight']
    """
    from safetensors.torch import load_file

    metadata = read_heated_metadata(path)
    inner = unwrap(model)
    own = inner.state_dict()
    loaded = load_file(os.fspath(path))
    if classifier is None:
        recorded = (getattr(inner, "pretrained_cfg", None) or {}).get("classifier")
        heads: tuple[str, ...] = (recorded,) if isinstance(recorded, str) else tuple(recorded or ())
    else:
        heads = (classifier,)
    wrong = sorted(
        name
        for name in own.keys() | loaded.keys()
        if name not in own or (name in loaded and own[name].shape != loaded[name].shape)
    )
    # Tensors that share storage are saved only once, under one of their names.
    stored = {own[name].data_ptr() for name in loaded if name in own}
    wrong += sorted(name for name in own.keys() - loaded.keys() if own[name].data_ptr() not in stored)
    of_head = [name for name in own if any(name == head or name.startswith(f"{head}.") for head in heads)]
    if fresh_classifier and not of_head:
        raise ValueError(
            f"fresh_classifier needs the name of the classification layer: pass classifier=... with the name of a "
            f"layer, got {heads}"
        )
    kept = of_head if fresh_classifier else [name for name in of_head if name in wrong]
    foreign = [name for name in wrong if name not in of_head]
    if foreign:
        raise ValueError(
            f"{os.fspath(path)} holds another architecture ({metadata.get('architecture', 'unnamed')}): "
            f"{len(foreign)} tensors differ in name or shape, such as {foreign[:3]}; if they belong to the "
            "classification layer, pass its name as classifier=..."
        )
    inner.load_state_dict({name: value for name, value in loaded.items() if name not in kept}, strict=False)
    return {**metadata, "kept": kept}
