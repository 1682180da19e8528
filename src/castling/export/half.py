"""ONNX graphs in float16, all that sums over tokens in float32.

Linear attention adds up N products of keys and values: with thousands of tokens such sums leave the
range of float16 (65,504) where softmax attention, a weighted mean, does not. Attention between its
projections therefore stays in float32, as do normalisations and means.
"""

from __future__ import annotations

import warnings
from collections.abc import Set
from typing import Any

from castling.export.onnx_parts import GraphParts

#: Operators that add up many numbers or divide by such a sum.
_SUMS = (
    "BatchNormalization",
    "CumSum",
    "Einsum",
    "GlobalAveragePool",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LogSoftmax",
    "LpNormalization",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "RMSNormalization",
    "Softmax",
)

#: For the report: ONNX Runtime has float16 kernels for few operators on a CPU.
NOTE = (
    "float16, attention and normalisations in float32; proved on CPU only: ONNX Runtime computes "
    "most operators in float32 there, so that an overflow on a GPU would not show"
)


def to_half(proto: Any, parts: GraphParts) -> Any:
    """A copy of an ONNX model in float16, its input and outputs in float32.

    Args:
        proto: an ``onnx.ModelProto`` in float32, without inferred shapes.
        parts: of its graph; the sensitive ones stay in float32.
    """
    import onnx
    from onnxconverter_common import float16

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    operators = {*float16.DEFAULT_OP_BLOCK_LIST, *_SUMS}
    _separate_weights(copy, operators, parts.sensitive)
    with warnings.catch_warnings():
        # Constants beyond float16 are cut to its range, which the comparison would notice.
        warnings.simplefilter("ignore")
        made = float16.convert_float_to_float16(
            copy,
            keep_io_types=True,
            op_block_list=sorted(operators),
            node_block_list=sorted(parts.sensitive),
        )
    del made.graph.value_info[:]
    return made


def _separate_weights(proto: Any, operators: Set[str], names: Set[str]) -> None:
    """Give nodes that stay in float32 weights of their own.

    The exporter stores equal weights once, and the converter gives each one type for all its nodes.
    """
    weights = {weight.name: weight for weight in proto.graph.initializer}
    copied: set[str] = set()
    for node in proto.graph.node:
        if node.op_type not in operators and node.name not in names:
            continue
        for index, name in enumerate(node.input):
            if name in weights:
                node.input[index] = own = f"{name}::fp32"
                if own not in copied:
                    copied.add(own)
                    weight = proto.graph.initializer.add()
                    weight.CopyFrom(weights[name])
                    weight.name = own
    read = {name for node in proto.graph.node for name in node.input}
    read.update(output.name for output in proto.graph.output)
    kept = [weight for weight in proto.graph.initializer if weight.name in read]
    proto.graph.ClearField("initializer")
    proto.graph.initializer.extend(kept)
