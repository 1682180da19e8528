"""One model in several runtimes: eager, folded, compiled, and exported files.

Files are written by the targets of ``castling.export`` for one input shape. ONNX Runtime and
OpenVINO read the same ONNX file; both run on the CPU with as many threads as PyTorch, in float32.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from castling.export.outputs import NamedOutputs, name_outputs
from castling.export.target import (
    ExportError,
    ExportJob,
    missing_packages,
    require_packages,
    target_named,
)
from castling.profiling.whole import WholeModel
from castling.surgery import fold_
from castling.utils.modes import out_of_place


class _Exported(NamedTuple):
    """Names of the targets that write and open the file, and whether it runs on the CPU only."""

    writer: str
    reader: str
    cpu_only: bool


_EXPORTED = {
    "onnxruntime": _Exported("onnx", "onnx", cpu_only=True),
    "openvino": _Exported("onnx", "openvino", cpu_only=True),
    "program": _Exported("program", "program", cpu_only=False),
}
#: ``"folded"`` is eager after ``castling.fold_``, ``"program"`` a ``torch.export`` graph.
VARIANTS = ("eager", "folded", "compiled", *_EXPORTED)

Run = Callable[[], Any]


class UnavailableError(RuntimeError):
    """The runtime is not installed, or does not run on this device."""


def runtime_versions(variants: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Versions of the installed packages that run ``variants``; PyTorch's is not among them."""
    packages = [
        package
        for name in variants
        if name in _EXPORTED
        for package in target_named(_EXPORTED[name].reader).running
    ]
    missing = missing_packages(packages)
    return {package: version(package) for package in packages if package not in missing}


class Runtimes:
    """Ways to run one model on one batch of images.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), on the model's device.
        folder: for exported files, as long as this is in use.
    """

    def __init__(self, model: nn.Module, images: Tensor, folder: Path) -> None:
        self.model, self.images, self.folder = model, images, folder
        self._failures: dict[str, ExportError] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    def prepare(self, variant: str) -> Run:
        """A call that runs the model once; :meth:`named` reads its result.

        Raises:
            UnavailableError: the runtime is not installed, or does not run on this device.
            FoldError: folding would change what the model computes.
            RuntimeError: the model cannot be compiled or exported.
        """
        if variant in ("eager", "folded"):
            model, images = self.model if variant == "eager" else self.folded, self.images
            return lambda: model(images)
        if variant == "compiled":
            compiled, images = torch.compile(self.model, dynamic=False), self.images
            return lambda: compiled(images)
        exported = _EXPORTED[variant]
        writer, reader = target_named(exported.writer), target_named(exported.reader)
        try:
            require_packages((*writer.writing, *reader.running), f"the runtime {variant}")
        except ModuleNotFoundError as error:
            raise UnavailableError(str(error)) from error
        if exported.cpu_only and self.images.device.type != "cpu":
            raise UnavailableError(f"{variant} is measured on the CPU only")
        path = self._exported(exported.writer)
        try:
            opened = reader.open(path, threads=torch.get_num_threads())
        except ValueError as error:  # results are passed on: without the path of a folder of ours
            raise RuntimeError(str(error).replace(f"{self.folder}/", "")) from error
        self._names[variant] = opened.output_names
        return opened.runner(self.images)

    def named(self, variant: str, result: Any) -> dict[str, Tensor]:
        """The outputs in what a call of :meth:`prepare` returned."""
        if variant not in self._names:
            return name_outputs(result)
        names = self._names[variant]
        return {name: torch.as_tensor(result[index]) for index, name in enumerate(names)}

    @cached_property
    def folded(self) -> nn.Module:
        """A copy rewritten by ``castling.fold_``; FoldError where that would change its output."""
        twin = copy.deepcopy(self.model)
        # Decoding may fall out otherwise in the last bit.
        fold_(twin.model if isinstance(twin, WholeModel) else twin, self.images[:1])
        return twin

    def _exported(self, name: str) -> Path:
        """The file that a target writes; the first failure is raised again without a second try."""
        target = target_named(name)
        path = self.folder / f"model{target.suffix}"
        if name in self._failures:
            raise self._failures[name]
        if not path.exists():
            model = NamedOutputs(self.model)
            names = tuple(model(self.images))
            metadata = {"outputs": json.dumps(names)}
            job = ExportJob(model, self.images, names, "none", metadata)
            try:
                with out_of_place(self.model):
                    target.write(job, path)
            except ExportError as error:
                self._failures[name] = error
                raise
        return path


@contextmanager
def runtimes(model: nn.Module, images: Tensor) -> Iterator[Runtimes]:
    """:class:`Runtimes` with a folder of its own, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="castling-bench-") as folder:
        yield Runtimes(model, images, Path(folder))
