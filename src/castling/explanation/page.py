"""The page of an explanation: images first, then depth, receptive fields and the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from castling.explanation.depth_plots import depth_plot, points, shares_plot
from castling.explanation.drawing import (
    activation_overlay,
    attention_overlay,
    field_picture,
    picture,
)
from castling.explanation.records import ImageExplanation, ModelExplanation
from castling.explanation.text import COLUMNS, layer_row, mean
from castling.profiling.page import (
    Page,
    details,
    figures,
    paragraph,
    strip,
    subheading,
    table,
)
from castling.profiling.report import new_page
from castling.utils.text import percent

#: Layers whose attention is drawn over each image, and receptive fields in a row.
_MAPS, _FIELDS = 4, 6
#: Figure → (label of the axis, caption).
_DEPTH: dict[str, tuple[str, str]] = {
    "entropy": (
        "entropy, in parts of ln N",
        "1: every token counts the same. Low: few tokens count.",
    ),
    "effective_rank": (
        "effective rank",
        "How many independent patterns the matrix holds; at most the number of tokens.",
    ),
    "distance": (
        "mean distance (pixels)",
        "How far the patches attended to lie from the one that asks.",
    ),
    "negative_mass": (
        "negative mass",
        "Share of negative weights. An average, such as softmax, has none.",
    ),
}


def page_of(model: ModelExplanation, teacher: ModelExplanation | None, pictures: Tensor) -> Page:
    """The page, not yet written; arguments as the fields of ``Explanation``."""
    models = [model] if teacher is None else [model, teacher]
    height, width = pictures.shape[-2:]
    subtitle = (
        f"{_attentions(model)}; {model.parameters:,} parameters; {len(pictures)} images of "
        f"{height}×{width} pixels"
    )
    if teacher is not None:
        subtitle += f". Beside it {teacher.name}: {_attentions(teacher)}"
    page = new_page(f"What {model.name} attends to", f"{subtitle}.", _headline(models))
    _add_images(page, models, pictures)
    _add_depth(page, models)
    _add_shares(page, models)
    _add_fields(page, models)
    _add_figures(page, models)
    return page


def _attentions(model: ModelExplanation) -> str:
    counts = Counter(model.attentions.values())
    return ", ".join(f"{count} × {name}" for name, count in counts.items())


def _headline(models: Sequence[ModelExplanation]) -> str:
    """Entropy and receptive field of the model, the teacher's in brackets."""
    entropies = [_over_layers(model, "entropy") for model in models]
    areas = [model.fields[-1].half_area if model.fields else None for model in models]
    parts = []
    if entropies[0] is not None:
        parts.append(f"the entropy of attention is {_beside(entropies)} of that of a uniform one")
    if areas[0] is not None:
        where = f"{_beside(areas)} of the image"
        parts.append(f"half of the last layer’s receptive field lies in {where}")
    said = "; ".join(parts)
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _beside(shares: Sequence[float | None]) -> str:
    """A share, and the teacher's."""
    first, *others = [percent(share, 0) for share in shares if share is not None]
    return f"{first} (teacher: {others[0]})" if others else first


def _over_layers(model: ModelExplanation, figure: str) -> float | None:
    values = [mean(getattr(layer, figure)) for layer in model.layers if getattr(layer, figure)]
    return sum(values) / len(values) if values else None


def _add_images(page: Page, models: Sequence[ModelExplanation], pictures: Tensor) -> None:
    blocks = []
    for number, pixels in enumerate(pictures):
        shown = picture(pixels)
        blocks.append(subheading(models[0].images[number].name))
        rows = [_row(shown, model, model.images[number]) for model in models]
        blocks += [strip(row, max(map(len, rows))) for row in rows]
    page.add(
        "Images",
        *blocks,
        note="Class activation (Grad-CAM) shows which parts of the image speak for the predicted "
        "class. Rollout multiplies the attention of all layers. The others show single layers: the "
        "weights that the class token, or the central patch where there is none, gives to the "
        "patches, averaged over heads; yellow where they are large, and all over where they are "
        "equal.",
    )


def _row(
    shown: Image.Image, model: ModelExplanation, seen: ImageExplanation
) -> list[tuple[Image.Image, str, str]]:
    """(picture, line, small line) of one image and model."""
    said = "" if seen.probability is None else f"{seen.label}, {percent(seen.probability, 0)}"
    row = [(shown, model.name, said)]
    if seen.activation is not None:
        what = seen.label if seen.activation.any() else "nothing speaks for it"
        row.append((activation_overlay(shown, seen.activation), "class activation", what))
    if seen.rollout is not None:
        row.append((attention_overlay(shown, seen.rollout), "rollout", "all layers"))
    attentions = model.attentions
    for name in _spread(list(seen.query), _MAPS):
        row.append((attention_overlay(shown, seen.query[name]), name, attentions[name]))
    return row


def _add_depth(page: Page, models: Sequence[ModelExplanation]) -> None:
    plots = []
    for figure, (label, caption) in _DEPTH.items():
        found = {model.name: points(model, figure) for model in models}
        if not any(found.values()) or (
            figure == "negative_mass"
            and not any(max(heads) > 0 for each in found.values() for _, heads in each)
        ):
            continue
        plots.append((depth_plot(found, label), caption))
    if plots:
        page.add(
            "Over depth",
            figures(plots),
            note="A dot for each head, a line through their means; the kernel's matrix, averaged "
            "over the images.",
        )


def _add_shares(page: Page, models: Sequence[ModelExplanation]) -> None:
    """Where some output does not come from the kernel."""
    plots = []
    for model in models:
        if any(mean(layer.kernel_share) < 1 for layer in model.layers):
            plots.append((shares_plot(model), model.name))
    if plots:
        page.add(
            "Parts of the output",
            figures(plots),
            note="Norms of what the kernel, the local residual (a convolution of the values) and "
            "the auxiliary softmax add to the output, in parts of their sum.",
        )


def _add_fields(page: Page, models: Sequence[ModelExplanation]) -> None:
    blocks = []
    for model in models:
        if model.fields:
            if len(models) > 1:
                blocks.append(subheading(model.name))
            row = [
                (field_picture(each.field), each.layer, f"half in {percent(each.half_area, 0)}")
                for each in _spread(model.fields, _FIELDS)
            ]
            blocks.append(strip(row, _FIELDS))
    if blocks:
        page.add(
            "Effective receptive field",
            *blocks,
            note="How strongly each pixel moves the central position of an attention’s output, all "
            "layers before it included: mean magnitude of the gradient, bright where it is large. "
            "“Half in 10 %” means that a tenth of the pixels hold half of it.",
        )


def _add_figures(page: Page, models: Sequence[ModelExplanation]) -> None:
    blocks = []
    for model in models:
        if len(models) > 1:
            blocks.append(subheading(model.name))
        if model.layers:
            blocks.append(table(COLUMNS, [layer_row(layer) for layer in model.layers]))
        noted = {layer.name: layer.note for layer in model.layers if layer.note}
        for title, entries in (("no matrix", model.missing), ("note", noted)):
            if entries:
                blocks.append(table(["layer", title], entries.items()))
        blocks += [paragraph(f"{note[:1].upper()}{note[1:]}.") for note in model.notes]
    blocks.append(details("How these are computed", *_METHOD))
    page.add("Figures", *blocks, note="Means over heads and images.")


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of them, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


_METHOD = (
    paragraph(
        "Matrix: A kernel that is linear in its values prints its matrix A when the values are the "
        "identity (“exact”). Where the kernel divides its output rows by their norm, A is that at "
        "the present norm (“linearised”). Each matrix was multiplied with the values and compared "
        "with what the layer computed. Local residual and auxiliary softmax are not in A."
    ),
    paragraph(
        "With p = |A| / Σ|A| by rows: entropy −Σ p ln p / ln N; distance Σ p·‖x − x′‖ among "
        "patches; own token p of a token’s own value; negative mass Σ|A⁻| / Σ|A|. Effective rank: "
        "exp of the entropy of the singular values."
    ),
    paragraph(
        "Class activation: Grad-CAM at the input of the last attention. Rollout: product of "
        "½·I + ½·(mean of p over heads)."
    ),
)
