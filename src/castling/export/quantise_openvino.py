"""int8 OpenVINO graphs by NNCF, with its settings for transformers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from castling.export.onnx_parts import GraphParts

#: Operators that multiply activations with weights, which are their second input.
_PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")


def quantise_openvino(model: Any, parts: GraphParts, batches: Sequence[Tensor]) -> Any:
    """An OpenVINO model whose weight products are int8; see :func:`quantise_onnx`.

    Args:
        model: an ``openvino.Model`` read from the ONNX graph that ``parts`` describes.
        parts: of that graph.
        batches: images (B, 3, H, W) from which the range of every activation is taken.
    """
    with _quiet_nncf() as nncf:
        return nncf.quantize(
            model,
            nncf.Dataset(batches, lambda images: images.numpy()),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=_kept(model, parts), validate=False),
        )


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
