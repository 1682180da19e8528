"""``castling check-data``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from castling.cli.check_data import FORMATS
from castling.cli.main import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    values = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25}
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "instances_train.json").write_text(json.dumps(values))
    return tmp_path


def test_sound_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check-data", [str(folder)]) == 0
    expected = f"{folder}: 1 train images with 1 objects, 1 classes, no problems\n"
    expected += "  read as: coco: objects in COCO's format\n"
    assert capsys.readouterr().out == expected


def test_errors_give_1_and_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.png").unlink()
    assert run("check-data", [str(folder), "--format", "coco"]) == 1
    out = capsys.readouterr().out
    assert "error: image file missing: 1 (a.png of instances_train.json)" in out
    assert run("check-data", [str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["errors"] == len([p for p in found["problems"] if p["severity"] == "error"]) > 0
    assert {"kind", "severity", "count", "examples", "advice"} == set(found["problems"][0])


def test_what_cannot_be_opened_is_a_problem_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check-data", [str(folder), "--format", "voc"]) == 1
    assert "no Pascal VOC annotation files" in capsys.readouterr().out
    assert run("check-data", [str(folder / "nowhere")]) == 2
    assert "there is no folder or zip file at" in capsys.readouterr().err


def test_images_without_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("", "photos"):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "1.png")
    for path in (tmp_path, tmp_path / "photos"):
        assert run("check-data", [str(path)]) == 1
        assert "need annotations of COCO, Pascal VOC or YOLO" in capsys.readouterr().out


def test_folders_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / label / "1.png")
    (tmp_path / "cat" / "2.png").write_bytes(b"")
    assert run("check-data", [str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "error: image that cannot be read: 1" in out
    assert "2.png is empty (0 bytes)" in out
    assert run("check-data", [str(tmp_path), "--depth", "none"]) == 0
    assert run("check-data", ["digits"]) == 0


def test_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / kind).mkdir()
        Image.new(mode, (4, 4)).save(tmp_path / kind / "1.png")
    (tmp_path / "classes.txt").write_text("ground")
    assert run("check-data", [str(tmp_path)]) == 0
    head, read_as = capsys.readouterr().out.splitlines()
    assert head == f"{tmp_path}: 1 train images, 1 classes, no problems"
    assert read_as == (
        "  read as: masks: images with a mask each; images/1.png with masks/1.png; classes by "
        "classes.txt"
    )
    assert run("check-data", [str(tmp_path), "--format", "folder"]) == 0  # classes images and masks
    assert "read as: folder: a folder of images for each class" in capsys.readouterr().out
    assert run("check-data", [str(tmp_path), "--format", "unlabelled"]) == 0
    assert "1 train images, 1 note" in capsys.readouterr().out  # without the mask
    for name in FORMATS:
        assert run("check-data", [str(tmp_path), "--format", name, "--depth", "none"]) in (0, 1)
        assert f"read as: {name}" in capsys.readouterr().out


def test_the_source_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder / "train").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "train" / "a.png")
    Image.new("RGB", (8, 8), (9, 9, 99)).save(tmp_path / "masks" / "train" / "a.png")
    assert run("check-data", [str(tmp_path)]) == 1
    assert "a.png: 9,9,99 (64 pixels)" in capsys.readouterr().out  # to be copied into the table
    source = f"{{name: masks, path: {tmp_path}, colours: {{'9,9,99': sea}}}}"
    assert run("check-data", [source]) == 0
    assert "1 classes" in capsys.readouterr().out
    assert run("check-data", [source.replace("colours", "colors")]) == 2
    assert "did you mean colours" in capsys.readouterr().err
    assert run("check-data", ["{name: masks"]) == 2
    assert "DATA is no YAML" in capsys.readouterr().err
