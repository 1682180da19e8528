"""The segmenters' part of the page of results."""

from __future__ import annotations

from pathlib import Path

from results_detection import machines, read_study


def camvid_section(results: Path) -> list[str]:
    """Segmenters trained on CamVid, with their pictures and remarks."""
    study = read_study(results, "study_camvid")
    if study is None:
        return []
    lines = [
        "## Street scenes: segmenters\n",
        f"`{study['command']}` → [study_camvid.json](../benchmarks/results/study_camvid.json). "
        "CamVid, 480×360 px, eleven classes: 367 images train, 101 validate, 233 test; "
        "`recipes/camvid.yaml` for all, with parts of 256×192 px and narrow heads. Percent, on the "
        f"test images. {machines(study)}\n",
        (results / "study_camvid.md").read_text(encoding="utf-8"),
    ]
    for key, row in study["rows"].items():
        lines += [f"![{row['label']}: three test images](images/camvid_{key}.jpg)\n"]
    lines += [
        "Each picture one row, in the order of the table; predictions left, truth right. The "
        "photographs may not be passed on.\n",
        (results / "study_camvid_remarks.md").read_text(encoding="utf-8"),
    ]
    return lines
