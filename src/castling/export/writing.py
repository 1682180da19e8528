"""One attempt at an export: write, open, compare, time, and keep the files if all went well."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from castling.export.exported_model import ExportedModel
from castling.export.proof import check_images, require_limits, require_numbers
from castling.export.report import ExportReport, Speed
from castling.export.sizes import Shape, SizePlan, images_of, run_once
from castling.export.target import ExportError, ExportJob, Target, package_versions
from castling.export.verification import Verification, verify
from castling.utils.files import replacing_together
from castling.utils.timing import time_alternately, timer_for

#: Of the measurement of speed: runs at most, seconds in all.
_ROUNDS, _SECONDS = 20, 1.0
#: Fewer real images than these tell little about agreement.
_FEW = 32
_NOTHING = (
    "nothing was found in the images compared, which shows little: give images of the kind that "
    "the model knows (images=)"
)


def write_verified(
    target: Target, job: ExportJob, plan: SizePlan, path: Path, how: Verification
) -> ExportReport:
    """Write a file that is kept only if it passes; its report is stored in it.

    Raises:
        ExportError: the target cannot write or open the file, or it is too far from the model.
    """
    with replacing_together(path.parent) as folder, tempfile.TemporaryDirectory() as beside:
        facts = target.write(job, folder / path.name)
        opened = _open(target, folder / path.name)
        checks = verify(job.model, opened, how)
        on_images = None
        if how.images is not None:
            size = _size(plan)
            on_images = check_images(job.model, opened, how.images, size, how.task)
            require_numbers(on_images, target.runtime)
            if how.limits is not None:
                require_limits(on_images, how.limits, how.precision, target.runtime)
        calls, fp32_bytes = {"file": opened}, None
        if job.precision != "fp32":
            # Traced already: the target only writes it in another precision.
            reference = Path(beside, path.name)
            target.write(dataclasses.replace(job, precision="fp32"), reference)
            calls["fp32 file"], fp32_bytes = _open(target, reference), _bytes(Path(beside))
        versions = package_versions(target, job.precision)
        runtime = target.running[0] if target.running else "torch"
        report = ExportReport(
            path=str(path),
            target=target.name,
            runtime=f"{target.runtime} {versions[runtime]}",
            bytes=0,
            dynamic=plan.dynamic,
            multiple=plan.multiple,
            traced=plan.traced,
            opset=facts.get("opset"),
            tolerance=how.tolerance,
            checks=checks,
            versions=versions,
            notes=(*plan.notes, *facts.get("notes", ()), *_remarks(how, checks)),
            metadata={key: json.loads(text) for key, text in job.metadata.items()},
            precision=job.precision,
            limits=how.limits,
            on_images=on_images,
            calibration_images=sum(len(batch) for batch in job.calibration),
            fp32_bytes=fp32_bytes,
            speed=_speed(job, calls, (1, 3, *_size(plan))),
        )
        target.store(folder / path.name, "report", json.dumps(report.proof(), ensure_ascii=False))
        return dataclasses.replace(report, bytes=_bytes(folder))


def _open(target: Target, path: Path) -> ExportedModel:
    try:
        return target.open(path, threads=torch.get_num_threads())
    except ValueError as error:
        raise ExportError(f"{target.runtime} cannot open the exported model: {error}") from error


def _size(plan: SizePlan) -> tuple[int, int]:
    """(height, width) that the file is meant for: the first that it is compared at."""
    return plan.checked[0][2:]


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*"))


def _speed(job: ExportJob, files: dict[str, ExportedModel], shape: Shape) -> Speed:
    images = images_of(shape)
    calls: dict[str, Any] = {name: file.runner(images) for name, file in files.items()}
    calls["pytorch"] = lambda: run_once(job.model, images)
    # PyTorch's outputs are on the CPU when its call returns: no device has to be waited for.
    times = time_alternately(
        calls, rounds=_ROUNDS, seconds=_SECONDS, timer=timer_for(torch.device("cpu"))
    )
    milliseconds = {name: timing.milliseconds for name, timing in times.items()}
    return Speed(shape, torch.get_num_threads(), milliseconds)


def _remarks(how: Verification, checks: Any) -> list[str]:
    remarks = [_NOTHING] if all(check.nothing for check in checks) else []
    if how.limits is None:
        return remarks
    if how.images is None:
        remarks.append(
            "compared on noise alone, which says nothing about agreement: give real images "
            "(images=; castling export: --data)"
        )
    elif len(how.images) < _FEW:
        remarks.append(
            f"agreement was measured on {len(how.images)} images, of which each counts "
            f"{1 / len(how.images):.0%}"
        )
    return remarks
