"""int8 ONNX graphs by ONNX Runtime: quantise and dequantise around weight products, per channel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from castling.export.onnx_parts import PRODUCTS, GraphParts
from castling.export.outputs import INPUT
from castling.export.target import quiet_exporter

#: For the report.
NOTE = (
    "products with weights are int8, calibrated at one size; attention kernels, products of two "
    "activations and everything else are float32"
)


def quantise_onnx(proto: Any, parts: GraphParts, batches: Sequence[Tensor]) -> Any:
    """A copy of an ONNX model whose weight products are int8.

    Products of two activations and everything inside attention kernels stay in float32: their
    ranges change from image to image and with the number of tokens.

    Args:
        proto: an ``onnx.ModelProto`` in float32, without inferred shapes, on which quantisation
            fails.
        parts: of its graph.
        batches: images (B, 3, H, W) from which the range of every activation is taken.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self.left, None)
            return None if images is None else {INPUT: images.numpy()}

    with tempfile.TemporaryDirectory() as folder, quiet_exporter():
        path = Path(folder, "int8.onnx")
        quantization.quantize_static(
            _with_folded_weights(proto),
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_quantize=sorted(parts.weight_products),
            per_channel=True,
        )
        made = onnx.load(path)
    del made.graph.value_info[:]
    return made


def _with_folded_weights(proto: Any) -> Any:
    """A copy in which transposed weights are stored as such: only stored ones are quantised."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    stored = {weight.name: weight for weight in copy.graph.initializer}
    kept = []
    for node in copy.graph.node:
        weight = stored.get(node.input[0]) if node.op_type == "Transpose" else None
        if weight is None:
            kept.append(node)
            continue
        axes = next((list(each.ints) for each in node.attribute if each.name == "perm"), None)
        array = numpy_helper.to_array(weight).transpose(axes)
        copy.graph.initializer.append(numpy_helper.from_array(array.copy(), node.output[0]))
    read = {name for node in kept for name in node.input} | {o.name for o in copy.graph.output}
    weights = [weight for weight in copy.graph.initializer if weight.name in read]
    copy.graph.ClearField("node")
    copy.graph.ClearField("initializer")
    copy.graph.node.extend(kept)
    copy.graph.initializer.extend(weights)
    return copy
