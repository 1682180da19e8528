"""What an export needs before anything is written: checks, metadata, images to calibrate with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from castling.attention.auxiliary import auxiliaries
from castling.export.outputs import INPUT, NamedOutputs
from castling.export.precision import Precision
from castling.export.sizes import Shape, Size, SizePlan, images_of, random_images, run_once
from castling.models.card import ModelCard
from castling.tasks.registry import task_from_card
from castling.utils.version import VERSION

#: Images that an int8 file is calibrated with at once, where it takes several.
_BATCH = 8


def require_exportable(model: nn.Module) -> None:
    """Raise ValueError if an auxiliary branch is attached, or weights are not float32."""
    branches = auxiliaries(model)
    if branches:
        raise ValueError(
            f"the model still has {len(branches)} auxiliary softmax branches (the first is in "
            f"{next(iter(branches))}); they are for training only. Run "
            "castling.switch_(model, images) or `castling switch` first, then export"
        )
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtypes - {torch.float32}:
        raise ValueError(f"export wants float32 weights, found {dtypes}; call model.float() first")


def output_names(model: NamedOutputs, shape: Shape) -> tuple[str, ...]:
    """Names of a model's outputs; ValueError where there are none, or one is the input's."""
    names = tuple(run_once(model, random_images(shape)))
    if not names:
        raise ValueError("the model has no outputs to export")
    if INPUT in names:
        raise ValueError(f"an output must not be called {INPUT!r}: the input of the file is")
    return names


def calibration_batches(images: Tensor | None, size: Size, batch: int) -> tuple[Tensor, ...]:
    """Images scaled to a size, one by one for a file that takes one."""
    if images is None:
        return ()
    batches = images.split(1 if batch == 1 else _BATCH)
    return tuple(images_of((len(each), 3, *size), each) for each in batches)


def file_metadata(
    plan: SizePlan,
    input_size: Size,
    outputs: Sequence[str],
    precision: Precision,
    further: Mapping[str, Any] | None,
    card: ModelCard | None,
) -> dict[str, Any]:
    """What is needed to feed the file, and the values of the caller."""
    values: dict[str, Any] = {
        "input_size": list(input_size),
        "multiple": plan.multiple,
        "dynamic": plan.dynamic,
        "outputs": list(outputs),
        "precision": precision,
        "exported_by": f"castling {VERSION}",
    }
    if card is not None:
        if task_from_card(card).input_size != tuple(input_size):
            card = card.at_size(input_size)
        values = task_from_card(card).input_format() | values | {"castling": card.to_dict()}
    taken = sorted({*values, "portable", "report"} & set(further or {}))
    if taken:
        raise ValueError(f"metadata must not name {', '.join(taken)}: export sets them itself")
    return values | dict(further or {})
