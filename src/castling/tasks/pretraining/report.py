"""What a report shows of pre-training: images, what was hidden of them, what was made of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from castling.tasks.reporting import Example, ReportExamples, ReportPart, ReportTable

COLUMNS = ("loss",)
EXAMPLES = 12
_QUANTILES = (("lowest", 0.0), ("a quarter below", 0.25), ("median", 0.5))
_UPPER = (("a quarter above", 0.75), ("highest", 1.0))


def choose_examples(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Images from the lowest to the highest loss, evenly spaced."""
    order = sorted(range(len(rows)), key=lambda index: float(rows[index]["loss"]))
    places = np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int)
    return [order[place] for place in dict.fromkeys(places.tolist())]


def report_parts(rows: Sequence[Mapping[str, str]]) -> list[ReportPart]:
    """How the loss is spread over the images, and examples.

    Args:
        rows: of ``predictions.csv``.
    """
    if not rows:
        return []
    losses = np.array([float(row["loss"]) for row in rows])
    parts: list[ReportPart] = [
        ReportTable(
            title="Loss of single images",
            head=("", "loss"),
            rows=tuple(
                (name, f"{np.quantile(losses, share):.4f}")
                for name, share in (*_QUANTILES, *_UPPER)
            ),
        )
    ]
    shown = sorted((row for row in rows if row.get("example")), key=lambda row: float(row["loss"]))
    if shown:
        parts.append(
            ReportExamples(
                title="What the model makes of images",
                examples=tuple(map(_example, shown)),
                note="From the lowest loss to the highest. Of a reconstruction only what is masked "
                "is the model's; mean and contrast of patches are the true ones where the model "
                "learns normalised patches.",
                large=True,
            )
        )
    return parts


def _example(row: Mapping[str, str]) -> Example:
    loss = f"loss {float(row['loss']):.4f}"
    return Example(file=row["example"], text=loss, detail="", name=row["name"], right=True)
