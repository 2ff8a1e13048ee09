"""The weights that a transfer starts from: a run's model, timm's published weights, or fresh ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from policy_noise.heated import load_heated, read_heated_metadata

from .rivals import normalize_each_image

__all__ = ["Initialisation", "parse_initialisation"]


@dataclass(frozen=True)
class Initialisation:
    """Weights that a transfer starts from.

    Args:
        label: Its name in tables and curves; the same for all pretraining seeds of one method.
        source: ``"scratch"``, ``"imagenet"`` (timm's pretrained weights, fetched) or a file.
        model: Name of the timm model.
        in_chans: Channels that the model takes.
        options: Arguments of :func:`timm.create_model`.
        normalization: Mean and std that it was trained with, if known.
        heated: Whether the file is a run's model. Otherwise it holds timm's pretrained weights.
        normalize_images: Normalize each image before the network, as the run did.
    """

    label: str
    source: str
    model: str
    in_chans: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    normalization: tuple[float, float] | None = None
    heated: bool = True
    normalize_images: bool = False

    def create(self, num_classes: int, seed: int, *, fresh_head: bool = True) -> nn.Module:
        """A model with these weights.

        Args:
            num_classes: Number of classes of its last layer.
            seed: Seed of what is not loaded.
            fresh_head: Do not load a run's last layer. That of published weights is always new.

        Raises:
            ValueError: If timm does not know the model, refuses its options or cannot load its weights, or a file is of
                another architecture.
            FileNotFoundError: If the file is missing.
        """
        import timm

        if not timm.is_model(self.model):
            raise ValueError(f"model must be a name that timm.list_models() lists, got {self.model!r}")
        torch.manual_seed(seed)
        file = None if self.source in ("scratch", "imagenet") else self.source
        published = self.source == "imagenet" or bool(file and not self.heated)
        own: dict[str, Any] = {"num_classes": num_classes}
        if published:  # with its number of classes: with another, timm takes any file and leaves out what differs
            own = {"pretrained": True, "pretrained_cfg_overlay": {"file": file} if file else None}
        try:
            model: Any = timm.create_model(self.model, in_chans=self.in_chans, **own, **self.options)
        except Exception as error:  # whatever the architecture makes of a foreign option, and of the network
            if not published:
                raise ValueError(f"model_options {dict(self.options)} do not suit {self.model}: {error}") from error
            raise ValueError(
                f"initialisation {self.label!r}: timm's weights of {self.model} cannot be loaded from "
                f"{file or 'its download'} ({str(error)[:300]}); give their safetensors file as "
                f"{'--set weights=FILE' if self.label == 'pretrained' else 'imagenet=FILE'}, or leave them out"
            ) from error
        if published:
            model.reset_classifier(num_classes)
        elif file:
            load_heated(model, file, fresh_classifier=fresh_head)
        return normalize_each_image(model) if self.normalize_images else model


def parse_initialisation(text: str, model: str | None, like: Initialisation | None) -> Initialisation:
    """Parse ``label=source`` from the command line. A run's folder means its ``model.safetensors``.

    Args:
        text: Such as ``"learned=runs/learned"``, ``"scratch"``, ``"imagenet"`` or ``"imagenet=FILE"``, timm's weights
            as safetensors.
        model: Name of the timm model for the last three; by default that of ``like``.
        like: A run's initialisation, whose model and channels they share.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the text is none of these, or there is no model for it.
    """
    label, separator, source = text.partition("=")
    if not separator:
        source = label
    if source in ("scratch", "imagenet") or label == "imagenet":
        if model is None and like is None:
            raise ValueError(f"{label!r} needs the name of a timm model: add a run to --init, or pass --model")
        if source not in ("scratch", "imagenet") and not (Path(source).is_file() and source.endswith(".safetensors")):
            raise FileNotFoundError(f"imagenet={source}: timm's weights must be a safetensors file, and there is none")
        if like is not None and model in (None, like.model):
            return Initialisation(label, source, like.model, like.in_chans, like.options, heated=False)
        return Initialisation(label, source, str(model), 1 if like is None else like.in_chans, heated=False)
    if not separator:
        raise ValueError(f"an initialisation must be LABEL=RUN, 'scratch' or 'imagenet', got {text!r}")
    path = Path(source)
    path = path / "model.safetensors" if path.is_dir() else path
    metadata = read_heated_metadata(path)
    recipe = metadata.get("recipe", {})  # a heated model that was saved by hand has none
    name = recipe.get("model") or metadata.get("architecture") or model
    if name is None:
        raise ValueError(f"{path} does not say which model it holds: pass --model")
    normalization = (recipe["mean"], recipe["std"]) if "mean" in recipe and "std" in recipe else None
    in_chans = recipe.get("in_chans", 1)
    options = recipe.get("model_options", {})
    normalize = recipe.get("normalize_images", False)
    return Initialisation(label, str(path), name, in_chans, options, normalization, normalize_images=normalize)
