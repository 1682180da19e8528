"""Pre-training runs: resumed exactly, averaged, reported; their result starts other tasks."""

import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from lightning.pytorch import Callback
from PIL import Image

from castling.data import DataConfig
from castling.data.sources import UnlabelledConfig, source_from
from castling.deploy.evaluation import evaluate
from castling.profiling.run_report import write_run_report
from castling.train import TrainingInterrupted, dry_run, recipe_from_dict, train

TINY = {
    "task": "pretraining",
    "model": {
        "name": "mae/deit_pico",
        "kwargs": {"depth": 2},
        "head": {"width": 32, "depth": 1, "attention_heads": 2},
        "attention": {"name": "linear_angular", "kv_scale": "tokens", "auxiliary": {}},
    },
    "data": {
        "source": "digits",
        "split": {"subset": 32, "val_fraction": 0.02, "test_fraction": 0.03},
        "transform": {"image_size": 16},
        "loader": {"batch_size": 16},
    },
    "epochs": 2,
    "ema": {"decay": 0.9},
    "hardware": {"accelerator": "cpu"},
    "save": {"every_steps": 1, "loggers": []},
}
FINAL = {
    "data": TINY["data"],
    "epochs": 1,
    "max_steps": 1,
    "hardware": {"accelerator": "cpu"},
    "save": {"loggers": []},
}


def changed(**model):
    return {**TINY, "model": {**TINY["model"], **model}}


class InterruptAt(Callback):
    """Presses Ctrl-C while a step is computed, counted from 1."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(recipe_from_dict(TINY), folder, progress=False)


def weights(folder):
    return safetensors.torch.load_file(Path(folder) / "model.safetensors")


def test_a_run_and_its_report(whole):
    """The loss is minimised; branches stay, so nothing is said of a switch."""
    folder, result = whole
    assert result.headline == "loss"
    assert set(result.metrics) == {"val_loss", "test_loss"}
    assert result.best["value"] == pytest.approx(result.metrics["val_loss"], rel=0.2)
    assert not result.switch_refused
    assert not result.switched_metrics
    page = write_run_report(folder, {}).read_text()
    for text in ("What the model makes of images", "Loss of single images", "deit_pico --model."):
        assert text in page
    assert " of 0 classes" not in page
    assert len(list((folder / "examples").iterdir())) == 12


def test_all_images_of_a_folder_are_evaluated(whole, tmp_path):
    """Those beside folders too, which would be classes to a classifier."""
    folder, _ = whole
    for name in ("a.png", "cats/b.png", "cats/young/c.png", "dogs/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (len(name), 99, 9)).save(tmp_path / name)
    found = evaluate(folder, DataConfig(source=source_from(str(tmp_path))))
    assert found.images == 4
    assert found.data == str(UnlabelledConfig(path=str(tmp_path)))


def test_evaluated_again_the_loss_is_the_same(whole):
    folder, result = whole
    again = evaluate(folder, split="val")
    assert again.metrics["loss"] == pytest.approx(result.metrics["val_loss"], rel=1e-6)


def test_interrupted_in_the_middle_of_an_epoch(whole, tmp_path):
    folder, expected = whole
    recipe = recipe_from_dict(TINY)
    with pytest.raises(TrainingInterrupted):
        train(recipe, tmp_path, progress=False, callbacks=[InterruptAt(4)])
    result = train(recipe, tmp_path, resume="must", progress=False)
    assert result.metrics == expected.metrics
    one, other = weights(folder), weights(tmp_path)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_its_result_starts_a_classifier(whole, tmp_path):
    folder, _ = whole
    model = {
        "name": "deit_pico",
        "kwargs": {"depth": 2},
        "attention": TINY["model"]["attention"],
        "checkpoint": str(folder),
    }
    # So small a rate that the weights hardly move.
    recipe = {**FINAL, "model": model, "optim": {"lr": 1e-9, "weight_decay": 0.0}}
    result = train(recipe_from_dict(recipe), tmp_path, progress=False)
    assert "val_top1" in result.metrics
    found, source = weights(tmp_path), weights(folder)
    prefix = "backbone.body."
    same = [n for n in source if n.startswith(prefix)]
    assert same
    for name in same:
        torch.testing.assert_close(
            found[name.removeprefix(prefix)], source[name], atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"name": "castling_deit_pico"}, "HEAD/BACKBONE, such as mae/"),
        ({"name": "picodet_pico/deit_pico"}, "a model for detection"),
        ({"pretrained": True}, "model.head.positions to learned"),
        ({"head": {"unit": 3}}, "unit"),
        (
            {
                "name": "distill_features/deit_pico",
                "attention": None,
                "head": {"teacher": "vit_nothing"},
            },
            "model.head.teacher: timm knows no model",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_opened(model, says, tmp_path):
    recipe = changed(**{"kwargs": {}, "head": {}, **model})
    with pytest.raises(ValueError, match=says):
        train(recipe_from_dict(recipe), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_sizes_that_do_not_fit_the_masks(tmp_path):
    recipe = changed(name="simmim/deit_pico", head={"unit": 12}, kwargs={})
    with pytest.raises(ValueError, match="multiples of 12"):
        train(recipe_from_dict(recipe), tmp_path, progress=False)


@pytest.mark.slow
def test_a_trial_needs_no_weights_of_the_teacher():
    recipe = changed(name="distill_features/deit_pico", head={}, kwargs={}, attention=None)
    recipe["model"]["head"] = {"teacher": "test_vit"}
    assert dry_run(recipe_from_dict(recipe), image_size=32).steps == 1


@pytest.mark.slow
def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    two = {**TINY, "epochs": 1, "hardware": {**TINY["hardware"], "devices": 2}}
    two["hardware"]["strategy"] = "ddp_spawn"
    two["data"] = {**TINY["data"], "loader": {"batch_size": 8}}
    first = train(recipe_from_dict(two), tmp_path / "two", progress=False)
    one = train(recipe_from_dict({**TINY, "epochs": 1}), tmp_path / "one", progress=False)
    assert first.metrics == pytest.approx(one.metrics, rel=1e-4)
