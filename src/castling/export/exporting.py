"""Export to any target: written, run again in its runtime, compared, and only then kept.

Notable:
- the file is kept only after its runtime reproduced PyTorch's outputs at several shapes, none of
  which the exporter has traced and most of them not square;
- a model whose auxiliary branch is still attached is refused: the branch is for training only;
- what a user needs to feed the file (classes, normalisation, image size) is stored inside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from castling.export.outputs import NamedOutputs, Outputs, RawOutputs, outputs_of
from castling.export.precision import Precision, hold_out, read_limits, require_precision
from castling.export.preparing import (
    calibration_batches,
    file_metadata,
    output_names,
    require_exportable,
)
from castling.export.report import ExportReport
from castling.export.sizes import Size, SizePlan, one_size, plan_sizes, random_images
from castling.export.target import (
    DisagreementError,
    Dynamic,
    ExportError,
    ExportJob,
    packages_of,
    require_packages,
    target_for,
)
from castling.export.verification import Verification
from castling.export.writing import write_verified
from castling.models.card import ModelCard
from castling.tasks.registry import task_from_card
from castling.utils.files import refuse_existing, write_json
from castling.utils.modes import eval_mode, out_of_place

_DYNAMIC = ("auto", *get_args(Dynamic))
_SAID = {"all": "any size", "batch": "one size", "none": "one image of one size"}
_TOLERANCE = 1e-4


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    input_size: Size = (224, 224),
    *,
    target: str | None = None,
    raw_outputs: RawOutputs | None = None,
    task: Outputs | None = None,
    images: Tensor | None = None,
    precision: Precision = "fp32",
    calibration: Tensor | None = None,
    verify_sizes: Sequence[Size] | None = None,
    dynamic: Dynamic | Literal["auto"] = "auto",
    opset: int | None = None,
    portable: bool = False,
    tolerance: float = _TOLERANCE,
    max_error: float | None = None,
    min_agreement: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    card: ModelCard | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Export an image model and prove that the file computes the same.

    Args:
        model: takes images (B, 3, H, W). In float32. Neither modified nor moved; exported as in
            ``eval()``.
        path: the file to write: ``.onnx`` (ONNX Runtime), ``.xml`` (OpenVINO, with a ``.bin``
            beside it), ``.pt2`` (``torch.export``) or ``.pte`` (ExecuTorch). Written whole or not
            at all.
        input_size: (height, width) in pixels that the model is meant for.
        target: name of the target; None goes by the suffix of ``path``.
        raw_outputs: (model, images) -> named tensors, compared element by element. None takes
            those of the task; without a task a detector's detections, and of other models what
            they return: one tensor is called ``logits`` if (B, K), else ``output``; entries of a
            dictionary keep their keys, those of a tuple are ``output_0``, ``output_1``, …
        task: that the model was trained for; None is that of ``card``.
        images: (N, 3, H, W), normalised, to compare on, scaled to every size: a detector finds
            nothing in noise. The report says how far file and model agree on all of them. None is
            noise.
        precision: ``"fp32"``; ``"fp16"`` (ONNX: attention and normalisations stay in float32;
            OpenVINO: the weights alone); or ``"int8"``: products with weights, calibrated with real
            images, all of attention kernels in float32. Each target says which it writes.
        calibration: (M, 3, H, W), normalised, for int8: where activations' ranges are taken from.
            None takes every second of ``images``, and compares on the others.
        verify_sizes: (height, width) pairs to compare at besides ``input_size``; None picks two,
            neither square.
        dynamic: ``"all"`` lets batch, height and width change; ``"batch"`` fixes the size, for
            models with position tables of one size; ``"none"`` fixes one image of ``input_size``,
            as files of ExecuTorch always do;
            ``"auto"`` is ``"all"`` where the model runs at more than one size and the file
            reproduces it there, else ``"batch"`` with the reason among the report's notes.
        opset: ONNX operator set, of targets written through ONNX; None is the exporter's own. Not
            every one can be written.
        portable: let a ``.pt2`` file hold basic operators only, so that it runs without castling,
            and without its fast kernels. Files of other targets are always portable.
        tolerance: largest absolute difference allowed between a file in fp32 and PyTorch; outputs
            of integers and booleans must be equal. Detections are compared as sets: 99 % must have
            a partner of the same class, and the differences of pairs are in units of the largest
            value (boxes are in pixels).
        max_error: of files in fp16 and int8 in the place of ``tolerance``: largest relative error
            ‖file − PyTorch‖ / ‖PyTorch‖ of any output, at every shape and over ``images``. None is
            0.02 for fp16 and 0.1 for int8.
        min_agreement: of the same: least share of ``images`` with the same best class, of pixels
            with the same label, or of detections that match. None is 0.99 and 0.95.
        metadata: further values to store in the file, as JSON.
        card: of a saved model; stored in the file, for ``castling predict``.
        overwrite: replace ``path``, its report, and what the format puts beside it.

    Returns:
        The report, with one comparison per shape.

    Raises:
        ValueError: the model still holds an auxiliary branch, is not float32, or does not run
            at a size asked for; no target writes ``path``; an option does not fit the target; the
            target does not write ``precision``, or int8 is given no images.
        TypeError: the model's outputs are not tensors, or ``metadata`` is not JSON.
        OneSizeError: ``dynamic`` is ``"all"`` and the model runs at ``input_size`` only.
        FileNotFoundError: the folder of ``path`` does not exist.
        FileExistsError: a file to be written exists, and ``overwrite`` is False.
        ExportError: the exporter failed or cannot write ``opset``, or the file does not reproduce
            the model within ``tolerance`` or, in fp16 and int8, ``max_error`` and
            ``min_agreement``. Nothing is written.
        ModuleNotFoundError: a package that the target needs is missing.
    """
    path = Path(path)
    chosen = target_for(path, target)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"no such folder: {path.parent}; make it first, or export to another"
        )
    report_path = path.with_name(path.name + ".json")
    files = (path, *(path.with_suffix(suffix) for suffix in chosen.beside), report_path)
    for written in files:
        if written.is_dir():
            raise ValueError(f"{written} is a folder: choose another file")
    refuse_existing(files, overwrite)
    if dynamic not in _DYNAMIC:
        raise ValueError(f"dynamic must be one of {', '.join(_DYNAMIC)}, got {dynamic!r}")
    if dynamic != "auto" and dynamic not in chosen.dynamics:
        raise ValueError(
            f"the {chosen.name} target writes files for {_SAID[chosen.dynamics[0]]}: "
            f"dynamic={chosen.dynamics[0]!r} (--dynamic {chosen.dynamics[0]}), got {dynamic!r}"
        )
    if dynamic == "auto" and "all" not in chosen.dynamics:
        dynamic = chosen.dynamics[0]
    if dynamic in ("batch", "none") and verify_sizes:
        raise ValueError(
            f"verify_sizes cannot go with dynamic={dynamic!r}: the file runs at one size"
        )
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance:g}")
    if opset is not None and not chosen.opset:
        raise ValueError(f"the {chosen.name} target has no opset: it does not write ONNX")
    limits = read_limits(precision, max_error, min_agreement)
    require_precision(chosen.name, precision, chosen.precisions)
    if min_agreement is not None and images is None:
        raise ValueError("min_agreement is measured on real images: pass images= as well (--data)")
    if limits is not None and tolerance != _TOLERANCE:
        raise ValueError(f"tolerance is for fp32; a file in {precision} is held to max_error")
    images, calibration = hold_out(precision, images, calibration)
    require_exportable(model)
    require_packages(
        packages_of(chosen, precision), f"export to {chosen.suffix} files ({chosen.name})"
    )
    if task is None and card is not None:
        task = task_from_card(card)
    compared = outputs_of(model, raw_outputs, task)
    with eval_mode(model), out_of_place(model), torch.no_grad():
        named = NamedOutputs(model, compared.outputs)
        plan = plan_sizes(named, input_size, dynamic, verify_sizes)

        def attempt(plan: SizePlan) -> ExportReport:
            outputs = output_names(named, plan.traced)
            values = file_metadata(plan, input_size, outputs, precision, metadata, card)
            job = ExportJob(
                model=named,
                images=random_images(plan.traced, seed=1).to(named.device),
                outputs=outputs,
                dynamic=plan.dynamic,
                metadata={
                    str(key): json.dumps(value, ensure_ascii=False) for key, value in values.items()
                },
                opset=opset,
                portable=portable,
                precision=precision,
                calibration=calibration_batches(calibration, input_size, plan.traced[0]),
            )
            how = Verification(
                plan.checked, tolerance, chosen.runtime, compared, images, precision, limits
            )
            return write_verified(chosen, job, plan, path, how)

        try:
            report = attempt(plan)
        except DisagreementError as error:
            raise DisagreementError(f"{error}; nothing was written") from error
        except ExportError as error:
            if plan.dynamic != "all" or dynamic == "all" or verify_sizes:
                hint = "; dynamic='batch' (--dynamic batch) exports for one size"
                raise ExportError(
                    f"{error}; nothing was written{hint if plan.dynamic == 'all' else ''}"
                ) from error
            # For example, OpenVINO resizes position tables differently from PyTorch.
            try:
                report = attempt(one_size(input_size, f"only the batch is dynamic: {error}"))
            except ExportError as last:
                raise ExportError(f"{last}; nothing was written") from last
    write_json(report_path, report.to_dict())
    return report
