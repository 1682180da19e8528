"""What a recipe leaves to its files and to its task: normalisation, the kind of source."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from castling.models.card import read_card
from castling.train import dry_run, load_recipe, recipe_from_dict, train
from castling.train.recipe import Recipe
from castling.train.resolve import resolved
from castling.utils.files import write_text

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TINY = {"depth": 1, "embed_dim": 16}


def recipe(model: dict[str, Any], **transform: Any) -> Recipe:
    return recipe_from_dict(
        {
            "model": {"name": "deit_pico", "kwargs": TINY, **model},
            "data": {
                "source": "digits",
                "split": {"subset": 64},
                "transform": {"image_size": 16, **transform},
                "loader": {"batch_size": 32},
            },
            "epochs": 1,
            "hardware": {"accelerator": "cpu"},
            "save": {"best": False, "loggers": []},
        }
    )


def normalisation(found: Recipe) -> tuple[Any, Any]:
    return found.data.transform.mean, found.data.transform.std


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": "vit_tiny_patch16_224", "pretrained": True}, (HALF, HALF)),
        ({"name": "deit_tiny_patch16_224", "pretrained": True}, IMAGENET),
        ({"name": "timm:vit_tiny_patch16_224", "pretrained": True}, (HALF, HALF)),
        ({"name": "castling_deit_tiny_patch16_224", "pretrained": True}, IMAGENET),
        ({"name": "vit_tiny_patch16_224"}, (None, None)),  # random weights: the source's
    ],
)
def test_pretrained_weights_bring_their_normalisation(model: Any, expected: Any) -> None:
    found = resolved(recipe({"kwargs": {}, **model}))
    assert normalisation(found) == expected
    assert resolved(found) == found


def test_what_the_recipe_says_counts() -> None:
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    model = {"name": "vit_tiny_patch16_224", "kwargs": {}, "pretrained": True}
    found = resolved(recipe(model, **own))
    assert normalisation(found) == (tuple(own["mean"]), tuple(own["std"]))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(
        timm.create_model("deit_pico", num_classes=10, img_size=16, **TINY).state_dict(), path
    )
    return path


def test_a_run_writes_it_and_goes_on_without_the_file(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = recipe({"checkpoint": str(weights)})
    train(wanted, tmp_path / "run")
    assert "images are normalised with mean 0.5 0.5 0.5" in capsys.readouterr().err
    assert normalisation(load_recipe(tmp_path / "run" / "recipe.yaml")) == (HALF, HALF)
    assert tuple(read_card(tmp_path / "run" / "model.json").mean) == HALF
    weights.unlink()
    assert train(wanted, tmp_path / "run", progress=False).already_finished


def test_weights_of_a_run_bring_that_runs_normalisation(tmp_path: Path) -> None:
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    train(recipe({}, mean=mean, std=std), tmp_path / "first", progress=False)
    for start in (tmp_path / "first", tmp_path / "first" / "model.safetensors"):
        assert normalisation(resolved(recipe({"checkpoint": str(start)}))) == (mean, std)


def test_a_run_of_an_earlier_version_keeps_the_sources(weights: Path, tmp_path: Path) -> None:
    """Earlier versions left the normalisation open, and took the source's."""
    wanted = recipe({"checkpoint": str(weights)})
    train(wanted, tmp_path / "run", progress=False)
    file = tmp_path / "run" / "recipe.yaml"
    old = dataclasses.replace(load_recipe(file).data.transform, mean=None, std=None)
    text = file.read_text()
    start, end = text.index("    mean:"), text.index("    interpolation:")
    write_text(file, text[:start] + "    mean: null\n    std: null\n" + text[end:])
    assert load_recipe(file).data.transform == old
    assert train(wanted, tmp_path / "run", progress=False).already_finished


def test_the_dry_run_takes_it_too(weights: Path, tmp_path: Path) -> None:
    dry_run(recipe({"checkpoint": str(weights)}), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "source", "name"),
    [
        ("pretraining", "photos", "unlabelled"),
        ("pretraining", {"name": "folder", "path": "photos", "layout": "classes"}, "folder"),
        ("pretraining", "digits", "digits"),
        ("classification", "photos", "folder"),
    ],
)
def test_pretraining_reads_all_images_of_a_folder(task: str, source: Any, name: str) -> None:
    values = {"task": task, "data": {"source": source}, "model": {"name": "mae/deit_pico"}}
    if task == "classification":
        values["model"] = {"name": "deit_pico"}
    assert resolved(recipe_from_dict(values)).data.source.name == name
