"""int8 OpenVINO graphs by NNCF, with its settings for transformers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from castling.export.onnx_parts import GraphParts
from castling.export.openvino_runtime import compile_openvino, read_openvino
from castling.utils.signal_stack import signal_stack_kept

#: Operators that multiply activations with weights, which are their second input.
_PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")
#: Batches on which both ways are compared.
_COMPARED = 8


def quantise_openvino(graph: bytes, parts: GraphParts, batches: Sequence[Tensor]) -> Any:
    """An OpenVINO model whose weight products are int8; see :func:`quantise_onnx`.

    Made twice, with and without SmoothQuant, which moves the range of activations into weights: it
    helps where single channels stand out and harms elsewhere. The one that is nearer to the model
    in float32 on the images is returned.

    Args:
        graph: an ONNX file's bytes.
        parts: of the graph.
        batches: images (B, 3, H, W) from which the range of every activation is taken.
    """
    expected = _outputs(read_openvino(graph), batches)
    made = [_quantised(read_openvino(graph), parts, batches, smooth) for smooth in (False, True)]
    errors = [
        sum(float(np.abs(a - b).sum()) for a, b in zip(expected, found, strict=True))
        for found in (_outputs(model, batches) for model in made)
    ]
    return made[0] if errors[0] <= errors[1] else made[1]


def _quantised(model: Any, parts: GraphParts, batches: Sequence[Tensor], smooth: bool) -> Any:
    with signal_stack_kept(), _quiet_nncf() as nncf:
        alphas = nncf.AdvancedSmoothQuantParameters() if smooth else _without_smoothing(nncf)
        return nncf.quantize(
            model,
            nncf.Dataset(batches, lambda images: images.numpy()),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=alphas),
            ignored_scope=nncf.IgnoredScope(names=_kept(model, parts), validate=False),
        )


def _without_smoothing(nncf: Any) -> Any:
    return nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)


def _outputs(model: Any, batches: Sequence[Tensor]) -> list[Any]:
    """Arrays of floating-point numbers that a model returns for some of the images."""
    compiled = compile_openvino(model)
    found = (array for batch in batches[:_COMPARED] for array in compiled(batch.numpy()).values())
    return [array for array in found if array.dtype.kind == "f"]


def _kept(model: Any, parts: GraphParts) -> list[str]:
    """Names of all operators that stay in float32.

    OpenVINO names an operator after the ONNX node that it comes from, and puts ``/WithoutBiases``
    behind the product of one that adds a bias as well.
    """
    fixed: set[str] = set()
    kept = []
    for operator in model.get_ordered_ops():
        name, kind = operator.get_friendly_name(), operator.get_type_name()
        sources = [value.get_node().get_friendly_name() for value in operator.input_values()]
        if kind == "Constant" or (sources and fixed.issuperset(sources)):
            fixed.add(name)
            continue
        product = kind in _PRODUCTS and sources[1] in fixed and sources[0] not in fixed
        if not product or name.split("/")[0] in parts.kernels:
            kept.append(name)
    return kept


@contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF, imported without its usage statistics, printing nothing."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # read on import: without it NNCF reports every call to its maker
    try:
        import nncf
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # progress bars
            yield nncf
    finally:
        logger.setLevel(level)
