"""One model in several runtimes: eager, folded, compiled, and outside of PyTorch.

ONNX Runtime and OpenVINO read the same file, exported for one shape; both run on the CPU with as
many threads as PyTorch, in float32.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from castling.surgery import fold_

#: ``"folded"`` is eager too, after ``castling.fold_``.
VARIANTS = ("eager", "folded", "compiled", "onnxruntime", "openvino")
_FILE = "model.onnx"
#: What a runtime needs installed.
_PACKAGES = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}

Run = Callable[[], Any]


class UnavailableError(RuntimeError):
    """A runtime that is not installed, or does not run on this device."""


def runtime_versions(variants: tuple[str, ...] | list[str]) -> dict[str, str]:
    """The versions of the runtimes among ``variants`` that are installed."""
    return {
        name: version(name)
        for name in variants
        if name in _PACKAGES and importlib.util.find_spec(name) is not None
    }


class Runtimes:
    """Ways to run one model on one batch of images.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), on the model's device.
        folder: where an exported file may lie while this is in use.
    """

    def __init__(self, model: nn.Module, images: Tensor, folder: Path) -> None:
        self.model, self.images, self.folder = model, images, folder
        self._failure: Exception | None = None

    def prepare(self, variant: str) -> Run:
        """A call that runs the model once; its result is a tensor or an array.

        Raises:
            UnavailableError: the runtime is not there.
            FoldError: folding would change what the model computes.
            RuntimeError: the model cannot be compiled or exported.
        """
        if variant in ("eager", "folded"):
            model, images = self.model if variant == "eager" else self.folded, self.images
            return lambda: model(images)
        if variant == "compiled":
            compiled, images = torch.compile(self.model, dynamic=False), self.images
            return lambda: compiled(images)
        missing = [name for name in _PACKAGES[variant] if not importlib.util.find_spec(name)]
        if missing:
            raise UnavailableError(
                f"{', '.join(missing)} not installed: pip install 'castling[export]'"
            )
        if self.images.device.type != "cpu":
            raise UnavailableError(f"{variant} is measured on the CPU only")
        path = self._exported()
        array = self.images.numpy()
        return _onnxruntime(path, array) if variant == "onnxruntime" else _openvino(path, array)

    @cached_property
    def folded(self) -> nn.Module:
        """A copy rewritten by ``castling.fold_``; FoldError where that would change its output."""
        twin = copy.deepcopy(self.model)
        fold_(twin, self.images[:1])
        return twin

    def _exported(self) -> Path:
        path = self.folder / _FILE
        if self._failure is not None:
            raise RuntimeError(str(self._failure)) from self._failure
        if not path.exists():
            try:
                with _quiet():
                    program = torch.onnx.export(
                        self.model,
                        (self.images,),
                        dynamo=True,
                        input_names=["images"],
                        output_names=["output"],
                        verbose=False,
                    )
                assert program is not None
                program.save(str(path))
            except Exception as error:
                lines = str(error.__cause__ or error).strip().splitlines()
                self._failure = RuntimeError(f"the export to ONNX failed: {lines[0]}")
                raise self._failure from error
        return path


@contextmanager
def runtimes(model: nn.Module, images: Tensor) -> Iterator[Runtimes]:
    """:class:`Runtimes` with a folder of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="castling-bench-") as folder:
        yield Runtimes(model, images, Path(folder))


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about things that are in order."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _onnxruntime(path: Path, images: Any) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})[0]


def _openvino(path: Path, images: Any) -> Run:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda: request.infer([images], share_inputs=True)[0]
