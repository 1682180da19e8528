"""Saved models exported in every precision, on real images: agreement, error, size, milliseconds.

Takes folders of saved classifiers, such as those that ``study_conversion.py`` leaves in its
``--runs``, and exports each as fp16 and int8, whatever the limits of ``castling export`` would say.
int8 is calibrated with training images; agreement is of validation images. Writes
``results/study_precisions.json`` and ``.md``; rows that earlier calls wrote stay.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from castling.data import DataConfig
from castling.data.sources.folder import FolderConfig
from castling.deploy import export_saved
from castling.profiling.machine import machine_facts
from studies import read_study, study_parser, write_study

NAME = "study_precisions"
#: Row -> (file, precision).
ROWS = {
    "onnx_fp16": ("model.onnx", "fp16"),
    "onnx_int8": ("model.onnx", "int8"),
    "openvino_int8": ("model.xml", "int8"),
}


def row_of(folder: Path, row: str, data: DataConfig, images: int) -> dict[str, Any]:
    """One export, kept only as long as it takes to measure it."""
    name, precision = ROWS[row]
    with tempfile.TemporaryDirectory() as place:
        report = export_saved(
            folder,
            Path(place) / name,
            data=data,
            images=images,
            precision=precision,
            max_error=float("inf"),
            min_agreement=0.0,
        )
    assert report.on_images is not None
    return {
        "model": folder.name,
        "runtime": report.runtime,
        "precision": precision,
        "images": report.on_images.count,
        "calibration_images": report.calibration_images,
        "agreement": report.on_images.agreement,
        "relative_error": report.on_images.relative_error,
        "bytes": report.bytes,
        "fp32_bytes": report.fp32_bytes,
        "milliseconds": report.speed.milliseconds,
        "machine": machine_facts(torch.device("cpu"))["device"],
        "threads": report.speed.threads,
    }


def table(study: Mapping[str, Any]) -> str:
    """The study as a Markdown table."""
    head = ["model", "runtime", "precision", "images", "agreement", "relative error", "MB"]
    head += ["MB in fp32", "ms", "ms in fp32", "ms in PyTorch"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in study["rows"].values():
        times = (row["milliseconds"][key] for key in ("file", "fp32 file", "pytorch"))
        cells = [
            *(row["model"], row["runtime"], row["precision"], str(row["images"])),
            f"{100 * row['agreement']:.1f} %",
            f"{row['relative_error']:.3f}",
            *(f"{row[key] / 1e6:.1f}" for key in ("bytes", "fp32_bytes")),
            *(f"{each:.1f}" for each in times),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Export every model in every precision."""
    parser = study_parser(__doc__, NAME, "tinyimagenet200.zip", list(ROWS))
    parser.add_argument("--models", nargs="+", required=True, help="saved models in --runs")
    parser.add_argument("--images", type=int, default=200, help="of validation, and to calibrate")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = options.results / f"{NAME}.json"
    study = read_study(
        path,
        f"python benchmarks/{NAME}.py --data tinyimagenet200.zip --models MODEL … "
        f"--images {options.images}",
    )
    data = DataConfig(source=FolderConfig(path=options.data))
    for folder in (options.runs / name for name in options.models):
        for row in options.rows:
            study["rows"][f"{folder.name}-{row}"] = row_of(folder, row, data, options.images)
            write_study(path, study, sorted(study["rows"]), table)


if __name__ == "__main__":
    main()
