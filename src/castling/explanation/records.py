"""What is found of one layer, one image and one model."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from castling.explanation.figures import Grid

EXACT = "exact: the kernel is linear in its values"
LINEARISED = "linearised: each row divided by the norm of its present output"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerExplanation:
    """Figures of one attention, averaged over images; a tuple holds one value per head.

    Formulas: :mod:`castling.explanation.figures`. They are of the kernel's matrix, prefix tokens
    included, unless said otherwise.

    Attributes:
        name: of the layer in the model.
        attention: name of its attention.
        grid: (h, w) of its keys behind the prefix; None where nobody knows it.
        queries: N_q.
        keys: N_k.
        prefix: class, distillation and register tokens in front.
        exact: whether the matrix gives the output for any values, not for the present ones alone.
        entropy: of the rows' magnitudes, in [0, 1] of that of a uniform row.
        effective_rank: of the matrix, at most min(N_q, N_k).
        distance: mean distance attended over, among patches alone, in pixels; None without a grid.
        negative_mass: share of negative entries in the sum of magnitudes, in [0, 1].
        own_weight: weight of a token's own value in [0, 1]; None where queries stand elsewhere.
        kernel_share: the kernel's share of the output: norms of the parts, in parts of their sum.
        local_share: that of the local residual.
        auxiliary_share: that of the auxiliary softmax.
        note: what to bear in mind; empty for nothing.
    """

    name: str
    attention: str
    grid: Grid | None
    queries: int
    keys: int
    prefix: int
    exact: bool
    entropy: tuple[float, ...]
    effective_rank: tuple[float, ...]
    distance: tuple[float, ...] | None
    negative_mass: tuple[float, ...]
    own_weight: tuple[float, ...] | None
    kernel_share: tuple[float, ...]
    local_share: tuple[float, ...]
    auxiliary_share: tuple[float, ...]
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReceptiveField:
    """How strongly each pixel moves the central position of a layer's output.

    Attributes:
        layer: its name.
        field: (H, W), mean over images of |∂ Σ_c y_c / ∂ pixel| summed over colours.
        half_area: smallest share of the pixels that holds half of it, in [0, 1].
    """

    layer: str
    field: Tensor
    half_area: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageExplanation:
    """What the model made of one image.

    Attributes:
        name: of the image.
        predicted: number of the predicted class; None for a model without classes.
        label: its name.
        probability: softmax of its score, in [0, 1].
        activation: (h, w) Grad-CAM of the predicted class in [0, 1], at ``activation_layer``.
        activation_layer: the attention whose input it is of; empty without a map.
        query: layer → (h, w) weights of the patches for the first prefix token, or for the central
            patch where there is none, averaged over heads, of layers with a square grid of keys.
        rollout: (h, w) attention rollout through all layers for the same query; None where a layer
            has no matrix or other tokens.
    """

    name: str
    predicted: int | None = None
    label: str = ""
    probability: float | None = None
    activation: Tensor | None = None
    activation_layer: str = ""
    query: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    rollout: Tensor | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelExplanation:
    """One model on all images.

    Attributes:
        name: of the model.
        parameters: how many numbers it has learned.
        attentions: layer → name of its attention, in order of execution.
        layers: those with a matrix, in order of execution.
        missing: layer → why it has no matrix.
        fields: effective receptive fields, in order of execution.
        images: in the order given.
        notes: what could not be told of the model, and why.
    """

    name: str
    parameters: int
    attentions: dict[str, str]
    layers: tuple[LayerExplanation, ...]
    missing: dict[str, str]
    fields: tuple[ReceptiveField, ...]
    images: tuple[ImageExplanation, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Figures as plain values; of maps only the class activation, whose cells are few."""
        images = []
        for each in self.images:
            heat = each.activation
            images.append(
                {
                    "name": each.name,
                    "predicted": each.predicted,
                    "label": each.label,
                    "probability": each.probability,
                    "activation_layer": each.activation_layer,
                    "activation": None if heat is None else _rounded(heat),
                }
            )
        return {
            "name": self.name,
            "parameters": self.parameters,
            "attentions": self.attentions,
            "layers": [
                dataclasses.asdict(layer) | {"meaning": EXACT if layer.exact else LINEARISED}
                for layer in self.layers
            ],
            "missing": self.missing,
            "receptive_fields": [
                {"layer": each.layer, "half_area": each.half_area} for each in self.fields
            ],
            "images": images,
            "notes": list(self.notes),
        }


def _rounded(heat: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in heat.tolist()]
