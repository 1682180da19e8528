import json
import os

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import castling
from castling.attention import auxiliaries, set_progress
from castling.data import DataConfig
from castling.deploy import evaluate, switch_saved
from castling.models.builder import build_model
from castling.models.card import ModelCard
from castling.models.saved import open_model, save_model
from castling.models.starting_weights import start_from
from castling.surgery import strip_
from castling.tasks.teacher import DistillConfig, load_teacher

IMAGES = torch.randn(2, 3, 32, 32)
PREPROCESSING = {"image_size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}


def card(name="castling_deit_pico", **options):
    values = {
        "name": name,
        "kwargs": {"num_classes": 3, "depth": 2, "img_size": 32},
        "classes": ["a", "b", "c"],
        "preprocessing": PREPROCESSING,
        "metrics": {"val_top1": 50.0},
        "progress": 0.0,
    }
    return ModelCard(**{**values, **options})


def model_of(c):
    return build_model(c.name, c.kwargs, c.attention, c.where)


def assert_same_outputs(a, b):
    with torch.no_grad():
        torch.testing.assert_close(a.eval()(IMAGES), b.eval()(IMAGES), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": "deit_pico"},
        {"name": "deit_pico", "attention": {"name": "linear_angular", "local": "grid2d"}},
        {"attention": {"name": "cosine"}, "where": ["blocks.0*"]},
        {"name": "cas_vit_pico", "kwargs": {"num_classes": 3}},
        {"name": "qt_vit_pico", "kwargs": {"num_classes": 3}},
    ],
    ids=["named", "host", "converted host", "one layer", "cas_vit", "qt_vit"],
)
def test_round_trip(tmp_path, options):
    described = card(**options)
    model = model_of(described)
    save_model(model, tmp_path / "m", described)
    opened, read = open_model(tmp_path / "m")
    assert read == described
    assert not opened.training
    assert_same_outputs(model, opened)
    names = sorted(p.name for p in (tmp_path / "m").iterdir())
    assert names == ["README.md", "model.json", "model.safetensors"]


def test_progress_of_the_branches_is_kept(tmp_path):
    described = card(attention={"name": "linear_angular", "auxiliary": {"schedule": "ramp"}})
    model = model_of(described)
    set_progress(model, 0.4)
    save_model(model, tmp_path, described)
    opened, read = open_model(tmp_path / "model.json")
    assert read.progress == 0.4
    assert {branch.progress for branch in auxiliaries(opened).values()} == {0.4}
    assert_same_outputs(model, opened)


def test_switched_model_comes_back_without_branches(tmp_path):
    described = card(switched=True)
    model = model_of(described)
    strip_(model)
    save_model(model, tmp_path, described)
    opened, _ = open_model(tmp_path / "model.safetensors")
    assert not auxiliaries(opened)
    assert_same_outputs(model, opened)


def test_only_chosen_layers_are_converted():
    model = build_model("castling_deit_pico", {"depth": 2}, "cosine", ["blocks.0*"])
    twin = timm.create_model("deit_pico", depth=2)
    assert type(model.blocks[1].attn) is type(twin.blocks[1].attn)
    assert type(model.blocks[0].attn) is not type(twin.blocks[0].attn)


def test_unknown_names_and_arguments():
    with pytest.raises(ValueError, match="timm knows no model 'castling_dit'"):
        build_model("castling_dit", {})
    with pytest.raises(ValueError, match=r"deit_pico.*colour"):
        build_model("deit_pico", {"colour": 1})
    with pytest.raises(ValueError, match="unknown attention 'linear'"):
        build_model("deit_pico", {}, "linear")


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        open_model(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        open_model(tmp_path)
    foreign = tmp_path / "weights.pth"
    torch.save({}, foreign)
    with pytest.raises(ValueError, match="not a saved castling model"):
        open_model(foreign)
    described = card()
    save_model(model_of(described), tmp_path, described)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a safetensors file"):
        open_model(tmp_path)
    (tmp_path / "model.json").write_text('{"format": "another"}')
    with pytest.raises(ValueError, match="does not describe a castling model"):
        open_model(tmp_path)


def test_files_that_do_not_fit_each_other(tmp_path):
    described = card()
    save_model(model_of(described), tmp_path, described)
    values = json.loads((tmp_path / "model.json").read_text())
    values["kwargs"]["depth"] = 3
    (tmp_path / "model.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="does not fit the model"):
        open_model(tmp_path)


def test_load_weights_from_a_folder(tmp_path):
    described = card()
    model = model_of(described)
    save_model(model, tmp_path, described)
    other = model_of(described)
    castling.load_checkpoint(other, tmp_path)
    assert_same_outputs(model, other)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        castling.load_checkpoint(other, tmp_path / "x.safetensors")


def test_card_carries_the_version():
    assert card().castling_version == castling.__version__
    assert ModelCard.from_dict(card().to_dict()) == card()
    with pytest.raises(ValueError, match="unknown entries"):
        ModelCard.from_dict({**card().to_dict(), "x": 1})
    with pytest.raises(ValueError, match="lacks mean, std"):
        card(preprocessing={"image_size": 32})


def test_model_saved_in_the_first_format_opens(tmp_path):
    described = card()
    model = model_of(described)
    save_model(model, tmp_path, described)
    old = {
        "format": "castling model 1",
        "name": described.name,
        "classes": described.classes,
        "image_size": [32, 32],
        "kwargs": described.kwargs,
        "attention": None,
        "where": None,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bilinear",
        "crop_fraction": None,
        "eval_crop": "warp",
        "switched": False,
        "progress": 0.0,
        "folded": False,
        "metrics": {"val_top1": 50.0},
        "castling_version": "0.1.0",
    }
    (tmp_path / "model.json").write_text(json.dumps(old))
    opened, read = open_model(tmp_path)
    assert_same_outputs(model, opened)
    assert read.task == {"name": "classification"}
    assert (read.image_size, read.mean, read.std) == ((32, 32), (0.5,) * 3, (0.25,) * 3)
    assert read.preprocessing["interpolation"] == "bilinear"
    assert read.preprocessing["eval_crop"] == "warp"
    assert ModelCard.from_dict(read.to_dict()) == read


def test_both_files_follow_the_umask(tmp_path):
    described = card()
    before = os.umask(0o027)
    try:
        save_model(model_of(described), tmp_path, described)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"classes": "abc"}, "not a list of names"),
        ({"classes": ["a", "a"]}, "names a class twice"),
        ({"task": None}, '"task" is None'),
        ({"kwargs": None}, '"kwargs" is None'),
        ({"name": 3}, '"name" is 3'),
        ({"preprocessing": {**PREPROCESSING, "std": [0.0, 1, 1]}}, '"std" is'),
        ({"preprocessing": {**PREPROCESSING, "mean": [float("nan"), 1, 1]}}, '"mean" is'),
        ({"preprocessing": {**PREPROCESSING, "mean": [0.5]}}, '"mean" is .* three finite numbers'),
        ({"preprocessing": {**PREPROCESSING, "std": [-1, 1, 1]}}, '"std" is .* each above 0'),
        ({"preprocessing": {**PREPROCESSING, "std": [True, 1, 1]}}, '"std" is'),
        ({"preprocessing": {**PREPROCESSING, "crop_fraction": 5}}, '"crop_fraction" is 5'),
        ({"preprocessing": {**PREPROCESSING, "crop_fraction": 0}}, '"crop_fraction" is 0'),
        ({"preprocessing": {**PREPROCESSING, "image_size": [-32, 32]}}, '"image_size" is'),
        ({"preprocessing": {**PREPROCESSING, "image_size": 0}}, '"image_size" is 0'),
        ({"preprocessing": {**PREPROCESSING, "image_size": [32.5, 32]}}, '"image_size" is'),
        ({"preprocessing": {**PREPROCESSING, "image_size": "32"}}, '"image_size" is'),
        ({"progress": 2.0}, '"progress" is 2.0'),
        ({"kwargs": {"num_classes": 4}}, '"classes" has 3 names, "num_classes" in "kwargs" is 4'),
    ],
)
def test_card_without_a_meaning_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        ModelCard.from_dict({**card().to_dict(), **entries})


def test_a_damaged_card_is_named_on_every_road(tmp_path):
    described = card()
    save_model(model_of(described), tmp_path, described)
    values = json.loads((tmp_path / "model.json").read_text())
    values["preprocessing"]["std"] = [0.0, 1, 1]
    (tmp_path / "model.json").write_text(json.dumps(values))
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    roads = {
        "open": lambda: open_model(tmp_path),
        "predict": lambda: castling.Predictor(tmp_path)(image),
        "evaluate": lambda: evaluate(tmp_path, DataConfig()),
        "switch": lambda: switch_saved(tmp_path, data=DataConfig()),
    }
    for road in roads.values():
        with pytest.raises(ValueError, match=r'model\.json.*"std" is \[0\.0, 1, 1\]'):
            road()


def test_a_card_of_another_number_of_classes(tmp_path):
    described = card(kwargs={"depth": 2, "img_size": 32})
    model = build_model(described.name, {**described.kwargs, "num_classes": 5})
    save_model(model, tmp_path, described)
    with pytest.raises(ValueError, match=r'model\.json does not describe .* "classes" has 3 names'):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.fill_(torch.nan), r"head\.bias \(NaN, 3 of 3\)"),
        (lambda t: t.to(torch.int8), r"head\.bias \(int8 for floating point\)"),
        (lambda t: t > 0, r"head\.bias \(bool for floating point\)"),
        (lambda t: t.to(torch.complex64), r"head\.bias \(complex\)"),
    ],
)
def test_numbers_that_are_no_weights_are_refused_on_every_road(tmp_path, change, message):
    described = card()
    save_model(model_of(described), tmp_path, described)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    state["head.bias"] = change(state["head.bias"])
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    teacher = DistillConfig(kind="hard", teacher=str(tmp_path))
    roads = {
        "open": lambda: open_model(tmp_path),
        "load": lambda: castling.load_checkpoint(model_of(described), tmp_path),
        "predict": lambda: castling.Predictor(tmp_path)(image),
        "evaluate": lambda: evaluate(tmp_path, DataConfig()),
        "switch": lambda: switch_saved(tmp_path, data=DataConfig()),
        "teacher": lambda: load_teacher(teacher, ["a", "b", "c"]),
        "start": lambda: start_from(model_of(described), tmp_path),
    }
    for road in roads.values():
        with pytest.raises(ValueError, match=rf"(?s){tmp_path}.*{message}"):
            road()
