"""Starting weights and plans on the road of a training run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import castling
from castling.models.saved import open_model
from castling.surgery.plan import Plan, PlannedLayer, Predicted
from castling.train import dry_run, recipe_from_dict, train
from castling.train.build import build, check, open_data
from castling.train.recipe import Recipe
from castling.train.resolve import with_plan

TINY = {"depth": 2, "embed_dim": 16}


def recipe(**model: Any) -> Recipe:
    return recipe_from_dict(
        {
            "model": {"name": "castling_deit_pico", "kwargs": TINY, **model},
            "data": {
                "source": "digits",
                "split": {"subset": 64},
                "transform": {"image_size": 16},
                "loader": {"batch_size": 32},
            },
            "epochs": 1,
            "hardware": {"accelerator": "cpu"},
            "switch": {"enabled": False},
        }
    )


@pytest.fixture
def host(tmp_path: Path) -> nn.Module:
    """A softmax ViT for 1000 classes and images of 24 pixels, saved as weights.pth."""
    torch.manual_seed(7)
    model = timm.create_model("deit_pico", num_classes=1000, img_size=24, **TINY)
    torch.save({"model": model.state_dict(), "path": tmp_path}, tmp_path / "weights.pth")
    return model


def test_a_model_starts_from_its_hosts_weights(tmp_path: Path, host: nn.Module) -> None:
    wanted = recipe(checkpoint=str(tmp_path / "weights.pth"))
    check(wanted)
    data, task = open_data(wanted)
    model, card, report = build(wanted, task)
    assert report is not None
    assert report.kept_head == ("head.weight", "head.bias")
    assert report.resized == ("pos_embed",)
    assert report.new == tuple(f"blocks.{i}.attn.dconv.weight" for i in range(2))
    assert torch.equal(model.blocks[1].attn.qkv.weight, host.blocks[1].attn.qkv.weight)
    assert model.head.weight.shape == (10, 16)
    assert card.classes == data.classes


def test_training_says_what_was_taken(
    tmp_path: Path, host: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe(checkpoint=str(tmp_path / "weights.pth")), tmp_path / "run")
    said = capsys.readouterr().err.splitlines()
    assert f"weights: 30 entries of {tmp_path / 'weights.pth'}, model" in said
    assert "  new classifier, not from the file: head.weight, head.bias" in said
    assert "  pos_embed resized from 6×6 to 4×4" in said


def test_a_run_starts_another_at_a_larger_size(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "first", progress=False)
    first, _ = open_model(tmp_path / "first")
    for start in ("first", "first/model.safetensors", "first/checkpoints/last.ckpt"):
        wanted = recipe(checkpoint=str(tmp_path / start))
        transform = dataclasses.replace(wanted.data.transform, image_size=32)
        wanted = dataclasses.replace(
            wanted, data=dataclasses.replace(wanted.data, transform=transform)
        )
        check(wanted)
        model, _, report = build(wanted, open_data(wanted)[1])
        assert report is not None
        assert (report.resized, report.kept_head) == (("pos_embed",), ())
        assert torch.equal(model.head.weight, first.head.weight)


def test_a_run_with_a_moving_average(tmp_path: Path) -> None:
    first = dataclasses.replace(
        recipe(), ema=dataclasses.replace(recipe().ema, decay=0.9), epochs=2
    )
    train(first, tmp_path / "first", progress=False)
    averaged, _ = open_model(tmp_path / "first")
    path = str(tmp_path / "first" / "checkpoints" / "last.ckpt")
    task = open_data(recipe())[1]
    plain, _, report = build(recipe(checkpoint=path), task)
    assert report is not None
    (other,) = report.others
    assert (report.source, other) == ("state_dict", "callbacks.WeightAverage.average")
    model, _, _ = build(recipe(checkpoint=path, checkpoint_key=other), task)
    assert torch.equal(model.head.weight, averaged.head.weight)
    assert not torch.equal(plain.head.weight, averaged.head.weight)


@pytest.mark.parametrize("way", [train, dry_run])
def test_weights_of_another_model_are_refused_before_anything(
    tmp_path: Path, host: nn.Module, way: Any
) -> None:
    wrong = recipe(checkpoint=str(tmp_path / "weights.pth"), kwargs={"depth": 2, "embed_dim": 32})
    arguments = (tmp_path / "run",) if way is train else ()
    with pytest.raises(ValueError, match="file holds a ViT of width 16, depth 2, patch 4"):
        way(wrong, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_does_not_need_its_starting_weights(tmp_path: Path, host: nn.Module) -> None:
    wanted = recipe(checkpoint=str(tmp_path / "weights.pth"))
    train(wanted, tmp_path / "run", progress=False)
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "weights.pth").unlink()
    assert train(wanted, tmp_path / "run", progress=False).metrics


def plan_for(model: nn.Module, path: Path, linear: int) -> None:
    layers = tuple(
        PlannedLayer(
            name, 17, layer.num_heads, 8, 8, 1.0, 1.0, "linear" if i < linear else "softmax"
        )
        for i, (name, layer) in enumerate(castling.surgery.convertible(model).items())
    )
    Plan(
        model="deit_pico",
        attention=castling.attention.attention_config("linear_angular"),
        device="cpu",
        threads=1,
        torch="2",
        backends=("naive",),
        image_size=(16, 16),
        batch=1,
        layers=layers,
        predicted=Predicted(1.0, 1.0, 1.0),
    ).save(path)


def test_a_plans_file_in_a_recipe(tmp_path: Path, host: nn.Module) -> None:
    path = tmp_path / "plan.json"
    plan_for(host, path, linear=1)
    wanted = recipe(name="deit_pico", attention="linear_angular", where=str(path))
    train(wanted, tmp_path / "run", progress=False)
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["where"] == ["blocks.0.attn"]
    path.unlink()  # the run's own recipe names the layers
    again = castling.train.load_recipe(tmp_path / "run" / "recipe.yaml")
    assert again.model.where == ["blocks.0.attn"]
    assert train(again, tmp_path / "run", progress=False).already_finished


@pytest.mark.parametrize(
    ("options", "linear", "message"),
    [
        ({"attention": "relu_linear"}, 1, "the plan was measured for LinearAngular"),
        ({}, 1, "set model.attention"),
        ({"attention": "linear_angular"}, 0, "leaves softmax in all layers of deit_pico at 16×16"),
        ({"attention": "linear_angular", "kwargs": {"depth": 3}}, 1, "plan is of another model"),
    ],
)
def test_plans_that_do_not_fit(
    tmp_path: Path, host: nn.Module, options: dict[str, Any], linear: int, message: str
) -> None:
    plan_for(host, tmp_path / "plan.json", linear)
    wanted = recipe(name="deit_pico", where=str(tmp_path / "plan.json"), **options)
    with pytest.raises(ValueError, match=message):
        with_plan(wanted)


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ({"source": "fotos"}, {"pretrained": True}, "there is no folder or zip file at fotos"),
        ({}, {"checkpoint": "nothere.pth"}, r"/nothere\.pth; give a file of weights or the folder"),
    ],
)
def test_what_does_not_exist_is_said_before_the_network_is_asked(
    tmp_path: Path, data: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    wanted = recipe_from_dict(
        {"model": {"name": "vit_tiny_patch16_224", **model}, "data": {"source": "digits", **data}}
    )
    with pytest.raises(FileNotFoundError, match=message):
        train(wanted, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
