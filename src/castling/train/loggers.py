"""Where curves go besides ``metrics.csv``: Lightning's loggers, by name."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from castling.utils.checks import check_known
from castling.utils.text import did_you_mean


class _Kind(NamedTuple):
    """A logger that a recipe can name.

    Attributes:
        make: Lightning's class.
        packages: one of them must be installed; empty for none.
        defaults: its options, of the run's folder.
    """

    make: Callable[..., Logger]
    packages: tuple[str, ...]
    defaults: Callable[[Path], dict[str, Any]]


_KINDS = {
    "tensorboard": _Kind(
        TensorBoardLogger,
        ("tensorboard", "tensorboardX"),
        lambda run: {"save_dir": str(run), "name": "", "version": "tensorboard"},
    ),
    "csv": _Kind(
        CSVLogger, (), lambda run: {"save_dir": str(run), "name": "", "version": _free(run, "csv")}
    ),
    "wandb": _Kind(WandbLogger, ("wandb",), lambda run: {"save_dir": str(run), "name": run.name}),
    "mlflow": _Kind(
        MLFlowLogger,
        ("mlflow", "mlflow_skinny"),
        # MLFLOW_TRACKING_URI wins over the folder.
        lambda run: {"save_dir": str(run / "mlruns"), "run_name": run.name},
    ),
}


def check_loggers(loggers: Sequence[str | Mapping[str, Any]]) -> None:
    """Refuse loggers that cannot be made, before data is opened.

    Raises:
        ValueError: no such logger, or it has no such option.
        ModuleNotFoundError: its package is not installed.
    """
    for name, options in map(_named, loggers):
        kind = _KINDS[name]
        if kind.packages and not any(map(importlib.util.find_spec, kind.packages)):
            raise ModuleNotFoundError(
                f"save.loggers names {name}, whose package is not installed: "
                f"pip install {kind.packages[0]}, or leave it out"
            )
        parameters = inspect.signature(kind.make).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if not open_ended:
            check_known(options, parameters, f"save.loggers, {name}")


def make_loggers(loggers: Sequence[str | Mapping[str, Any]], run_dir: Path) -> list[Logger]:
    """Lightning's loggers for a run; options of the recipe win over those of the folder."""
    return [
        _KINDS[name].make(**{**_KINDS[name].defaults(run_dir), **options})
        for name, options in map(_named, loggers)
    ]


def _free(run: Path, name: str) -> str:
    """A folder that is not there yet: Lightning's CSVLogger deletes what an earlier part wrote."""
    names = (name if part == 1 else f"{name}-{part}" for part in itertools.count(1))
    return next(each for each in names if not (run / each).exists())


def _named(logger: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options.

    Raises:
        ValueError: no such logger, or a dictionary without a name.
    """
    options = {"name": logger} if isinstance(logger, str) else dict(logger)
    name = options.pop("name", None)
    if name not in _KINDS:
        raise ValueError(
            f"save.loggers: there is no logger {name!r}"
            f"{did_you_mean(str(name), _KINDS)}; known are {', '.join(_KINDS)}"
        )
    return name, options
