"""ExecuTorch programs (``.pte``): for phones and embedded processors, computed by XNNPACK.

One image of one size: ExecuTorch plans the memory of every tensor when the file is written.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from castling.export.bicubic import BicubicAsProducts
from castling.export.exported_model import ExportedModel
from castling.export.precision import Precision
from castling.export.target import (
    Dynamic,
    ExportError,
    ExportJob,
    quiet_exporter,
    register_target,
)
from castling.ops.backends import attention_backend
from castling.utils.files import parse_json
from castling.utils.text import first_line

#: Of the archive at the end of the file, with an entry for each key of the metadata. The format
#: itself holds no text, and its runtime reads no further than the program.
_FOLDER = "castling/"


class ExecuTorchTarget:
    """Lowered to XNNPACK where it can compute; the rest in ExecuTorch's portable operators."""

    name = "executorch"
    suffix = ".pte"
    beside: tuple[str, ...] = ()
    runtime = "ExecuTorch"
    opset = False
    dynamics: tuple[Dynamic, ...] = ("none",)
    precisions: tuple[Precision, ...] = ("fp32",)
    writing: tuple[str, ...] = ("executorch",)
    running: tuple[str, ...] = ("executorch",)
    reducing: Mapping[Precision, tuple[str, ...]] = {}

    def write(self, job: ExportJob, path: Path) -> dict[str, Any]:
        """See ``Target.write``; attention is written in basic operators."""
        if job.images.device.type != "cpu":
            raise ExportError(
                f"ExecuTorch's exporter wants a model on the CPU, this one is on "
                f"{job.images.device}: export model.cpu()"
            )
        try:
            # Silent while it is imported too: torchao warns about PyTorch's newer functions.
            with quiet_exporter(), _root_handlers_kept():
                from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
                    XnnpackPartitioner,
                )
                from executorch.exir import to_edge_transform_and_lower

                with attention_backend("naive"), BicubicAsProducts():
                    program = torch.export.export(job.model, (job.images,), strict=False)
                lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
                path.write_bytes(lowered.to_executorch().buffer)
        except Exception as error:
            raise ExportError(f"ExecuTorch's exporter failed: {first_line(error)}") from error
        for key, text in job.metadata.items():
            self.store(path, key, text)
        return {"notes": (_shares(lowered.exported_program().graph),)}

    def store(self, path: Path, key: str, text: str) -> None:
        """See ``Target.store``."""
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_FOLDER + key, text)

    def open(self, path: Path, threads: int | None = None) -> ExportedModel:
        """See ``Target.open``; threads are set for all files of the process."""
        return ExecuTorchModel(path, threads)


class ExecuTorchModel(ExportedModel):
    """A program in ExecuTorch's runtime, on the CPU.

    Args:
        path: the file.
        threads: of XNNPACK, for the whole process; None leaves them as they are.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        with quiet_exporter(), _root_handlers_kept():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
        if threads is not None:
            portable_lib._unsafe_reset_threadpool(threads)
        try:
            # Both stay alive with the method, whose memory they own.
            self._program = Runtime.get().load_program(path)
            self._method = self._program.load_method("forward")
        except RuntimeError as error:
            raise ValueError(
                f"{path} is not an ExecuTorch program that can be run: {first_line(error)}"
            ) from error
        metadata = _metadata(path)
        if self._method is None or "outputs" not in metadata:
            raise ValueError(f"{path} was not written by castling.export: it names no outputs")
        super().__init__(
            path,
            ExecuTorchTarget.name,
            metadata,
            self._method.metadata.input_tensor_meta(0).sizes(),
            parse_json(metadata["outputs"]),
        )

    def _bind(self, images: Tensor) -> Callable[[], Any]:
        execute, inputs = self._method.execute, [images.cpu()]
        return lambda: execute(inputs)


@contextmanager
def _root_handlers_kept() -> Iterator[None]:
    """Parts of ExecuTorch call ``logging.basicConfig`` as they are imported."""
    before = list(logging.root.handlers)
    try:
        yield
    finally:
        for handler in [each for each in logging.root.handlers if each not in before]:
            logging.root.removeHandler(handler)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removeprefix(_FOLDER): archive.read(name).decode()
                for name in archive.namelist()
                if name.startswith(_FOLDER)
            }
    except zipfile.BadZipFile:
        return {}


def _shares(graph: torch.fx.Graph) -> str:
    """How much XNNPACK computes: the rest runs one by one in plain, slower operators."""
    calls = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    delegated = sum("executorch_call_delegate" in name for name in calls)
    others = len(calls) - delegated - sum("getitem" in name for name in calls)
    return (
        f"XNNPACK computes {delegated} parts of the model; between them {others} operators "
        "run in ExecuTorch's portable ones"
    )


register_target(ExecuTorchTarget())
