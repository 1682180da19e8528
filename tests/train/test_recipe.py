import itertools
import re
from pathlib import Path

import pytest
import yaml

import castling.train as train_package
from castling.models.builder import build_model
from castling.models.skeleton import without_memory
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
from castling.train.resolve import resolved

RECIPES = sorted((Path(train_package.__file__).parents[3] / "recipes").glob("*.yaml"))


def test_default_recipe_survives_yaml():
    recipe = Recipe()
    assert recipe_from_dict(yaml.safe_load(recipe_to_yaml(recipe))) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_committed_recipe_parses_and_round_trips(path):
    recipe = load_recipe(path)
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    assert recipe_from_dict(yaml.safe_load(recipe_to_yaml(recipe))) == recipe
    first = path.read_text().splitlines()[0]
    assert re.match(rf"# castling train --config recipes/{re.escape(path.name)}", first)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_committed_recipe_names_a_model_that_takes_its_options(path):
    recipe = resolved(load_recipe(path))
    model = recipe.model
    kwargs = dict(model.kwargs)
    if model.drop_path is not None:
        kwargs["drop_path_rate"] = model.drop_path
    without_memory(
        lambda: build_model(model.name, kwargs, model.attention, model.where, head=model.head)
    )


def test_every_published_row_has_a_recipe():
    names = {path.stem for path in RECIPES}
    rows = {f"castling-levit-{w}" for w in (128, 192, 256, 384)}
    rows |= {f"castling-mvitv2-{s}" for s in "tsb"} | {f"castling-deit-{s}" for s in "tb"}
    rows |= {f"qt-vit-{i}" for i in range(1, 7)}
    rows |= {f"cas-vit-{s}{end}" for s in ("xs", "s", "m", "t") for end in ("", "-384")}
    rows |= {f"picodet-{size}" for size in ("s-320", "s-416", "m-320", "m-416")}
    rows |= {f"picodet-l-{side}" for side in (320, 416, 640)}
    rows |= {f"castling-picodet-{size}" for size in ("s-320", "s-416", "m-416", "l-320", "l-416")}
    rows |= {f"{h}-cas-vit-{s}" for h in ("retinanet", "mask-rcnn") for s in ("xs", "s", "m", "t")}
    rows |= {f"cascade-mask-rcnn-{m}-{i}" for m in ("qt-vit",) for i in (1, 2, 3)}
    rows |= {f"cascade-mask-rcnn-efficientvit-b{i}" for i in (1, 2, 3)}
    rows |= {"digit_scenes", "bccd", "detect"}
    backbones = {f"{m}-{i}" for m, i in itertools.product(("qt-vit", "efficientvit-b"), (1, 2, 3))}
    backbones = {name.replace("b-", "b") for name in backbones}
    rows |= {f"{head}-{b}" for head in ("upernet", "efficientvit-head") for b in backbones}
    rows |= {f"semantic-fpn-cas-vit-{size}" for size in ("xs", "s", "m", "t")}
    rows |= {"mask2former-castling-vit-b", "digit_scenes_segmentation", "camvid", "segment"}
    assert rows | {"digits", "cifar10", "imagenette128", "finetune", "photos"} <= names


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
        (["--optim.lr", "-1"], "optim.lr"),
        (["--task.distill.kind", "hard"], "task.distill.teacher is empty"),
        (["--task.mix.mixup", "-1"], "mixup"),
        (["--task", "classifcation"], "did you mean classification"),
        (["--data.source.name", "digit"], "digits"),
        (["--data.image_size", "32"], "--data.image_size is --data.transform.image_size now"),
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
    assert text.startswith(
        "usage: x [--config FILE] [--task NAME] [--data.source SOURCE] [--SECTION.OPTION VALUE ...]"
    )


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


def test_source_may_be_a_word_a_path_or_a_section(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("data: {source: {name: torchvision, dataset: CIFAR10, download: true}}\n")
    source = load_recipe(file).data.source
    assert (source.name, source.dataset, source.download) == ("torchvision", "CIFAR10", True)
    folder = load_recipe(file, ["--data.source", "photos"]).data.source
    assert (folder.name, folder.path) == ("folder", "photos")
    moved = load_recipe(file, ["--data.source.root", "elsewhere"]).data.source
    assert (moved.dataset, moved.root) == ("CIFAR10", "elsewhere")
    assert parse_recipe(["--data.source=digits"]).data.source.name == "digits"


def test_flags_win_over_files_and_later_files_over_earlier_ones(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("epochs: 3\nseed: 5\nmodel: {kwargs: {depth: 2}}\n")
    second.write_text("epochs: 4\nmodel: {kwargs: {embed_dim: 32}}\n")
    recipe = parse_recipe(
        ["--optim.lr", "0.5", "--config", str(first), "--config", str(second), "--seed", "6"]
    )
    assert (recipe.epochs, recipe.seed, recipe.optim.lr) == (4, 6, 0.5)
    assert recipe.model.kwargs == {"embed_dim": 32}


OLD = """
task: classification
model: {name: qt_vit_4, drop_path: 0.1}
data:
  source: torchvision:CIFAR10
  root: packs
  download: true
  image_size: 224
  batch_size: 128
  eval_batch_size: 64
  workers: 8
  subset: 5000
  val_fraction: 0.05
  crop_fraction: 0.95
  seed: 0
  augment: {crop: resized, scale: [0.3, 1.0], erase_probability: 0.2, mixup: 0.2, cutmix: 0.3,
    multi_scale: [128, 160], mix_probability: 0.9}
loss: {kind: binary_cross_entropy, smoothing: 0.2}
distill: {kind: soft, teacher: deit_pico, temperature: 2.0, weight: 0.4}
optim: {lr: 0.1, momentum: 0.9, eps: null, no_decay: []}
ema: {decay: 0.9998, warmup: 4000, self_distill: 2.0, self_distill_start: 0.5}
hardware: {deterministic: false, precision: bf16}
save: {statistics_batches: 2, every_steps: 7}
"""


def test_recipe_of_the_first_layout_is_read(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text(OLD)
    recipe = load_recipe(file)
    task, data = recipe.task, recipe.data
    assert (task.loss.kind, task.loss.smoothing, task.erase) == ("binary_cross_entropy", 0.2, 0.2)
    assert (task.mix.mixup, task.mix.cutmix, task.mix.probability) == (0.2, 0.3, 0.9)
    assert (task.distill.kind, task.distill.weight) == ("soft", 0.4)
    assert (task.self_distill.weight, task.self_distill.start) == (2.0, 0.5)
    assert (data.source.dataset, data.source.root, data.source.download) == (
        "CIFAR10",
        "packs",
        True,
    )
    assert (data.split.subset, data.split.val_fraction) == (5000, 0.05)
    assert (data.loader.batch_size, data.loader.eval_batch_size, data.loader.workers) == (
        128,
        64,
        8,
    )
    transform = data.transform
    assert (transform.image_size, transform.crop_fraction) == (224, 0.95)
    assert (transform.crop, transform.scale) == ("resized", (0.3, 1.0))
    assert transform.multi_scale == (128, 160)
    assert (recipe.ema.decay, recipe.save.every_steps) == (0.9998, 7)
    assert recipe_differences(recipe, recipe_from_dict(recipe_to_dict(recipe))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: 3", "task is 3; it must be a mapping"),
        ("task: [classification]", "it must be a mapping"),
        ("task: {name: 3}", "task.name is 3"),
        ("optim: {lr: 1.0}\noptim: {weight_decay: 0.1}", "'optim' is given twice"),
        ("task: {erase: 0.1}\ndata: {batch_size: 64}", "data.batch_size is data.loader.batch_size"),
        ("optimiser: {lr: 1}", "unknown section 'optimiser'; did you mean optim"),
        ("config: other.yaml", "unknown section 'config'"),
        ("optim: {lr: .inf}", "optim.lr"),
        ("data: {source: {name: folder}}", "path"),
        ("task: {erase: 0.1}\ndata: {trnsform: {}}", "trnsform"),
        ("data: {trnsform: {}}", "trnsform"),
        ("task: {loss: {}, los: {}}", "'los' in task; did you mean loss"),
        ("task: {mix: {mixupp: {}}}", "'mixupp' in task.mix; did you mean mixup"),
        ("data: {loader: {batchsize: {}}}", "did you mean batch_size"),
        ("data: [digits]", "data is ['digits']"),
        ("model: {kwargs: {in_chans: 1}}", "in_chans is 1, but every task feeds images of 3 chan"),
    ],
)
def test_recipe_without_a_meaning_is_refused(tmp_path, text, message):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(file)


def test_empty_sections_say_nothing(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("task:\noptim:\ndata: {source: null, loader: {batch_size: 8}}\nema: null\n")
    recipe = load_recipe(file)
    assert recipe.data.loader.batch_size == 8
    assert (
        recipe_differences(recipe, recipe_from_dict({"data": {"loader": {"batch_size": 8}}})) == []
    )


def test_source_by_name_and_options_on_the_command_line():
    source = parse_recipe(["--data.source.name", "folder", "--data.source.path", "ds"]).data.source
    assert (source.name, source.path) == ("folder", "ds")
    flags = ["--data.source=torchvision:CIFAR10", "--data.source.download=true"]
    assert parse_recipe(flags).data.source.download is True


def test_old_option_that_is_gone_is_refused_where_it_mattered(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("loss: {smoothing: 0.1}\noptim: {momentum: 0.5}\n")
    with pytest.raises(ValueError, match=r"optim.momentum is gone; it was 0.5"):
        load_recipe(file)


def test_training_knows_no_task_by_name():
    folder = Path(train_package.__file__).parent
    names = re.compile("classification|detection|segmentation|pretraining|distillation")
    for path in folder.rglob("*.py"):
        assert not names.search(path.read_text().replace("self_distill", "")), path


def test_a_checkpoint_takes_the_place_of_pretrained_weights(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("model: {name: deit_pico, pretrained: true}\n")
    assert load_recipe(file).model.pretrained
    found = load_recipe(file, ["--model.checkpoint", "my_vit.pth"]).model
    assert (found.pretrained, found.checkpoint) == (False, "my_vit.pth")
