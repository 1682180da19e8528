"""Models that verbs name: folders of runs and saved models, and names of timm's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from castling.models.builder import build_model
from castling.models.card import ModelCard
from castling.models.saved import open_model
from castling.models.starting_weights import normalisation_of
from castling.surgery import load_checkpoint


def open_named(
    model: str,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[nn.Module, ModelCard]:
    """The model that a folder holds or that timm knows by name, in evaluation mode, and its card.

    Args:
        model: folder of a saved model, or a name of timm's, whose pretrained weights are downloaded
            unless ``checkpoint`` names a file.
        checkpoint: all weights of a model of timm's: a head at random says nothing.
        num_classes: of a model of timm's; None takes its own.
        classes: their names, in the order of the weights; None takes ImageNet's, or numbers.

    Raises:
        FileNotFoundError: no folder and no model of timm's; no weights.
        ValueError: a folder with ``checkpoint``, ``num_classes`` or ``classes``; classes that are
            not as many, or named twice; weights that do not fit.
    """
    if Path(model).is_dir():
        if checkpoint is not None or num_classes is not None or classes is not None:
            raise ValueError(
                f"{model} is a folder with weights and classes of its own: leave checkpoint, "
                "num_classes and classes out"
            )
        return open_model(model)
    if not timm.is_model(model.partition(".")[0]):
        raise FileNotFoundError(f"{model} is neither a folder nor a model of timm's")
    if classes is not None:
        if len(set(classes)) < len(classes) or num_classes not in (None, len(classes)):
            raise ValueError(
                f"{len(classes)} classes are named, {len(set(classes))} different ones, and "
                f"num_classes is {num_classes}: name each class once"
            )
        num_classes = len(classes)
    options = {} if num_classes is None else {"num_classes": num_classes}
    built = build_model(model, options, pretrained=checkpoint is None)
    if checkpoint is not None:
        load_checkpoint(built, checkpoint)
    found = resolve_model_data_config(built)
    mean, std = normalisation_of(model, checkpoint or "") or (found["mean"], found["std"])
    preprocessing = {
        "image_size": list(found["input_size"][-2:]),
        "mean": list(mean),
        "std": list(std),
        "interpolation": found["interpolation"],
        "crop_fraction": found["crop_pct"],
    }
    return built.eval(), ModelCard(
        name=model.partition(".")[0],
        classes=_class_names(built) if classes is None else list(classes),
        preprocessing=preprocessing,
        kwargs={"num_classes": built.num_classes},
    )


def _class_names(model: nn.Module) -> list[str]:
    """ImageNet's where the model has them, else numbers."""
    count = int(getattr(model, "num_classes", 0))
    subset = infer_imagenet_subset(model) if count else None
    if subset is not None and (info := ImageNetInfo(subset)).num_classes() == count:
        names = info.label_descriptions()
        if len(set(names)) == count:
            return list(names)
    return [f"class {i}" for i in range(count)]
