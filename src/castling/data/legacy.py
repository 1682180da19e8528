"""Data sections of recipes from before sources, splits, transforms and loaders were separate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from castling.utils.checks import check_known

_SPLIT = {
    "val_fraction": "val_fraction",
    "test_fraction": "test_fraction",
    "split_seed": "seed",
    "subset": "subset",
    "val_subset": "val_subset",
}
_LOADER = {
    name: name
    for name in (
        "batch_size",
        "eval_batch_size",
        "workers",
        "verify",
        "cache",
        "cache_limit_megabytes",
    )
}
_TRANSFORM = {
    name: name
    for name in ("image_size", "mean", "std", "interpolation", "crop_fraction", "eval_crop")
}
_AUGMENT = {
    name: name
    for name in (
        "crop",
        "padding",
        "scale",
        "ratio",
        "horizontal_flip",
        "auto_augment",
        "color_jitter",
        "multi_scale",
    )
}
_MIXING = {
    "mixup": "mixup",
    "cutmix": "cutmix",
    "mix_probability": "probability",
    "switch_probability": "switch_probability",
    "erase_probability": "erase_probability",
    "erase_mode": "erase_mode",
}
#: Section, option and value by which runs went before the option was there.
RULES_OF_OLD_RUNS = (("split", "by", "position"), ("loader", "last_batch", "drop"))

_SOURCE = ("source", "root", "download", "seed")
_NEW = ("source", "split", "transform", "loader")
_KNOWN = (*_SOURCE, *_SPLIT, *_LOADER, *_TRANSFORM, "augment")


def is_old_data(values: Mapping[str, Any]) -> bool:
    """Whether a data section has an option that only the old layout has in this place."""
    return any(name in _KNOWN and name not in _NEW for name in values)


def upgrade_data(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data section of an old recipe in today's form.

    Values are not checked; :func:`castling.data.data_config_from_dict` does that. A section in
    today's form is returned as it is. The old ``seed`` of order and augmentation has no place in
    the new section and is left out: a caller that resumes a run adds it to the run's seed.

    Args:
        values: the flat section, or the part of it that was written down.

    Returns:
        The new section, and what belongs to the task now: those of ``mixup``, ``cutmix``,
        ``probability``, ``switch_probability``, ``erase_probability`` and ``erase_mode`` that
        were given.

    Raises:
        ValueError: an option is unknown.
    """
    if all(name in _NEW for name in values):
        return dict(values), {}
    check_known(values, dict.fromkeys(_KNOWN), "data")
    augment = values.get("augment") or {}
    check_known(augment, dict.fromkeys((*_AUGMENT, *_MIXING)), "data.augment")
    data: dict[str, Any] = {}
    if any(name in values for name in ("source", "root", "download")):
        data["source"] = _source(values)
    for section, content in (
        ("split", _renamed(values, _SPLIT)),
        ("transform", _renamed(values, _TRANSFORM) | _renamed(augment, _AUGMENT)),
        ("loader", _renamed(values, _LOADER)),
    ):
        if content:
            data[section] = content
    return data, _renamed(augment, _MIXING)


def with_old_rules(values: Mapping[str, Any]) -> dict[str, Any]:
    """The data section of a run's own recipe, in today's form, with the rules of its time.

    A run writes every option down, so one that is missing is younger than the run, which went by
    what is the option's value here: images were held out by position, and an epoch left out the
    images that did not fill a batch.
    """
    data = dict(values)
    for section, name, value in RULES_OF_OLD_RUNS:
        data[section] = {name: value, **(data.get(section) or {})}
    return data


def _source(values: Mapping[str, Any]) -> dict[str, Any]:
    text = values.get("source", "digits")
    if text == "digits":
        return {"name": "digits"}
    kind, separator, name = text.partition(":")
    if not separator or kind != "torchvision":
        return {"name": "folder", "path": text}
    options = {option: values[option] for option in ("root", "download") if option in values}
    return {"name": "torchvision", "dataset": name, **options}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {new: values[old] for old, new in names.items() if old in values}
