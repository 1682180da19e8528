"""An explanation as lines of text."""

from __future__ import annotations

from castling.explanation.records import LayerExplanation, ModelExplanation
from castling.profiling.formatting import aligned
from castling.surgery.linearize_report import grouped
from castling.utils.text import percent

#: Headings of a table of layers.
COLUMNS = (
    *("layer", "attention", "queries × keys", "entropy", "rank", "distance", "negative"),
    *("own token", "kernel / local / auxiliary", "map"),
)


def layer_row(layer: LayerExplanation) -> list[str]:
    """One row under :data:`COLUMNS`, means over heads."""
    shares = (layer.kernel_share, layer.local_share, layer.auxiliary_share)
    return [
        layer.name,
        layer.attention,
        f"{layer.queries} × {layer.keys}",
        f"{mean(layer.entropy):.2f}",
        f"{mean(layer.effective_rank):.1f}",
        "–" if layer.distance is None else f"{mean(layer.distance):.0f} px",
        percent(mean(layer.negative_mass), 0),
        "–" if layer.own_weight is None else percent(mean(layer.own_weight), 0),
        " / ".join(f"{100 * mean(share):.0f}" for share in shares) + " %",
        "exact" if layer.exact else "linearised",
    ]


def mean(values: tuple[float, ...]) -> float:
    """Over heads."""
    return sum(values) / len(values)


def model_lines(model: ModelExplanation) -> list[str]:
    """A table of the layers, and what is missing."""
    count = len(model.layers) + len(model.missing)
    lines = [f"{model.name}: {len(model.layers)} of {count} attentions have a matrix"]
    if model.layers:
        lines += aligned(COLUMNS, [layer_row(layer) for layer in model.layers])
    if model.fields:
        last = model.fields[-1]
        area = f"{percent(last.half_area, 0)} of the image"
        lines.append(f"half of the receptive field of {last.layer}: {area}")
    noted = {layer.name: layer.note for layer in model.layers if layer.note}
    lines += [grouped(noted)] if noted else []
    lines += [f"no matrix of {grouped(model.missing)}"] if model.missing else []
    return lines + [f"note: {note}" for note in model.notes]
