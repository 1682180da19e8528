"""``castling convert``: a saved classifier or a model of timm's, and a folder of images."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

import castling
import castling_launcher
from castling.conversion import state
from castling.data.config import LoaderConfig
from castling.data.sources.unlabelled import UnlabelledConfig
from castling.deploy import converting
from castling.deploy.conversion_images import ConversionImages, conversion_data
from castling.models.card import ModelCard
from castling.models.saved import open_model, save_model
from castling.surgery.plan import load_plan

PAGE = Path(castling.__file__).parents[2] / "docs" / "reference" / "file-formats.md"
SHORT = ["--closed_form_images", "8", "--layer_views", "16", "--model_views", "16"]
SHORT += ["--held_out", "8", "--batch_size", "8", "--quiet"]


def run(arguments):
    return castling_launcher.main(arguments)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for i in range(40):
        path = folder / f"{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    return folder


def saved(folder, **changed):
    torch.manual_seed(0)
    model = timm.create_model("deit_pico", num_classes=3)
    values = {
        "name": "deit_pico",
        "classes": ["a", "b", "c"],
        "preprocessing": {"image_size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
        "kwargs": {"num_classes": 3},
    }
    save_model(model, folder, ModelCard(**values | changed))
    return folder


def test_a_saved_classifier(tmp_path, photos, capsys):
    teacher, output = saved(tmp_path / "teacher"), tmp_path / "linear"
    order = ["convert", str(teacher), "--data", str(photos), "--output", str(output), *SHORT]
    assert run([*order, "--where", "blocks.[1-3].attn"]) == 0
    said = capsys.readouterr()
    assert "end to end" in said.out
    assert not said.err
    model, card = open_model(output)
    assert list(card.where) == ["blocks.1.attn", "blocks.2.attn", "blocks.3.attn"]
    assert card.attention["name"] == "relu_linear"
    assert card.classes == ["a", "b", "c"]
    assert type(model.blocks[0].attn) is timm.layers.Attention
    report = json.loads((output / "conversion.json").read_text())
    page = PAGE.read_text(encoding="utf-8").partition("## conversion.json")[2].partition("\n## ")[0]
    for key in (*report, *report["stages"][0]):
        assert f"`{key}`" in page, key
    assert [stage["views"] for stage in report["stages"]] == [0, 8, 16, 16]
    assert report["config"]["layer_views"] == 16
    assert 0 < report["images"] < 8  # about a tenth of forty images
    # What the report measured last is what the file holds.
    assert run(["predict", str(output), str(photos / "0" / "0.png")]) == 0
    capsys.readouterr()
    before = (output / "model.safetensors").read_bytes()
    assert run([*order, "--quiet"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (output / "model.safetensors").read_bytes() == before
    again = tmp_path / "again"
    order[order.index(str(output))] = str(again)
    assert run([*order, "--where", "blocks.[1-3].attn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(again)
    # The same seed gives the same weights.
    assert (again / "model.safetensors").read_bytes() == before


def test_of_a_run_the_switched_model_is_converted(tmp_path, photos):
    teacher = saved(tmp_path / "teacher")
    model, card = open_model(teacher)
    with torch.no_grad():
        model.head.bias.add_(1.0)
    save_model(model, teacher / "switched", card)
    nothing = ["--closed_form_images", "0", "--layer_views", "0", "--model_views", "0"]
    order = ["convert", str(teacher), "--data", str(photos), *SHORT, *nothing]
    assert run([*order, "--output", str(tmp_path / "linear")]) == 0
    assert torch.equal(open_model(tmp_path / "linear")[0].head.bias, model.head.bias)


def test_layers_that_were_converted_before_stay_so(tmp_path, photos):
    order = ["--data", str(photos), *SHORT, "--where"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    teacher = str(saved(tmp_path / "teacher"))
    assert run(["convert", teacher, "--output", first, *order, "blocks.0.attn"]) == 0
    more = ["--attention", "elu", "--output", second]
    assert run(["convert", first, *more, *order, "blocks.2.attn"]) == 0
    model, _ = open_model(second)
    found = {
        n: m.config.name
        for n, m in castling.surgery.attention_layers(model).items()
        if hasattr(m, "config")
    }
    assert found == {"blocks.0.attn": "relu_linear", "blocks.2.attn": "elu"}


def test_a_branch_is_switched_away(tmp_path, photos):
    output = tmp_path / "linear"
    order = ["convert", str(saved(tmp_path / "teacher")), "--data", str(photos), *SHORT]
    attention = "linear_angular:constant=mean,normalize=rowsum,auxiliary={}"
    assert run([*order, "--output", str(output), "--attention", attention]) == 0
    model, card = open_model(output)
    assert card.switched
    assert not castling.attention.auxiliaries(model)


@pytest.mark.parametrize(
    ("name", "task"),
    [("semantic_fpn/deit_pico", "segmentation"), ("retinanet/deit_pico", "detection")],
)
def test_the_head_of_a_dense_model_is_kept(tmp_path, photos, capsys, name, task):
    torch.manual_seed(0)
    model = castling.create_model(name, num_classes=3, img_size=[32, 64]).eval()
    card = ModelCard(
        name=name,
        classes=["a", "b", "c"],
        preprocessing={"image_size": [32, 64], "mean": [0.5] * 3, "std": [0.5] * 3},
        task={"name": task},
        head={"name": name.partition("/")[0]},
        kwargs={"num_classes": 3, "img_size": [32, 64]},
    )
    save_model(model, tmp_path / "teacher", card)
    output = tmp_path / "linear"
    order = ["convert", str(tmp_path / "teacher"), "--data", str(photos), *SHORT]
    attention = "relu_linear:local=grid2d,auxiliary={}"
    assert run([*order, "--attention", attention, "--output", str(output)]) == 0
    capsys.readouterr()
    student, card = open_model(output)
    values = student.state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith("backbone."):
            assert torch.equal(values[key], value), key
    (key,) = (key for key in values if key.endswith("blocks.0.attn.qkv.weight"))
    assert not torch.equal(values[key], model.state_dict()[key])
    layers = castling.surgery.attention_layers(student)
    assert all(layer.config.name == "relu_linear" for layer in layers.values())
    assert card.switched
    report = json.loads((output / "conversion.json").read_text())
    assert report["stages"][-1]["agreement"] is None
    # The report's cosine is that of the feature maps on the images held out.
    data = conversion_data(
        card, UnlabelledConfig(path=str(photos)), LoaderConfig(batch_size=8), seed=0
    )
    held_out = next(iter(ConversionImages(data, card, report["images"], "cpu", card.image_size)))
    assert len(held_out) == report["images"]
    with torch.no_grad():
        ours, theirs = (converting.feature_maps(m, held_out) for m in (student, model))
    cosines = [F.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(ours, theirs, strict=True)]
    wanted = float(sum(cosines)) / len(cosines)
    assert report["stages"][-1]["cosine"] == pytest.approx(wanted, abs=1e-5)
    assert run(["predict", str(output), str(photos / "0" / "0.png")]) == 0


def test_features_of_all_levels_count():
    torch.manual_seed(0)
    model = castling.create_model(
        "semantic_fpn/qt_vit_pico", num_classes=3, head={"strides": [2, 4, 8]}
    ).eval()
    batch = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = converting.feature_maps(model, batch)
        wanted = model.backbone(batch)
    assert len(maps) == len(wanted) > 1
    for tokens, each in zip(maps, wanted, strict=True):
        assert torch.equal(tokens.transpose(1, 2).reshape(each.shape), each)


def test_a_model_of_timm_with_weights(tmp_path, photos, capsys):
    model = timm.create_model("deit_pico", num_classes=5)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    order = ["convert", "deit_pico", "--checkpoint", str(tmp_path / "weights.safetensors")]
    order += ["--data", str(photos), "--output", str(tmp_path / "linear"), *SHORT]
    assert run(order) == 2
    assert "num_classes=5" in capsys.readouterr().err
    assert run([*order, "--num_classes", "5"]) == 0
    _, card = open_model(tmp_path / "linear")
    assert card.classes == [f"class {i}" for i in range(5)]
    assert card.preprocessing["mean"] == list(model.default_cfg["mean"])
    named = ["--classes", "0", "1", "2", "d", "e", "--overwrite"]
    assert run([*order, *named, "--num_classes", "4"]) == 2
    assert "5 classes are named, 5 different ones, and num_classes is 4" in capsys.readouterr().err
    assert run([*order, *named]) == 0
    assert open_model(tmp_path / "linear")[1].classes == ["0", "1", "2", "d", "e"]
    # Images in folders of these names can be evaluated.
    assert run(["evaluate", str(tmp_path / "linear"), "--data", str(photos)]) == 0


def test_what_cannot_be_converted_is_refused_before_any_work(tmp_path, photos, capsys):
    def refused(*order):
        assert run(["convert", *order, "--output", str(tmp_path / "linear")]) == 2
        assert not (tmp_path / "linear").exists()
        return capsys.readouterr().err

    data = ["--data", str(photos)]
    teacher = str(saved(tmp_path / "teacher"))
    assert "neither a folder nor a model" in refused("no_such_model", *data)
    assert "there is no folder" in refused(teacher, "--data", str(tmp_path / "none"))
    assert "of its own" in refused(teacher, *data, "--num_classes", "7")
    assert "matches no attention" in refused(teacher, *data, "--where", "layers.0")
    assert "must not be negative" in refused(teacher, *data, "--layer_lr", "-1")
    encoder = saved(tmp_path / "encoder", task={"name": "pretraining"})
    assert "this converts classifiers, detectors" in refused(str(encoder), *data)
    assert "is of detection" in refused(teacher, "--data", "digit_scenes")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images" in refused(teacher, "--data", str(empty))


def plan_of(teacher, **layers):
    """A plan of a saved teacher in which linear attention saves 1 ms a layer of 10 ms in all."""
    found = castling.plan(open_model(teacher)[0], "relu_linear", image_size=32, verify=False)
    changed = {"tokens": 100, "softmax_ms": 2.0, "linear_ms": 1.0} | layers
    return dataclasses.replace(
        found,
        layers=tuple(dataclasses.replace(layer, **changed) for layer in found.layers),
        predicted=dataclasses.replace(found.predicted, softmax=10.0),
    )


def test_a_budget_is_kept_by_a_plan_that_is_saved(tmp_path, photos, capsys):
    teacher, output = saved(tmp_path / "teacher"), tmp_path / "mixed"
    plan_of(teacher).save(tmp_path / "p.json")
    order = ["convert", str(teacher), "--data", str(photos), "--output", str(output), *SHORT]
    order += ["--plan", str(tmp_path / "p.json")]
    assert run(order) == 2
    assert "a plan without a budget" in capsys.readouterr().err
    assert run([*order, "--at_most_ms", "5"]) == 2
    assert "5 ms cannot be kept" in capsys.readouterr().err
    assert run([*order, "--at_most_ms", "8"]) == 0
    assert "chosen" in capsys.readouterr().out
    report = json.loads((output / "conversion.json").read_text())
    assert len(report["chosen"]["linear"]) == 2
    assert report["chosen"]["milliseconds"] == 8.0
    assert len(load_plan(output / "conversion_plan.json").layers) == 4
    _, card = open_model(output)
    assert sorted(card.where) == sorted(report["chosen"]["linear"])


def test_a_budget_is_measured_where_there_is_no_plan(tmp_path, photos, monkeypatch, capsys):
    teacher, output = saved(tmp_path / "teacher"), tmp_path / "mixed"
    order = ["convert", str(teacher), "--data", str(photos), "--output", str(output), *SHORT]
    asked = []

    def measured(model, attention, **options):
        asked.append((attention, options["image_size"]))
        return plan_of(teacher, tokens=64)

    monkeypatch.setattr(converting, "measure_plan", measured)
    assert run([*order, "--at_least_agreement", "0.5"]) == 2
    assert "64 tokens are at most twice the 32 dimensions" in capsys.readouterr().err
    assert asked == [(castling.ReLULinear(), (32, 32))]
    assert not output.exists()
    for limits in (["--at_most_ms", "5"], ["--where", "blocks.0.attn"]):
        assert run([*order, "--at_least_agreement", "0.5", *limits]) == 2
    assert run([*order, "--at_least_agreement", "98"]) == 2
    assert "0.98 is 98 %" in capsys.readouterr().err
    assert len(asked) == 1  # refused before anything is measured


def test_the_same_command_goes_on(tmp_path, photos, monkeypatch, capsys):
    teacher = saved(tmp_path / "teacher")
    order = ["convert", str(teacher), "--data", str(photos), *SHORT]
    assert run([*order, "--output", str(tmp_path / "whole")]) == 0
    output = tmp_path / "again"
    monkeypatch.setattr(state, "EVERY", 0.0)
    write = state.StateFile.write

    def interrupted(self, standing, report):
        write(self, standing, report)
        if standing.stage == "end to end":
            raise KeyboardInterrupt

    monkeypatch.setattr(state.StateFile, "write", interrupted)
    assert run([*order, "--output", str(output)]) == 130
    assert (output / "conversion.ckpt").is_file()
    monkeypatch.setattr(state.StateFile, "write", write)
    assert run([*order, "--layer_lr", "1", "--output", str(output)]) == 2
    assert "other arguments (config)" in capsys.readouterr().err
    assert run([*order, "--output", str(output)]) == 0
    assert not (output / "conversion.ckpt").exists()
    models = [open_model(folder)[0].state_dict() for folder in (tmp_path / "whole", output)]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
