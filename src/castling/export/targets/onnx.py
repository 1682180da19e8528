"""ONNX files, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from castling.export.bicubic import BicubicAsProducts
from castling.export.exported_model import ExportedModel
from castling.export.half import NOTE as HALF
from castling.export.half import to_half
from castling.export.onnx_operators import translations
from castling.export.onnx_parts import GraphParts, parts_of
from castling.export.onnx_sizes import read_sizes_off_tensors
from castling.export.outputs import INPUT
from castling.export.precision import Precision
from castling.export.quantise_onnx import NOTE as INT8
from castling.export.quantise_onnx import quantise_onnx
from castling.export.target import Dynamic, ExportError, ExportJob, quiet_exporter, register_target
from castling.utils.text import first_line

#: Key of ``job.shared``.
_SHARED = "onnx graph"


class OnnxTarget:
    """``torch.onnx`` to write, ONNX Runtime to open."""

    name = "onnx"
    suffix = ".onnx"
    beside: tuple[str, ...] = ()
    runtime = "ONNX Runtime"
    opset = True
    dynamics: tuple[Dynamic, ...] = ("all", "batch", "none")
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    writing: tuple[str, ...] = ("onnx", "onnxscript")
    running: tuple[str, ...] = ("onnxruntime",)
    reducing: Mapping[Precision, tuple[str, ...]] = {"fp16": ("onnxconverter_common",)}

    def write(self, job: ExportJob, path: Path) -> dict[str, Any]:
        """See ``Target.write``; ExportError where ``job.opset`` cannot be written."""
        import onnx

        graph = onnx_graph(job)
        proto = graph.proto
        notes: tuple[str, ...] = ()
        if job.precision == "fp16":
            proto, notes = to_half(proto, graph.parts), (HALF,)
        elif job.precision == "int8":
            proto, notes = quantise_onnx(proto, graph.parts, job.calibration), (INT8,)
        onnx.save(proto, path)
        return {"opset": graph.opset, "notes": notes}

    def store(self, path: Path, key: str, text: str) -> None:
        """See ``Target.store``."""
        import onnx

        proto = onnx.load(path)
        _store(proto, {key: text})
        onnx.save(proto, path)

    def open(self, path: Path, threads: int | None = None) -> ExportedModel:
        """See ``Target.open``."""
        return OnnxModel(path, threads)


class OnnxModel(ExportedModel):
    """An ONNX file in ONNX Runtime.

    Args:
        path: the file.
        threads: intra-operator threads; None leaves ONNX Runtime's choice.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ValueError(
                f"{path} is not an ONNX model that can be run: {first_line(error)}"
            ) from error
        images = session.get_inputs()[0]
        self.session, self.input_name = session, images.name
        super().__init__(
            path,
            OnnxTarget.name,
            session.get_modelmeta().custom_metadata_map,
            [side if isinstance(side, int) else None for side in images.shape],
            [output.name for output in session.get_outputs()],
        )

    def _bind(self, images: Tensor) -> Callable[[], Any]:
        run, inputs = self.session.run, {self.input_name: images.cpu().numpy()}
        return lambda: run(None, inputs)


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX model in memory.

    Attributes:
        proto: an ``onnx.ModelProto`` in float32, with its metadata.
        opset: its operator set.
        parts: of its graph, for other precisions.
    """

    proto: Any
    opset: int
    parts: GraphParts


def onnx_graph(job: ExportJob) -> OnnxGraph:
    """The model as ONNX in float32, traced once for all precisions; it must not be changed.

    Raises:
        ExportError: as of :func:`_trace`.
    """
    if _SHARED not in job.shared:
        job.shared[_SHARED] = _trace(job)
    graph: OnnxGraph = job.shared[_SHARED]
    return graph


def _trace(job: ExportJob) -> OnnxGraph:
    """Export and tidy up.

    Raises:
        ExportError: PyTorch's exporter failed or cannot write ``job.opset``.
    """
    try:
        with quiet_exporter(), BicubicAsProducts():
            program = torch.onnx.export(
                job.model,
                (job.images,),
                dynamo=True,
                dynamic_shapes=job.dynamic_shapes,
                input_names=[INPUT],
                output_names=list(job.outputs),
                opset_version=job.opset,
                custom_translation_table=translations(),
                verbose=False,
            )
    except Exception as error:
        cause = error.__cause__ or error
        raise ExportError(f"PyTorch's exporter to ONNX failed: {first_line(cause)}") from error
    assert program is not None
    proto = program.model_proto
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if job.opset is not None and opset != job.opset:
        raise ExportError(
            f"PyTorch's exporter cannot write this model in opset {job.opset}, it wrote {opset}; "
            f"ask for {opset}, or for none"
        )
    parts = parts_of(proto, job.model)
    read_sizes_off_tensors(proto)
    # Inferred shapes of inner values carry the exporter's symbols, on which quantisers fail.
    del proto.graph.value_info[:]
    # The exporter stores a stack trace with the paths of this machine in every node.
    for node in proto.graph.node:
        del node.metadata_props[:]
    _name_dimensions(proto)
    _store(proto, job.metadata)
    return OnnxGraph(proto, opset, parts)


def _name_dimensions(proto: Any) -> None:
    """Call the free dimensions batch, height and width instead of the exporter's symbols."""
    names = {}
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    for dimension, name in zip(dimensions, ("batch", "channels", "height", "width"), strict=True):
        if dimension.dim_param:
            names[dimension.dim_param] = name
    for value in (*proto.graph.input, *proto.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]


def _store(proto: Any, metadata: Mapping[str, str]) -> None:
    for key, text in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, text


register_target(OnnxTarget())
