import csv
import dataclasses
import importlib.util
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

import castling.train as train_package
from castling.data import DataConfig, DataError, DigitsConfig, SplitConfig
from castling.deploy import evaluate
from castling.models.saved import open_model
from castling.train import (
    HardwareConfig,
    RunLockedError,
    TrainingInterrupted,
    dry_run,
    load_recipe,
    recipe_from_dict,
    train,
)
from castling.train.hardware import check_hardware, is_first_process
from castling.train.loggers import check_loggers
from castling.train.recipe_file import recipe_to_dict
from castling.train.run_lock import locked

RECIPES = Path(train_package.__file__).parents[3] / "recipes"
BASE = {
    "model": {"name": "castling_deit_pico", "kwargs": {"depth": 1, "embed_dim": 16}},
    "data": {
        "source": "digits",
        "split": {"subset": 96},
        "transform": {"image_size": 16},
        "loader": {"batch_size": 32},
    },
    "epochs": 1,
    "hardware": {"accelerator": "cpu"},
}


def merged(first, second):
    """``second`` laid over ``first``; keyword arguments are replaced whole."""
    result = dict(first)
    for name, value in second.items():
        deep = isinstance(value, dict) and isinstance(result.get(name), dict) and name != "kwargs"
        result[name] = merged(result[name], value) if deep else value
    return result


def with_(**sections):
    return recipe_from_dict(merged(BASE, sections))


class At(Callback):
    """Calls ``action`` before a step, counted from 0."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.action()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, train(with_(epochs=2), folder, progress=False)


def test_folder_holds_what_is_promised(run):
    folder, result = run
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "recipe.yaml",
        "predictions.csv",
        "examples",
        "split.json",
        "metrics.csv",
        "auxiliary.csv",
        "tensorboard",
        "checkpoints",
        "model.safetensors",
        "model.json",
        "README.md",
        "switched",
        "result.json",
    }
    assert list((folder / "tensorboard").glob("events*"))
    assert load_recipe(folder / "recipe.yaml") == with_(epochs=2)
    written = json.loads((folder / "result.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    certificate = json.loads((folder / "switched" / "certificate.json").read_text())
    assert certificate["exact"]
    assert certificate["max_gap"] == 0.0


def test_table_of_the_run(run):
    folder, result = run
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "epoch",
        "step",
        "train_loss",
        "val_loss",
        "val_top1",
        "val_top5",
        "lr",
        "seconds",
    ]
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6")]
    assert float(rows[-1]["val_top1"]) == pytest.approx(result.metrics["val_top1"])


def test_saved_models_give_the_reported_figures(run):
    folder, result = run
    for place, metrics in (
        (folder, result.metrics),
        (folder / "switched", result.switched_metrics),
    ):
        for split in ("val", "test"):
            found = evaluate(place, split=split)
            assert found.metrics["top1"] == pytest.approx(metrics[f"{split}_top1"])
            assert found.metrics["loss"] == pytest.approx(metrics[f"{split}_loss"], rel=1e-5)
            assert len(found.per_class) == 10
    assert evaluate(folder, split="train").images == 96


def test_images_of_the_run_are_divided_as_for_training(run):
    folder, result = run
    named = DataConfig(source=DigitsConfig())  # as --data digits says it
    assert evaluate(folder, named, split="train").images == result.images["train"] == 96
    other = dataclasses.replace(named, split=SplitConfig(subset=50))
    assert evaluate(folder, other, split="train").images == 50


def test_evaluation_of_a_network_puts_its_mode_back(run):
    folder, _ = run
    model, _ = open_model(folder)
    model.train()
    found = evaluate(model, with_().data)
    assert model.training
    assert found.images_per_second > 0
    with pytest.raises(ValueError, match="split must be"):
        evaluate(model, with_().data, split="dev")
    with pytest.raises(ValueError, match="needs a data config"):
        evaluate(model)


def test_model_that_learns(tmp_path):
    result = train(
        with_(
            task={"loss": {"smoothing": 0.0}},
            data={
                "split": {"subset": None},
                "transform": {"crop": "none"},
                "loader": {"batch_size": 64},
            },
            model={"name": "cas_vit_pico", "kwargs": {}},
            optim={"lr": 5e-3},
            epochs=2,
        ),
        tmp_path,
        progress=False,
    )
    assert result.metrics["test_top1"] > 60
    assert result.switched_metrics == {}


def test_accumulation_counts_steps(tmp_path):
    result = train(
        with_(hardware={"accumulate": 2}, data={"loader": {"batch_size": 16}}),
        tmp_path,
        progress=False,
    )
    assert result.steps == 3


def test_max_steps_ends_the_schedule(tmp_path):
    result = train(with_(max_steps=2, epochs=5), tmp_path, progress=False)
    assert result.steps == 2
    assert result.switch["exact"]  # the mask's ramp ends where the run does


def test_refused_switch_is_told_and_loses_nothing(tmp_path):
    attention = {"name": "linear_angular", "auxiliary": {"schedule": "constant"}}
    values = {"attention": attention}
    result = train(with_(model=values), tmp_path / "a", progress=False)
    assert "above the tolerance" in result.switch_refused
    assert result.switched_metrics == {}
    assert not (tmp_path / "a" / "switched").exists()
    open_model(tmp_path / "a")
    forced = train(with_(model=values, switch={"force": True}), tmp_path / "b", progress=False)
    assert forced.switch["forced"]
    assert forced.switched_metrics


def test_distilled_host_with_two_heads(tmp_path):
    result = train(
        with_(
            model={"name": "castling_levit_pico", "kwargs": {}},
            data={"transform": {"image_size": 64}},
            task={
                "distill": {
                    "kind": "hard",
                    "teacher": "deit_pico",
                    "pretrained": False,
                    "kwargs": {"img_size": 64, "depth": 1},
                }
            },
            max_steps=1,
        ),
        tmp_path,
        progress=False,
    )
    assert result.steps == 1


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    pressed = At(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingInterrupted, match="Run the same command again"):
        train(with_(), tmp_path, progress=False, callbacks=[pressed])
    assert signal.getsignal(signal.SIGINT) is handler
    assert train(with_(), tmp_path, resume="must", progress=False).steps == 3


def test_what_does_not_fit_is_said_before_training(tmp_path):
    with pytest.raises(ValueError, match="does not take images of 15×15"):
        train(with_(data={"transform": {"image_size": 15}}), tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="outputs, the data 10 classes"):
        train(with_(model={"kwargs": {"num_classes": 7}}), tmp_path / "b", progress=False)
    with pytest.raises(ValueError, match="timm knows no model"):
        train(with_(model={"name": "no_such"}), tmp_path / "c", progress=False)
    with pytest.raises(FileNotFoundError):
        train(with_(data={"source": str(tmp_path / "none")}), tmp_path / "d", progress=False)


def test_display_is_quiet_about_the_engine(tmp_path, capfd):
    train(with_(), tmp_path, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert {line.split()[0] for line in lines[:-1]} == {"model:", "data:", "note:", "run:"}, err
    assert lines[-1].startswith("epoch 1/1  loss ")
    assert "val top1" in lines[-1]


@pytest.mark.parametrize("name", ["castling-deit-t", "qt-vit-1"])
def test_published_recipe_steps(name):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    before = recipe_to_dict(recipe)
    result = dry_run(recipe, image_size=64, batch_size=2, teacher="deit_pico")
    assert result.steps == 1
    assert torch.isfinite(torch.tensor(result.metrics["val_loss"]))
    assert recipe_to_dict(recipe) == before


def folder_of_images(folder, classes=("a", "b"), count=6):
    for label in classes:
        (folder / label).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (20, 20), (40 * index, 90, 0)).save(folder / label / f"{index}.png")
    return folder


def test_start_says_what_is_trained_on_what(tmp_path, capsys):
    images = folder_of_images(tmp_path / "images" / "train")
    folder_of_images(tmp_path / "images" / "val", count=2)
    recipe = with_(
        data={
            "source": str(images.parent),
            "split": {"subset": None},
            "loader": {"batch_size": 4},
        }
    )
    result = train(recipe, tmp_path / "run")
    said = capsys.readouterr().err
    assert f"model: castling_deit_pico, {result.parameters:,} parameters, on cpu" in said
    assert f"data: {images.parent}, 2 classes, 12 train, 4 val images" in said
    assert "note: there is no test split" in said
    assert f"run: {tmp_path / 'run'}" in said
    assert "top5" not in said
    assert "top-5" not in str(result)
    assert "trained, val: top-1" in str(result)
    assert "switched: exact, max gap 0 on 4 images" in str(result)


def test_finished_run_says_so(run):
    folder, result = run
    assert not result.already_finished
    assert train(with_(epochs=2), folder, progress=False).already_finished


def test_damaged_image_met_in_a_worker_is_one_line(tmp_path):
    images = folder_of_images(tmp_path / "images")
    for path in images.glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:60])
    data = {
        "source": str(images),
        "split": {"subset": None},
        "loader": {"verify": "none", "cache_limit_megabytes": 0, "workers": 1},
    }
    with pytest.raises(DataError) as caught:
        evaluate(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2)),
            with_(data=data).data,
            split="train",
        )
    assert str(images) in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


FAILING_STARTS = {
    "images": {"data": {"source": "nowhere"}},
    "model": {"model": {"name": "castling_deit_pico", "kwargs": {"no": 1}}},
    "size": {"data": {"transform": {"image_size": 15}}},
    "checkpoint": {"model": {"checkpoint": "nowhere.pth"}},
    "attention": {"model": {"attention": "no_such"}},
    "optimiser": {"optim": {"name": "no_such"}},
    "teacher": {"task": {"distill": {"kind": "hard", "teacher": "no_such"}}},
    "average": {"task": {"self_distill": {"weight": 2.0}}},
    "gpu": {"hardware": {"accelerator": "gpu"}},
    "second gpu": {"hardware": {"accelerator": "cuda:1"}},
    "mps": {"hardware": {"accelerator": "mps"}},
    "strategy": {"hardware": {"strategy": "dpp"}},
    "logger": {"save": {"loggers": ["tensorbord"]}},
    "patience": {
        "model": {"attention": {"name": "linear_angular", "auxiliary": {"schedule": "constant"}}},
        "early_stopping": {"patience": 1},
    },
}


@pytest.mark.parametrize("sections", FAILING_STARTS.values(), ids=FAILING_STARTS)
def test_failed_start_leaves_no_folder(tmp_path, sections):
    with pytest.raises((FileNotFoundError, ValueError)):
        train(with_(**sections), tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sections", FAILING_STARTS.values(), ids=FAILING_STARTS)
def test_the_dry_run_fails_where_the_run_would(tmp_path, sections):
    with pytest.raises((FileNotFoundError, ValueError)) as of_run:
        train(with_(**sections), tmp_path / "run", progress=False)
    with pytest.raises((FileNotFoundError, ValueError)) as of_dry_run:
        dry_run(with_(**sections), run_dir=tmp_path / "run")
    assert str(of_dry_run.value) == str(of_run.value)
    assert list(tmp_path.iterdir()) == []


def test_the_dry_run_checks_the_folder(run, tmp_path):
    folder, _ = run
    with pytest.raises(FileExistsError, match="another recipe"):
        dry_run(with_(epochs=2, seed=7), run_dir=folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        dry_run(with_(), run_dir=tmp_path / "file" / "run")
    with locked(tmp_path / "run"), pytest.raises(RunLockedError):
        dry_run(with_(), run_dir=tmp_path / "run")
    dry_run(with_(), run_dir=tmp_path / "run", image_size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["finetune", "photos"])
def test_the_recipes_for_photographs_step(name):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    result = dry_run(recipe, image_size=64, batch_size=2)
    assert result.steps == 1
    assert recipe.save.use == "best"
    assert bool(result.switched_metrics) == (name == "finetune")


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"devices is 8, .* finds cpu, cuda:0 and cuda:1"):
        check_hardware(HardwareConfig(devices=8))
    with pytest.raises(ValueError, match="single device"):
        check_hardware(HardwareConfig(accelerator="cuda:1", devices=2))
    with pytest.raises(ValueError, match=r"hardware\.accelerator is 'tpu'; it must be auto, cpu"):
        HardwareConfig(accelerator="tpu")


def test_the_first_process_of_several_is_known_from_the_environment(monkeypatch):
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    two = HardwareConfig(accelerator="cpu", devices=2)
    assert is_first_process(two)
    monkeypatch.setenv("NODE_RANK", "1")
    assert not is_first_process(two)
    assert is_first_process(HardwareConfig(accelerator="cpu"))
    monkeypatch.delenv("NODE_RANK")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert not is_first_process(two)
    assert is_first_process(HardwareConfig(accelerator="cpu"))


def test_a_logger_that_is_not_installed_is_said_before_the_data(tmp_path):
    missing = next(
        (name for name in ("wandb", "mlflow") if importlib.util.find_spec(name) is None), None
    )
    if missing is None:
        pytest.skip("both are installed")
    recipe = with_(data={"source": "nowhere"}, save={"loggers": ["csv", {"name": missing}]})
    for start in (
        lambda: train(recipe, tmp_path, progress=False),
        lambda: dry_run(recipe, run_dir=tmp_path),
    ):
        with pytest.raises(ModuleNotFoundError, match=f"names {missing}.*pip install {missing}"):
            start()


@pytest.mark.parametrize(
    ("loggers", "said"),
    [
        ([{"project": "cats"}], "no logger None"),
        (["wanbd"], "did you mean wandb"),
        ([{"name": "csv", "flush": 3}], "no option 'flush' in save.loggers, csv.*flush_logs"),
    ],
)
def test_unknown_loggers_and_options_are_refused(loggers, said):
    with pytest.raises(ValueError, match=said):
        check_loggers(loggers)


def test_curves_go_to_every_logger(tmp_path):
    loggers = ["tensorboard", {"name": "csv", "flush_logs_every_n_steps": 1}]
    recipe = with_(save={"loggers": loggers, "log_steps": 1}, epochs=1)
    train(recipe, tmp_path, progress=False)
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "metrics.csv").open() as file:
        (epoch,) = csv.DictReader(file)
    logged = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    assert logged == [pytest.approx(float(epoch["val_loss"]))]
    assert len([row for row in rows if row["train/lr"]]) == 3
    assert list((tmp_path / "tensorboard").iterdir())


def test_forced_end_is_an_interruption_too(tmp_path):
    def end():
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match="from the beginning"):
        train(with_(), tmp_path, progress=False, callbacks=[At(0, end)])
    assert signal.getsignal(signal.SIGINT) is before
