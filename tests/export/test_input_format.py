"""Exported files say how to feed them: the script of the documentation needs nothing else."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import castling
from castling.data.registry import DataInfo
from castling.data.transforms import ClassificationTransformConfig
from castling.models.builder import build_model
from castling.models.card import ModelCard
from castling.tasks import build_task
from castling.tasks.classification import ClassificationConfig

PAGE = Path(castling.__file__).parents[2] / "docs" / "reference" / "file-formats.md"
KEYS = {
    *("classes", "input_size", "resize", "resize_size", "interpolation", "crop", "channel_order"),
    *("layout", "dtype", "value_range", "mean", "std", "outputs", "multiple", "dynamic"),
    *("castling", "exported_by", "precision"),
}
#: (width, height), EXIF orientation; sides whose scaled length is a fraction, both directions.
PHOTOS = {"wide": ((131, 77), 1), "tall": ((75, 199), 1), "turned": ((150, 97), 6)}


def card(size=72):
    return ModelCard(
        name="castling_deit_pico",
        classes=["a", "ä", 'c"'],
        kwargs={"depth": 1, "patch_size": 8, "img_size": size, "num_classes": 3},
        attention={"name": "linear_angular"},
        preprocessing={
            "image_size": size,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.25, 0.3],
            "interpolation": "bilinear",
            "crop_fraction": None,
            "eval_crop": "auto",
        },
        switched=True,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("export")
    own = card()
    model = build_model(own.name, own.kwargs, own.attention).eval()
    report = castling.export(
        model,
        folder / "model.onnx",
        own.image_size,
        card=own,
        dynamic="batch",
        raw_outputs=lambda network, images: {"logits": network(images)},
    )
    return folder, report


def script() -> str:
    if not PAGE.is_file():
        pytest.skip("needs the sources")
    text = PAGE.read_text(encoding="utf-8")
    return re.search(r'```python title="classify.py"\n(.*?)```', text, re.DOTALL)[1]


@pytest.mark.parametrize("photo", PHOTOS)
def test_the_documented_script_gives_the_scores_of_the_predictor(
    exported, photo, tmp_path, monkeypatch
):
    folder, _ = exported
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    (width, height), orientation = PHOTOS[photo]
    noise = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    monkeypatch.chdir(tmp_path)
    values = {}
    exec(script(), values)
    (found,) = castling.Predictor("model.onnx")("photo.jpg")
    assert set(values["scores"]) == set(found.classes)
    for name, probability in zip(found.classes, found.probabilities, strict=True):
        assert values["scores"][name] == pytest.approx(probability, abs=1e-4)


def test_file_and_report_hold_the_documented_keys(exported):
    folder, report = exported
    beside = json.loads((folder / "model.onnx.json").read_text(encoding="utf-8"))["metadata"]
    assert beside == report.metadata
    assert set(beside) == KEYS
    assert beside["resize_size"] == [82, 82]  # 72 / 0.875 = 82.3
    assert (beside["resize"], beside["crop"]) == ("cover", "center")
    assert beside["interpolation"] == "bilinear"
    documented = PAGE.read_text(encoding="utf-8").partition("## Exported files")[2]
    documented = documented.partition("\n## ")[0]
    assert all(f"`{key}`" in documented for key in KEYS)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (32, {}, ("cover", [32, 32], "center")),
        (224, {}, ("cover", [256, 256], "center")),
        ((224, 320), {}, ("cover", [256, 365], "center")),
        (384, {}, ("warp", [384, 384], "none")),
        (384, {"eval_crop": "center", "crop_fraction": 1.0}, ("cover", [384, 384], "center")),
    ],
)
def test_resize_rules(size, options, expected):
    transform = ClassificationTransformConfig(image_size=size, **options)
    task = build_task(ClassificationConfig(), DataInfo(["a", "b"], {}), transform)
    found = task.input_format()
    assert (found["resize"], found["resize_size"], found["crop"]) == expected
