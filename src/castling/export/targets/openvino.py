"""OpenVINO's intermediate representation: a graph (``.xml``) and its weights (``.bin``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from torch import Tensor

from castling.export.exported_model import ExportedModel
from castling.export.openvino_runtime import compile_openvino, read_openvino
from castling.export.precision import Precision
from castling.export.quantise_onnx import NOTE as INT8
from castling.export.quantise_openvino import quantise_openvino
from castling.export.target import Dynamic, ExportJob, register_target
from castling.export.targets.onnx import onnx_graph
from castling.utils.files import parse_json
from castling.utils.text import first_line

#: For the report.
_HALF = (
    "weights are stored in float16 and computed with in float32; proved on CPU only: devices that "
    "compute in float16 can overflow"
)
#: Section of the file's runtime information that holds the metadata.
_SECTION = "castling"


class OpenVINOTarget:
    """Written from ONNX; what is not int8 is computed on the CPU in float32."""

    name = "openvino"
    suffix = ".xml"
    beside: tuple[str, ...] = (".bin",)
    runtime = "OpenVINO"
    opset = True
    dynamics: tuple[Dynamic, ...] = ("all", "batch", "none")
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    writing: tuple[str, ...] = ("onnx", "onnxscript", "openvino")
    running: tuple[str, ...] = ("openvino",)
    reducing: Mapping[Precision, tuple[str, ...]] = {"int8": ("nncf",)}

    def write(self, job: ExportJob, path: Path) -> dict[str, Any]:
        """See ``Target.write``; the weights go beside ``path``, ending in ``.bin``."""
        import openvino

        graph = onnx_graph(job)
        notes: tuple[str, ...] = ()
        text = graph.proto.SerializeToString()

        if job.precision == "int8":
            model, notes = quantise_openvino(text, graph.parts, job.calibration), (INT8,)
        else:
            model = read_openvino(text)
            notes = (_HALF,) if job.precision == "fp16" else ()
        model.set_rt_info(json.dumps(dict(job.metadata), ensure_ascii=False), [_SECTION])
        openvino.save_model(model, path, compress_to_fp16=job.precision == "fp16")
        return {"opset": graph.opset, "notes": notes}

    def store(self, path: Path, key: str, text: str) -> None:
        """See ``Target.store``; only the graph's file holds metadata."""
        tree = ElementTree.parse(path)
        entry = tree.find(f"rt_info/{_SECTION}")
        assert entry is not None, f"{path} was not written by this target"
        metadata = {**parse_json(entry.attrib["value"]), key: text}
        entry.attrib["value"] = json.dumps(metadata, ensure_ascii=False)
        tree.write(path, encoding="utf-8", xml_declaration=True)

    def open(self, path: Path, threads: int | None = None) -> ExportedModel:
        """See ``Target.open``; reads ONNX files too."""
        return OpenVINOModel(path, threads)


class OpenVINOModel(ExportedModel):
    """A file in OpenVINO, on the CPU in float32.

    Args:
        path: an ``.xml`` file with its ``.bin`` beside it, or an ``.onnx`` file.
        threads: of one call, in one stream; None leaves OpenVINO's choice.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            model = read_openvino(path)
            compiled = compile_openvino(model, threads)
        except Exception as error:
            raise ValueError(
                f"{path} is not an OpenVINO model that can be run: {first_line(error)}"
            ) from error
        self._request = compiled.create_infer_request()
        stored = model.get_rt_info([_SECTION]).value if model.has_rt_info([_SECTION]) else "{}"
        metadata = parse_json(stored)
        expected = parse_json(metadata.get("outputs", "[]"))
        super().__init__(
            path,
            OpenVINOTarget.name,
            metadata,
            [
                None if side.is_dynamic else side.get_length()
                for side in model.input().partial_shape
            ],
            [_output_name(output, expected) for output in model.outputs],
        )

    def _bind(self, images: Tensor) -> Callable[[], Any]:
        infer, inputs = self._request.infer, [images.cpu().numpy()]
        return lambda: infer(inputs, share_inputs=True)


def _output_name(output: Any, expected: list[str]) -> str:
    """OpenVINO gives an output every name that it had on its way through the graph."""
    names = output.get_names()
    return next((name for name in expected if name in names), output.any_name)


register_target(OpenVINOTarget())
