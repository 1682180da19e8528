"""Recipes as they were written before tasks and sources had sections of their own.

Old files and old runs are read through this; new ones are never written in that form.
"""

from __future__ import annotations

from typing import Any

from castling.data.legacy import is_old_data, upgrade_data
from castling.tasks import DEFAULT_TASK

#: Flags that moved, for whoever types an old one.
MOVED = {
    "--data.root": "--data.source.root",
    "--data.download": "--data.source.download",
    "--data.split_seed": "--data.split.seed",
    "--data.augment.multi_scale": "--data.transform.multi_scale",
    "--data.augment.mixup": "--task.mix.mixup",
    "--data.augment.cutmix": "--task.mix.cutmix",
    "--data.augment.mix_probability": "--task.mix.probability",
    "--data.augment.switch_probability": "--task.mix.switch_probability",
    "--data.augment.erase_probability": "--task.erase",
    "--ema.self_distill": "--task.self_distill.weight",
    "--ema.self_distill_start": "--task.self_distill.start",
}
for _name in ("subset", "val_subset", "val_fraction", "test_fraction"):
    MOVED[f"--data.{_name}"] = f"--data.split.{_name}"
for _name in ("batch_size", "eval_batch_size", "workers", "verify", "cache"):
    MOVED[f"--data.{_name}"] = f"--data.loader.{_name}"
for _name in ("image_size", "interpolation", "crop_fraction", "eval_crop", "mean", "std"):
    MOVED[f"--data.{_name}"] = f"--data.transform.{_name}"
for _name in ("crop", "padding", "scale", "ratio", "horizontal_flip", "auto_augment"):
    MOVED[f"--data.augment.{_name}"] = f"--data.transform.{_name}"
for _name in ("kind", "smoothing"):
    MOVED[f"--loss.{_name}"] = f"--task.loss.{_name}"
for _name in ("kind", "teacher", "checkpoint", "pretrained", "kwargs", "temperature", "weight"):
    MOVED[f"--distill.{_name}"] = f"--task.distill.{_name}"

#: Options that are gone, with the one value under which nothing changes without them.
_GONE: dict[tuple[str, str], Any] = {
    ("optim", "eps"): None,
    ("optim", "momentum"): 0.9,
    ("optim", "no_decay"): [],
    ("hardware", "deterministic"): False,
    ("save", "statistics_batches"): 2,
}


def is_old(values: dict[str, Any]) -> bool:
    """Whether a recipe's values are in the old form."""
    ema = values.get("ema") or {}
    data = values.get("data") or {}
    return (
        "loss" in values
        or "distill" in values
        or any(name in ema for name in ("self_distill", "self_distill_start"))
        or (isinstance(data, dict) and is_old_data(data))
    )


def _moved_in(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Old flags of the options that ``values`` holds, with the new ones."""

    def holds(flag: str) -> bool:
        section: Any = values
        for name in flag.removeprefix("--").split("."):
            if not isinstance(section, dict) or name not in section:
                return False
            section = section[name]
        return True

    return [(old, new) for old, new in MOVED.items() if holds(old)]


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """The values of an old recipe in the present form.

    Raises:
        ValueError: an option that is gone has a value that mattered.
    """
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    if isinstance(values.get("task"), dict):
        raise ValueError(
            "the recipe mixes two layouts: it has a task section, and options in their old place: "
            + ", ".join(f"{old[2:]} is {new[2:]} now" for old, new in _moved_in(values))
        )
    for (section, name), harmless in _GONE.items():
        if name in values.get(section, {}):
            value = values[section].pop(name)
            if value != harmless:
                raise ValueError(f"{section}.{name} is gone; it was {value!r} in this recipe")
    task: dict[str, Any] = {"name": values.pop("task", DEFAULT_TASK.name)}
    for name in ("loss", "distill"):
        if name in values:
            task[name] = values.pop(name)
    ema = values.get("ema", {})
    own = {
        new: ema.pop(old)
        for old, new in (("self_distill", "weight"), ("self_distill_start", "start"))
        if old in ema
    }
    if own:
        task["self_distill"] = own
    data, mixing = upgrade_data(values.get("data") or {})
    if mixing.pop("erase_mode", "pixel") != "pixel":
        raise ValueError("data.augment.erase_mode is gone; random erasing fills with noise")
    if "erase_probability" in mixing:
        task["erase"] = mixing.pop("erase_probability")
    if mixing:
        task["mix"] = mixing
    return values | {"task": task, "data": data}
