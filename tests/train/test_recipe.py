import re
from pathlib import Path

import pytest
import yaml

import castling.train as train_package
from castling.train import (
    Recipe,
    load_recipe,
    parse_recipe,
    recipe_from_dict,
    recipe_parser,
    recipe_to_dict,
    recipe_to_yaml,
)
from castling.train.recipe_file import recipe_differences

RECIPES = sorted((Path(train_package.__file__).parents[3] / "recipes").glob("*.yaml"))


def test_default_recipe_survives_yaml():
    recipe = Recipe()
    assert recipe_from_dict(yaml.safe_load(recipe_to_yaml(recipe))) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_committed_recipe_parses_and_round_trips(path):
    recipe = load_recipe(path)
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    first = path.read_text().splitlines()[0]
    assert re.match(rf"# castling train --config recipes/{re.escape(path.name)}", first)


def test_every_published_row_has_a_recipe():
    names = {path.stem for path in RECIPES}
    rows = {f"castling-levit-{w}" for w in (128, 192, 256, 384)}
    rows |= {f"castling-mvitv2-{s}" for s in "tsb"} | {f"castling-deit-{s}" for s in "tb"}
    rows |= {f"qt-vit-{i}" for i in range(1, 7)}
    rows |= {f"cas-vit-{s}{end}" for s in ("xs", "s", "m", "t") for end in ("", "-384")}
    assert rows | {"digits", "cifar10", "imagenette128"} <= names


def test_flags_lie_over_the_file(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("epochs: 7\noptim: {lr: 0.5, weight_decay: 0.3}\n")
    recipe = load_recipe(file, ["--optim.lr", "1e-3", "--model.attention", "softmax"])
    assert (recipe.epochs, recipe.optim.lr, recipe.optim.weight_decay) == (7, 1e-3, 0.3)
    assert recipe.model.attention == "softmax"


def test_attention_with_options_from_yaml(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: {attention: {name: linear_angular, local: grid2d, auxiliary: {schedule: gate}}}"
    )
    attention = load_recipe(file).model.attention
    assert attention == {
        "name": "linear_angular",
        "local": "grid2d",
        "auxiliary": {"schedule": "gate"},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.lrr", "1"], "optim.lrr"),
        (["--clip.mode", "sometimes"], "sometimes"),
        (["--epochs", "many"], "many"),
        (["--optim.lr", "-1"], "optim.lr must be positive"),
        (["--distill.kind", "hard"], "distill.teacher is empty"),
        (["--ema.self_distill", "2"], "set ema.decay"),
        (["--data.augment.mixup", "-1"], "mixup"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_recipe(arguments)


def test_unknown_key_in_file_is_named(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("optim: {learning_rate: 1}\n")
    with pytest.raises(ValueError, match="learning_rate"):
        load_recipe(file)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_recipe("nowhere.yaml")


def test_help_explains_options():
    text = " ".join(recipe_parser(prog="x").format_help().split())
    assert "final rate of stochastic depth" in text
    assert "largest allowed relative gap of the outputs" in text
    assert text.startswith("usage: x [--config FILE] [--SECTION.OPTION VALUE ...]")


def test_differences_ignore_where_it_runs():
    old = recipe_from_dict({"epochs": 3})
    same = recipe_from_dict({"epochs": 3, "hardware": {"workers": 2}, "save": {"log_steps": 9}})
    other = recipe_from_dict({"epochs": 4, "model": {"kwargs": {"depth": 2}}})
    assert recipe_differences(old, same) == []
    assert recipe_differences(old, other)[0].startswith("epochs: 3")
    assert any("depth" in line or "kwargs" in line for line in recipe_differences(old, other))


def test_abbreviated_flags_are_refused():
    with pytest.raises(ValueError, match="--epoch"):
        parse_recipe(["--epoch", "3"])
