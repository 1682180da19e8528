"""Export targets, registered by name; adding one is one file in ``export/targets``."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from castling.export.exported_model import ExportedModel
from castling.export.outputs import NamedOutputs
from castling.export.precision import Precision
from castling.utils.shared import SharedSetting
from castling.utils.text import did_you_mean

#: Input dimensions that may change in the file: batch, height and width; the batch; none.
Dynamic = Literal["all", "batch", "none"]


class ExportError(RuntimeError):
    """The model could not be exported, or the file did not reproduce it."""


class DisagreementError(ExportError):
    """A file of reduced precision that is too far from the model on real images."""


@dataclass(frozen=True)
class ExportJob:
    """What a target writes.

    Attributes:
        model: in evaluation mode.
        images: (B, 3, H, W) to trace with, on the model's device.
        outputs: names of the outputs, in order.
        dynamic: input dimensions that may change in the file.
        metadata: JSON text per key, to be stored in the file.
        opset: ONNX operator set; None is the exporter's own.
        portable: write standard operators only, none of castling's.
        precision: what the file computes with; one of the target's.
        calibration: images (B, 3, H, W) to find the ranges of int8 activations, in batches.
        shared: what a target keeps for writing the same model again in another precision.
    """

    model: NamedOutputs
    images: Tensor
    outputs: tuple[str, ...]
    dynamic: Dynamic
    metadata: Mapping[str, str]
    opset: int | None = None
    portable: bool = False
    precision: Precision = "fp32"
    calibration: tuple[Tensor, ...] = ()
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def dynamic_shapes(self) -> tuple[dict[int, Any]] | None:
        """The free dimensions of the input, as ``torch.export`` takes them."""
        axes = {"all": (0, 2, 3), "batch": (0,), "none": ()}[self.dynamic]
        return (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),) if axes else None


class Target(Protocol):
    """A file format and the runtime that opens it.

    Attributes:
        name: registered name.
        suffix: of its files, with the dot.
        beside: suffixes of what ``write`` puts beside the file, under the same name.
        runtime: name of the runtime in reports.
        opset: whether an ONNX operator set can be chosen.
        dynamics: what may change in its files; with ``"none"`` alone, files of one image.
        precisions: that ``write`` offers.
        writing: packages needed to write.
        running: packages needed to open.
        reducing: packages needed to write in less than fp32, by precision.
    """

    name: str
    suffix: str
    beside: tuple[str, ...]
    runtime: str
    opset: bool
    dynamics: tuple[Dynamic, ...]
    precisions: tuple[Precision, ...]
    writing: tuple[str, ...]
    running: tuple[str, ...]
    reducing: Mapping[Precision, tuple[str, ...]]

    def write(self, job: ExportJob, path: Path) -> dict[str, Any]:
        """Write the file, and others beside it where the format has several.

        Called with a path in a temporary folder that holds nothing else: all that is written there
        is kept or removed together.

        Returns:
            facts for the report: ``opset`` where there is one, ``notes`` where there are any.

        Raises:
            ExportError: PyTorch's exporter failed, or the format cannot hold the model.
        """
        ...

    def store(self, path: Path, key: str, text: str) -> None:
        """Add an entry to the metadata of a file that ``write`` has written; nothing else changes.

        Args:
            path: the file.
            key: not among ``job.metadata``.
            text: JSON.
        """
        ...

    def open(self, path: Path, threads: int | None = None) -> ExportedModel:
        """Open a file for calls.

        Args:
            path: the file.
            threads: CPU threads for one call; None leaves the runtime's choice.

        Raises:
            ValueError: not a file of this format, or it cannot be run here.
        """
        ...


_TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> None:
    """Add a target under its name."""
    _TARGETS[target.name] = target


def list_targets() -> list[str]:
    """Names of all registered targets, sorted."""
    return sorted(_TARGETS)


def target_named(name: str) -> Target:
    """The target registered under ``name``; ValueError names the known ones."""
    if name not in _TARGETS:
        hint = did_you_mean(name, _TARGETS)
        raise ValueError(f"no export target {name!r}{hint or ';'} known: {_known()}")
    return _TARGETS[name]


def target_for(path: str | os.PathLike[str], name: str | None = None) -> Target:
    """The target called ``name``, or the one that writes files with the suffix of ``path``.

    Raises:
        ValueError: no such target, or ``path`` does not end in its suffix.
    """
    path = Path(path)
    if name is not None:
        target = target_named(name)
        if path.suffix != target.suffix:
            raise ValueError(f"the {name} target writes {target.suffix} files, got {path}")
        return target
    for target in _TARGETS.values():
        if path.suffix == target.suffix:
            return target
    hint = did_you_mean(path.suffix, (target.suffix for target in _TARGETS.values()))
    raise ValueError(
        f"no export target for files ending in {path.suffix!r}, got {path}{hint or ';'} "
        f"known: {_known()}"
    )


def _known() -> str:
    return ", ".join(f"{name} ({_TARGETS[name].suffix})" for name in list_targets())


def open_exported(
    path: str | os.PathLike[str], *, target: str | None = None, threads: int | None = None
) -> ExportedModel:
    """Open an exported file: a function from images (B, 3, H, W) to named tensors.

    Files of earlier versions open too. A ``.pt2`` file can execute code when it is loaded, as
    ``torch.export.load`` says: open only those that you trust.

    Args:
        path: the file.
        target: name of its target; None goes by the suffix.
        threads: CPU threads for one call; None leaves the runtime's choice.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no target for the suffix, or the file cannot be run.
        ModuleNotFoundError: the runtime is not installed.
    """
    path = Path(path)
    chosen = target_for(path, target)
    if not path.exists():
        raise FileNotFoundError(f"no such exported file: {path}")
    require_packages(chosen.running, f"opening {chosen.suffix} files")
    return chosen.open(path, threads)


def missing_packages(names: Sequence[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def require_packages(names: Sequence[str], purpose: str) -> None:
    """Raise ModuleNotFoundError, with the remedy, unless all packages are installed."""
    missing = missing_packages(names)
    if missing:
        raise ModuleNotFoundError(
            f"{purpose} needs {', '.join(missing)}: pip install 'castling[{_extras(missing)}]'"
        )


def _extras(names: Sequence[str]) -> str:
    """The sets of optional requirements in which packages are; ExecuTorch's is a large one."""
    return ",".join(sorted({name if name == "executorch" else "export" for name in names}))


def packages_of(target: Target, precision: Precision = "fp32") -> tuple[str, ...]:
    """What writes and opens files of a target in a precision."""
    return (*target.writing, *target.running, *target.reducing.get(precision, ()))


def package_versions(target: Target, precision: Precision = "fp32") -> dict[str, str]:
    """Versions of PyTorch and of :func:`packages_of`."""
    return {name: version(name) for name in ("torch", *packages_of(target, precision))}


def _silence() -> Callable[[], None]:
    stack = ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    stack.callback(logging.disable, level)
    return stack.close


#: Silences PyTorch's exporters, which warn about graphs that are in order.
quiet_exporter = SharedSetting(_silence)
