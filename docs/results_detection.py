"""The detectors' part of the page of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from performance_tables import facts


def read_study(results: Path, name: str) -> dict[str, Any] | None:
    """A study as it was written, or None where it has not been run."""
    path = results / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def bccd_section(results: Path) -> list[str]:
    """Detectors trained on BCCD, with their pictures and remarks."""
    study = read_study(results, "study_bccd")
    if study is None:
        return []
    lines = [
        "## Blood cells: detectors from scratch\n",
        f"`{study['command']}` → [study_bccd.json](../benchmarks/results/study_bccd.json). BCCD, "
        "640×480 px, boxes of three kinds of blood cells: 205 images train, 87 validate, 72 test; "
        "`recipes/bccd.yaml` for all, images stretched to 320×320 px. COCO's average precision on "
        "the test images in percent; milliseconds of the whole detector for one image, folded in "
        f"eager. {machines(study)}\n",
        (results / "study_bccd.md").read_text(encoding="utf-8"),
    ]
    for name, row in study["rows"].items():
        lines += [f"![{row['label']}: three test images](images/bccd_{name}.jpg)\n"]
    lines += [
        "Each row one detector, in the order of the table; labelled cells in white.\n",
        (results / "study_bccd_remarks.md").read_text(encoding="utf-8"),
    ]
    return lines


def machines(study: dict[str, Any]) -> str:
    """Where the rows were trained, and where they were timed."""
    trained = sorted({row["machine"] for row in study["rows"].values()})
    text = f"Trained on {' and '.join(trained)}, one thread."
    return f"{text} Times: {facts(study['timed_on'])}" if "timed_on" in study else text


def overfit_section(results: Path) -> list[str]:
    """Twenty images of COCO, learnt by heart."""
    study = read_study(results, "study_overfit")
    if study is None:
        return []
    train = study["train"]
    return [
        "## Twenty images of COCO by heart\n",
        "A loss, a target or an evaluation that is a little wrong shows when a detector is to "
        f"learn a few images by heart. `{study['command']}` → "
        "[study_overfit.json](../benchmarks/results/study_overfit.json): a Mask R-CNN of "
        f"{study['parameters'] / 1e6:.1f} M parameters on CAS-ViT-XS, from scratch, "
        f"{study['images']} images with all their objects. On these images AP50 is "
        f"{train['AP50']:.1f} % of boxes and {train['mask_AP50']:.1f} % of masks (AP "
        f"{train['AP']:.1f} and {train['mask_AP']:.1f}). {facts(study['machine'])}\n",
        "![Six of the images with the boxes and masks found](images/overfit_coco_mini.jpg)\n",
    ]
