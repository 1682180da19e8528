"""Faults of annotations are said before anything is trained or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import castling_launcher
from castling.data import FaultyDataError
from castling.train import recipe_from_dict, train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images with a box each in both splits; one training box is flat."""
    for split in ("train", "val"):
        images, annotations = [], []
        for index in range(2):
            name = f"{split}{index}.png"
            Image.new("RGB", (64, 64), (90 * index, 9, len(split))).save(tmp_path / name)
            images.append({"id": index, "file_name": name, "width": 64, "height": 64})
            annotations.append(
                {
                    "id": index,
                    "image_id": index,
                    "category_id": 1,
                    "bbox": [8, 8, 30, 30],
                    "area": 900,
                }
            )
        if split == "train":
            annotations.append(annotations[0] | {"id": 7, "bbox": [8, 8, 0, 30]})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(content))
    return tmp_path


def recipe(source: object) -> dict:
    return {
        "task": "detection",
        "model": {"name": "picodet_pico/esnet_pico"},
        "data": {
            "source": source,
            "transform": {"image_size": 64},
            "loader": {"batch_size": 2},
        },
        "epochs": 1,
        "hardware": {"accelerator": "cpu"},
    }


def test_errors_are_refused_with_the_whole_report(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(FaultyDataError, match="box with width or height 0 or below: 1"):
        train(recipe_from_dict(recipe(str(folder))), run, progress=False)
    assert not (run / "recipe.yaml").exists()
    assert not list(run.glob("*"))


def test_notes_are_shown_and_the_run_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command shows each note once."""
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe({"name": "coco", "path": str(folder), "leave_out": 0.5})))
    code = castling_launcher.main(["train", "--config", str(path), "--run", str(tmp_path / "run")])
    shown = capsys.readouterr().err
    assert code == 0, shown
    assert shown.count("box with width or height 0 or below: 1") == 1
    assert "left out" in shown
