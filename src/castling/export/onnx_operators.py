"""ONNX for castling's operators that are not decomposed into basic ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from castling.ops import suppression as suppression  # defines the operator


def translations() -> dict[Any, Callable[..., Any]]:
    """Operator → function that writes it, as ``torch.onnx.export`` takes them."""
    import onnx_ir
    from onnxscript import opset18 as op

    def suppress(boxes: Any, scores: Any, labels: Any, iou: float, classes: int, limit: int) -> Any:
        """ONNX suppresses within each row of (B, K, N): a candidate has a score in its class's."""
        axis, nothing = op.Constant(value_ints=[1]), op.Constant(value_float=0.0)
        known = onnx_ir.tensor(np.arange(classes, dtype=np.int64).reshape(1, classes, 1))
        own = op.Equal(op.Unsqueeze(labels, axis), op.Constant(value=known))
        chosen = op.NonMaxSuppression(
            boxes,
            op.Where(own, op.Unsqueeze(scores, axis), nothing),
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[0.0]),
        )
        # Rows (image, class, candidate), as many as are kept: marked in a tensor of fixed shape.
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        marked = op.ScatterND(op.Mul(scores, nothing), places, op.GatherND(scores, places))
        return op.TopK(marked, op.Constant(value_ints=[limit]), axis=1)

    return {torch.ops.castling.suppress.default: suppress}
