"""The operator ``castling::suppress`` in ONNX: ``NonMaxSuppression``, which every runtime has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators of castling's → functions that write them, as ``torch.onnx.export`` takes them."""
    from onnxscript import opset18 as op

    def suppress(
        boxes: Any, scores: Any, labels: Any, threshold: float, keep: int, num_classes: int
    ) -> Any:
        """See ``castling.heads.suppression``; inputs (B, N, 4), (B, N), (B, N)."""
        classes = op.Constant(value_ints=list(range(num_classes)))
        classes = op.Reshape(classes, op.Constant(value_ints=[1, num_classes, 1]))
        one = op.Constant(value_ints=[1])
        mine = op.Equal(op.Unsqueeze(labels, one), classes)
        zero = op.Constant(value_float=0.0)
        by_class = op.Where(mine, op.Unsqueeze(scores, one), zero)
        # Rows of (image, class, candidate); no more per class than are kept in all.
        rows = op.NonMaxSuppression(
            boxes,
            by_class,
            op.Constant(value_ints=[keep]),
            op.Constant(value_floats=[threshold]),
            op.Constant(value_floats=[0.0]),
        )
        places = op.Gather(rows, op.Constant(value_ints=[0, 2]), axis=1)
        values = op.GatherND(scores, places)
        left = op.ScatterND(op.Mul(scores, zero), places, values)
        kept, indices = op.TopK(left, op.Constant(value_ints=[keep]), axis=1)
        found = op.Cast(op.Greater(kept, zero), to=7)  # int64
        return op.Mul(indices, found), kept

    return {torch.ops.castling.suppress.default: suppress}
