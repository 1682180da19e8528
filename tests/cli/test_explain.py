"""``castling explain`` on saved models and image files."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import castling
import castling_launcher
from castling.deploy import Predictor
from castling.models.card import ModelCard
from castling.models.saved import save_model


def run(*arguments):
    return castling_launcher.main(["explain", *map(str, arguments)])


def saved(folder, attention=None, **changed):
    torch.manual_seed(0)
    model = timm.create_model("deit_pico", num_classes=3)
    values = {
        "name": "deit_pico",
        "classes": ["ant", "bee", "cat"],
        "preprocessing": {"image_size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3},
        "kwargs": {"num_classes": 3},
    }
    if attention:
        castling.linearize_(model, attention)
        values |= {"attention": {"name": attention}}
    save_model(model, folder, ModelCard(**values | changed))
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


def test_a_saved_model_and_its_teacher(tmp_path, photos, capsys):
    teacher = saved(
        tmp_path / "soft",
        classes=["dog", "elk", "fox"],
        preprocessing={"image_size": [32, 32], "mean": [0.2] * 3, "std": [0.5] * 3},
    )
    student = saved(tmp_path / "linear", "relu_linear")
    output = tmp_path / "out"
    order = [student, photos, "--teacher", teacher, "--output", output, "--limit", 2]
    assert run(*order) == 0
    said = capsys.readouterr()
    assert "2 of 12 images" in said.err
    assert "linear: 4 of 4 attentions have a matrix" in said.out
    assert "soft: 4 of 4" in said.out
    assert sorted(path.name for path in output.iterdir()) == ["explain.html", "explain.json"]
    assert run(*order, "--quiet") == 2
    assert "exists" in capsys.readouterr().err
    assert run(*order, "--overwrite", "--quiet", "--json", "--layers", "blocks.[01].attn") == 0
    said = capsys.readouterr()
    assert not said.err
    values = json.loads(said.out)
    assert [layer["name"] for layer in values["model"]["layers"]] == [
        *("blocks.0.attn", "blocks.1.attn")
    ]
    assert [image["name"] for image in values["model"]["images"]] == ["00.png", "06.png"]
    # The images reach the model as castling predict hands them over.
    for side, folder in (("model", student), ("teacher", teacher)):
        for image, name in zip(values[side]["images"], ("00.png", "06.png"), strict=True):
            (one,) = Predictor(folder)(photos / name)
            assert image["label"] == one.classes[0]
            assert image["probability"] == pytest.approx(one.probabilities[0], rel=1e-4)


def test_a_model_of_timm_with_a_file_of_weights(tmp_path, photos, capsys):
    torch.manual_seed(0)
    weights = tmp_path / "weights.pt"
    torch.save(timm.create_model("deit_pico", num_classes=3).state_dict(), weights)
    order = ["deit_pico", photos / "0[01].png", "--output", tmp_path / "out", "--json", "--quiet"]
    assert run(*order, "--checkpoint", weights, "--num_classes", 3) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["model"]["name"] == "deit_pico"
    assert len(values["model"]["images"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "neither a folder nor a model"),
        (["{model}", "--layers", "stages.0"], "layers="),
        (["{model}", "--num_classes", "3"], "leave checkpoint, num_classes and classes out"),
        (["{model}", "--teacher", "{larger}"], "64×64"),
        (["{model}", "--limit", "0"], "limit"),
    ],
)
def test_bad_input(tmp_path, photos, capsys, arguments, message):
    larger = {"image_size": [64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    names = {
        "model": saved(tmp_path / "model"),
        "larger": saved(
            tmp_path / "larger", preprocessing=larger, kwargs={"num_classes": 3, "img_size": 64}
        ),
    }
    given = [each.format(**names) for each in arguments]
    assert run(given[0], photos, *given[1:], "--output", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) <= 2
    assert not (tmp_path / "out").exists()


def test_the_output_is_a_file(tmp_path, photos, capsys):
    assert run("absent", photos, "--output", photos / "00.png") == 2
    assert "is a file" in capsys.readouterr().err


def test_bad_images(tmp_path, photos, capsys):
    model = saved(tmp_path / "model")
    (photos / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    for image, message in (
        (photos / "broken.png", "broken.png"),
        (photos / "*.gif", "no image matches"),
        (photos / "absent.png", "no such file"),
        (tmp_path / "empty", "holds no image files"),
    ):
        assert run(model, image, "--output", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
