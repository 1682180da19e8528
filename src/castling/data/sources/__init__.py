"""Where images come from: one file per source, registered by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from castling.data.recognise import recognise
from castling.data.registry import SourceConfig, source_config_class
from castling.data.sources.ade20k import Ade20kConfig
from castling.data.sources.cityscapes import CityscapesConfig
from castling.data.sources.coco import CocoConfig
from castling.data.sources.digit_scenes import DigitScenesConfig
from castling.data.sources.digits import DigitsConfig
from castling.data.sources.folder import FolderConfig
from castling.data.sources.masks import MasksConfig
from castling.data.sources.panoptic import PanopticConfig
from castling.data.sources.torchvision import TorchvisionConfig
from castling.data.sources.unlabelled import UnlabelledConfig
from castling.data.sources.voc import VocConfig
from castling.data.sources.voc_masks import VocMasksConfig
from castling.data.sources.yolo import YoloConfig
from castling.utils.checks import config_from_dict

__all__ = [
    "Ade20kConfig",
    "CityscapesConfig",
    "CocoConfig",
    "DigitScenesConfig",
    "DigitsConfig",
    "FolderConfig",
    "MasksConfig",
    "PanopticConfig",
    "TorchvisionConfig",
    "UnlabelledConfig",
    "VocConfig",
    "VocMasksConfig",
    "YoloConfig",
    "source_from",
    "split_shorthand",
]


def split_shorthand(text: str) -> SourceConfig:
    """The source that a single word or path stands for.

    Args:
        text: ``digits``, ``digit_scenes``, ``torchvision:NAME``, or the path of a folder or zip
            file; one that holds annotated images of a known format opens as such.

    Raises:
        ValueError: it is empty.
    """
    if not text:
        raise ValueError(
            "data.source is empty; name digits, digit_scenes, a folder, a zip file or "
            "torchvision:NAME"
        )
    for bundled in (DigitsConfig, DigitScenesConfig):
        if text == bundled.name:
            return bundled()
    kind, separator, name = text.partition(":")
    if separator and kind == TorchvisionConfig.name:
        return TorchvisionConfig(dataset=name)
    config = FolderConfig(path=text)
    known = recognise(text)
    return source_config_class(known)(path=text) if known else config  # type: ignore[call-arg]


def source_from(value: str | Mapping[str, Any] | SourceConfig) -> SourceConfig:
    """A source's configuration from what a recipe or a caller gives.

    Args:
        value: a shorthand (see :func:`split_shorthand`), a mapping with ``name`` and options, or
            a configuration, which is returned as it is.

    Raises:
        ValueError: the name or an option is unknown, or a value does not fit.
    """
    if isinstance(value, SourceConfig):
        return value
    if isinstance(value, str):
        return split_shorthand(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError(
            f"data.source is {value!r}; give digits, digit_scenes, a path, torchvision:NAME, or a "
            "mapping with name and options"
        )
    options = {key: each for key, each in value.items() if key != "name"}
    return config_from_dict(source_config_class(value["name"]), options, "data.source")
