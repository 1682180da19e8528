"""ONNX files that were run before they are handed over.

Notable:
- the file is written only after ONNX Runtime reproduced PyTorch's outputs at several shapes, none
  of which the exporter has seen, most of them not square;
- a model whose auxiliary branch is still attached is refused: the branch is for training only;
- what a user needs to feed the file (classes, normalisation, image size) travels inside it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from castling.attention.auxiliary import auxiliaries
from castling.export.sizes import (
    OneSizeError,
    random_images,
    require_runs,
    sizes_to_verify,
    smallest_multiple,
)
from castling.export.verification import ExportError, ExportReport, compare, require_same
from castling.models.card import ModelCard
from castling.utils.files import replacing, write_json
from castling.utils.modes import eval_mode
from castling.utils.text import first_line

Dynamic = Literal["auto", "all", "batch"]


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    input_size: tuple[int, int] = (224, 224),
    *,
    verify_sizes: Sequence[tuple[int, int]] | None = None,
    dynamic: Dynamic = "auto",
    opset: int | None = None,
    tolerance: float = 1e-4,
    card: ModelCard | None = None,
) -> ExportReport:
    """Export an image model to ONNX and prove that the file computes the same.

    Args:
        model: takes images (B, 3, H, W) and returns one tensor, (B, classes) for a classifier. In
            float32. Neither modified nor moved; exported as in ``eval()``.
        path: the file to write, ending in ``.onnx``. Written whole or not at all.
        input_size: (height, width) that the model is meant for.
        verify_sizes: (height, width) pairs to compare at besides ``input_size``; None picks two,
            neither square.
        dynamic: ``"all"`` lets batch, height and width change; ``"batch"`` fixes the size, for
            models with position tables of one size; ``"auto"`` is ``"all"`` where the model runs
            at more than one size and ``"batch"``, with a note in the report, where it does not.
        opset: ONNX operator set; None is the exporter's own. Not every one can be written.
        tolerance: largest absolute difference allowed between ONNX Runtime and PyTorch.
        card: of a saved model; travels in the file's metadata, for ``castling predict``.

    Returns:
        The report, with one comparison per shape.

    Raises:
        ValueError: the model still holds an auxiliary branch, is not float32, or does not run
            at a size asked for; ``path`` does not end in ``.onnx``.
        OneSizeError: ``dynamic`` is ``"all"`` and the model runs at ``input_size`` only.
        FileNotFoundError: the folder of ``path`` does not exist.
        ExportError: the exporter failed or cannot write ``opset``, or the difference exceeded
            ``tolerance``.
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is missing.
    """
    target = Path(path)
    if target.suffix != ".onnx":
        raise ValueError(f"the exported file must end in .onnx, got {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"no such folder: {target.parent}; make it first, or export to another"
        )
    if dynamic not in get_args(Dynamic):
        raise ValueError(f"dynamic must be one of {get_args(Dynamic)}, got {dynamic!r}")
    if dynamic == "batch" and verify_sizes:
        raise ValueError("verify_sizes cannot go with dynamic='batch': the file runs at one size")
    _require_exportable(model)
    _require_packages()
    with eval_mode(model), torch.no_grad():
        multiple, notes = 1, []
        if dynamic != "batch":
            try:
                multiple = smallest_multiple(model, input_size)
                dynamic = "all"
            except OneSizeError as error:
                if dynamic == "all" or verify_sizes:
                    raise OneSizeError(
                        f"{error}; dynamic='batch' (--dynamic batch) exports for this size alone"
                    ) from error
                dynamic = "batch"
                notes.append(f"only the batch is dynamic: {error}")
        if dynamic == "all":
            sizes = sizes_to_verify(input_size, multiple, verify_sizes)
            # Not square, so that no equality of the sides can be traced into the file.
            traced = (2, 3, input_size[0], input_size[1] + multiple)
        else:
            sizes = [input_size] * 3
            traced = (4, 3, *input_size)
        if multiple > 1:
            notes.append(
                f"height and width must be multiples of {multiple}; the file may compute other "
                "sizes without complaint, which PyTorch refuses (castling predict refuses too)"
            )
        for size in {*sizes, (traced[2], traced[3])}:
            require_runs(model, size)
        proto = _trace(model, traced, dynamic, opset)
        written = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
        if opset is not None and written != opset:
            raise ExportError(
                f"PyTorch's exporter cannot write this model in opset {opset}, it wrote {written}; "
                f"ask for {written}, or for none; nothing was written"
            )
        _describe(proto, input_size, multiple, card)
        with replacing(target) as temporary:
            import onnx

            onnx.save(proto, temporary)
            batches = (2, 1, 3)
            checks = tuple(
                compare(model, temporary, (batches[index % 3], 3, *size))
                for index, size in enumerate(sizes)
            )
            require_same(checks, tolerance)
            report = ExportReport(
                path=str(target),
                bytes=temporary.stat().st_size,
                dynamic=dynamic,
                multiple=multiple,
                traced=traced,
                opset=written,
                tolerance=tolerance,
                checks=checks,
                versions={name: version(name) for name in ("torch", "onnx", "onnxruntime")},
                notes=tuple(notes),
            )
    write_json(target.with_name(target.name + ".json"), report.to_dict())
    return report


def _require_exportable(model: nn.Module) -> None:
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


def _require_packages() -> None:
    missing = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise ModuleNotFoundError(
            f"export needs {', '.join(missing)}: pip install 'castling[export]'"
        )


def _trace(
    model: nn.Module, shape: tuple[int, int, int, int], dynamic: str, opset: int | None
) -> Any:
    free = torch.export.Dim.DYNAMIC
    dimensions = {0: free} if dynamic == "batch" else {0: free, 2: free, 3: free}
    parameter = next(model.parameters(), None)
    images = random_images(shape)
    level = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)  # the exporter warns about things that are in order
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (images if parameter is None else images.to(parameter.device),),
                dynamo=True,
                dynamic_shapes=(dimensions,),
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        cause = error.__cause__ or error
        hint = "; --dynamic batch exports for one size" if dynamic == "all" else ""
        raise ExportError(
            f"PyTorch's exporter failed: {first_line(cause)} (see the chained error{hint})"
        ) from error
    finally:
        logging.disable(level)
    assert program is not None
    return program.model_proto


def _describe(
    proto: Any, input_size: tuple[int, int], multiple: int, card: ModelCard | None
) -> None:
    """Name the free dimensions, and store what is needed to feed the file."""
    # Inferred shapes of inner values carry the exporter's symbols and make quantisers stumble.
    del proto.graph.value_info[:]
    names = {}
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    for dimension, name in zip(dimensions, ("batch", "channels", "height", "width"), strict=True):
        if dimension.dim_param:
            names[dimension.dim_param] = name
    for value in (*proto.graph.input, *proto.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]
    metadata: dict[str, Any] = {"input_size": list(input_size), "multiple": multiple}
    if card is not None:
        metadata |= {"classes": card.classes, "mean": list(card.mean), "std": list(card.std)}
        metadata["castling"] = card.to_dict()
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value, ensure_ascii=False)
