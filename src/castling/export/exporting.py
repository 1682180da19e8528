"""Export to any target: written, run again in its runtime, compared, and only then kept.

Notable:
- the file is kept only after its runtime reproduced PyTorch's outputs at several shapes, none of
  which the exporter has traced and most of them not square;
- a model whose auxiliary branch is still attached is refused: the branch is for training only;
- what a user needs to feed the file (classes, normalisation, image size) is stored inside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from castling.attention.auxiliary import auxiliaries
from castling.export.outputs import (
    INPUT,
    NamedOutputs,
    Outputs,
    RawOutputs,
    outputs_of,
)
from castling.export.report import ExportReport
from castling.export.sizes import (
    Shape,
    Size,
    SizePlan,
    one_size,
    plan_sizes,
    random_images,
    run_once,
)
from castling.export.target import (
    Dynamic,
    ExportError,
    ExportJob,
    Target,
    package_versions,
    require_packages,
    target_for,
)
from castling.export.verification import Verification, verify
from castling.models.card import ModelCard
from castling.tasks.registry import task_from_card
from castling.utils.files import refuse_existing, replacing_together, write_json
from castling.utils.modes import eval_mode, out_of_place
from castling.utils.version import VERSION

_DYNAMIC = ("auto", *get_args(Dynamic))
_NOTHING = (
    "nothing was found in the images compared, which shows little: give images of the kind that "
    "the model knows (images=)"
)


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    input_size: Size = (224, 224),
    *,
    target: str | None = None,
    raw_outputs: RawOutputs | None = None,
    task: Outputs | None = None,
    images: Tensor | None = None,
    verify_sizes: Sequence[Size] | None = None,
    dynamic: Dynamic | Literal["auto"] = "auto",
    opset: int | None = None,
    portable: bool = False,
    tolerance: float = 1e-4,
    metadata: Mapping[str, Any] | None = None,
    card: ModelCard | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Export an image model and prove that the file computes the same.

    Args:
        model: takes images (B, 3, H, W). In float32. Neither modified nor moved; exported as in
            ``eval()``.
        path: the file to write: ``.onnx`` (ONNX Runtime), ``.xml`` (OpenVINO, with a ``.bin``
            beside it) or ``.pt2`` (``torch.export``). Written whole or not at all.
        input_size: (height, width) in pixels that the model is meant for.
        target: name of the target; None goes by the suffix of ``path``.
        raw_outputs: (model, images) -> named tensors, compared element by element. None takes
            those of the task; without a task a detector's detections, and of other models what
            they return: one tensor is called ``logits`` if (B, K), else ``output``; entries of a
            dictionary keep their keys, those of a tuple are ``output_0``, ``output_1``, …
        task: that the model was trained for; None is that of ``card``.
        images: (N, 3, H, W), normalised, to compare on, scaled to every size: a detector finds
            nothing in noise. None is noise.
        verify_sizes: (height, width) pairs to compare at besides ``input_size``; None picks two,
            neither square.
        dynamic: ``"all"`` lets batch, height and width change; ``"batch"`` fixes the size, for
            models with position tables of one size; ``"none"`` fixes one image of ``input_size``;
            ``"auto"`` is ``"all"`` where the model runs at more than one size and the file
            reproduces it there, else ``"batch"`` with the reason among the report's notes.
        opset: ONNX operator set, of targets written through ONNX; None is the exporter's own. Not
            every one can be written.
        portable: let a ``.pt2`` file hold basic operators only, so that it runs without castling,
            and without its fast kernels. Files of other targets are always portable.
        tolerance: largest absolute difference allowed between the file and PyTorch; outputs of
            integers and booleans must be equal. Detections are compared as sets: 99 % must have a
            partner of the same class, and the differences of pairs are in units of the largest
            value (boxes are in pixels).
        metadata: further values to store in the file, as JSON.
        card: of a saved model; stored in the file, for ``castling predict``.
        overwrite: replace ``path``, its report, and what the format puts beside it.

    Returns:
        The report, with one comparison per shape.

    Raises:
        ValueError: the model still holds an auxiliary branch, is not float32, or does not run
            at a size asked for; no target writes ``path``; an option does not fit the target.
        TypeError: the model's outputs are not tensors, or ``metadata`` is not JSON.
        OneSizeError: ``dynamic`` is ``"all"`` and the model runs at ``input_size`` only.
        FileNotFoundError: the folder of ``path`` does not exist.
        FileExistsError: a file to be written exists, and ``overwrite`` is False.
        ExportError: the exporter failed or cannot write ``opset``, or the file does not reproduce
            the model within ``tolerance``. Nothing is written.
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
    if dynamic in ("batch", "none") and verify_sizes:
        raise ValueError(
            f"verify_sizes cannot go with dynamic={dynamic!r}: the file runs at one size"
        )
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance:g}")
    if opset is not None and not chosen.opset:
        raise ValueError(f"the {chosen.name} target has no opset: it does not write ONNX")
    _require_exportable(model)
    require_packages(
        (*chosen.writing, *chosen.running), f"export to {chosen.suffix} files ({chosen.name})"
    )
    if task is None and card is not None:
        task = task_from_card(card)
    compared = outputs_of(model, raw_outputs, task)
    with eval_mode(model), out_of_place(model), torch.no_grad():
        named = NamedOutputs(model, compared.outputs)
        plan = plan_sizes(named, input_size, dynamic, verify_sizes)

        def attempt(plan: SizePlan) -> ExportReport:
            outputs = _output_names(named, plan.traced)
            values = _metadata(plan, input_size, outputs, metadata, card)
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
            )
            how = Verification(plan.checked, tolerance, chosen.runtime, compared, images)
            report = _write(chosen, job, plan, path, how)
            return dataclasses.replace(report, metadata=values)

        try:
            report = attempt(plan)
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


def _write(
    target: Target,
    job: ExportJob,
    plan: SizePlan,
    path: Path,
    how: Verification,
) -> ExportReport:
    with replacing_together(path.parent) as folder:
        facts = target.write(job, folder / path.name)
        try:
            opened = target.open(folder / path.name)
        except ValueError as error:
            raise ExportError(
                f"{target.runtime} cannot open the exported model: {error}"
            ) from error
        checks = verify(job.model, opened, how)
        versions = package_versions(target)
        runtime = target.running[0] if target.running else "torch"
        return ExportReport(
            path=str(path),
            target=target.name,
            runtime=f"{target.runtime} {versions[runtime]}",
            bytes=sum(file.stat().st_size for file in folder.rglob("*")),
            dynamic=plan.dynamic,
            multiple=plan.multiple,
            traced=plan.traced,
            opset=facts.get("opset"),
            tolerance=how.tolerance,
            checks=checks,
            versions=versions,
            notes=(*plan.notes, *(_NOTHING for _ in checks[:1] if all(c.nothing for c in checks))),
        )


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


def _output_names(model: NamedOutputs, shape: Shape) -> tuple[str, ...]:
    names = tuple(run_once(model, random_images(shape)))
    if not names:
        raise ValueError("the model has no outputs to export")
    if INPUT in names:
        raise ValueError(f"an output must not be called {INPUT!r}: the input of the file is")
    return names


def _metadata(
    plan: SizePlan,
    input_size: Size,
    outputs: Sequence[str],
    further: Mapping[str, Any] | None,
    card: ModelCard | None,
) -> dict[str, Any]:
    """What is needed to feed the file, and the values of the caller."""
    values: dict[str, Any] = {
        "input_size": list(input_size),
        "multiple": plan.multiple,
        "dynamic": plan.dynamic,
        "outputs": list(outputs),
        "exported_by": f"castling {VERSION}",
    }
    if card is not None:
        if task_from_card(card).input_size != tuple(input_size):
            card = card.at_size(input_size)
        values = task_from_card(card).input_format() | values | {"castling": card.to_dict()}
    taken = sorted({*values, "portable"} & set(further or {}))
    if taken:
        raise ValueError(f"metadata must not name {', '.join(taken)}: export sets them itself")
    return values | dict(further or {})
