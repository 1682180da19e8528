"""The best weights, and the end of training when there are none better any more."""

import dataclasses
import json
import os
import signal

import pytest
import safetensors.torch
import torch
from lightning.pytorch import Callback

import castling_launcher
from castling.deploy import evaluate
from castling.models.saved import open_model
from castling.tasks.result import read_result
from castling.train import TrainingInterrupted, recipe_from_dict, train


def recipe_of(**sections):
    values = {
        "model": {"name": "castling_deit_pico", "kwargs": {"depth": 1}},
        "data": {
            "source": "digits",
            "split": {"subset": 64},
            "transform": {"image_size": 16},
            "loader": {"batch_size": 32},
        },
        "epochs": 8,
        "hardware": {"accelerator": "cpu"},
        "ema": {"decay": 0.5},
    }
    return recipe_from_dict(values | sections)


class Scores(Callback):
    """Replaces the headline metric of each evaluation, and keeps the evaluated weights."""

    def __init__(self, values):
        self.values = values
        self.weights = {}

    def on_validation_epoch_end(self, trainer, module):
        self.weights[trainer.current_epoch + 1] = {
            name: value.clone() for name, value in module.evaluated.state_dict().items()
        }

    def on_validation_end(self, trainer, module):
        module.metrics["top1"] = self.values[trainer.current_epoch]


def run(folder, values, recipe=None, further=(), **options):
    scores = Scores(values)
    result = train(
        recipe or recipe_of(), folder, progress=False, callbacks=[scores, *further], **options
    )
    return result, scores


#: The ramp ends at 0.8 of 8 epochs: the switch is possible from epoch 7 on.
@pytest.mark.parametrize(
    ("values", "epoch"),
    [
        ([90, 95, 99, 90, 90, 90, 50, 40], 7),
        ([90, 95, 99, 90, 90, 90, 50, 60], 8),
        ([90, 95, 99, 90, 90, 90, 50, 50], 8),
        ([90, 95, 99, 90, 90, 90, 50, float("nan")], 7),
    ],
    ids=["before the last", "last", "of equals the later", "not a number"],
)
def test_the_best_counts_once_the_switch_is_possible(tmp_path, capsys, values, epoch):
    result, scores = run(tmp_path, values)
    assert result.best == {
        "metric": "top1",
        "value": values[epoch - 1],
        "step": 2 * epoch,
        "epoch": epoch,
    }
    assert result.use == "last"
    found = open_model(tmp_path)[0].state_dict()
    assert_equal(found, scores.weights[8])  # the moving average, which is what is evaluated
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert files == [f"best-{2 * epoch}.safetensors", "last.ckpt"]
    if epoch == 8:
        assert result.other_dir == ""
        assert not (tmp_path / "best").exists()
        return
    assert result.other_dir == str(tmp_path / "best")
    model, card = open_model(tmp_path / "best")
    assert_equal(model.state_dict(), scores.weights[epoch])
    assert open_model(tmp_path / "best" / "switched")[1].switched
    config = recipe_of().data
    assert evaluate(model, config, split="val").metrics["top1"] == card.metrics["val_top1"]
    assert "best weights after the auxiliary branch ended, of epoch 7" in str(result)
    assert untimed(read_result(tmp_path)) == untimed(result)
    assert castling_launcher.main(["evaluate", str(tmp_path / "best"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == str(tmp_path / "best" / "switched")
    assert said["metrics"]["top1"] == card.metrics["test_top1"]


def untimed(result):
    """Without the certificate, which holds times."""
    return dataclasses.replace(result, switch={})


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_the_best_can_be_the_model(tmp_path):
    recipe = recipe_of(save={"use": "best"})
    result, scores = run(tmp_path, [0, 0, 0, 0, 0, 0, 50, 40], recipe)
    assert result.use == "best"
    assert result.other_dir == str(tmp_path / "last")
    assert_equal(open_model(tmp_path)[0].state_dict(), scores.weights[7])
    assert_equal(open_model(tmp_path / "last")[0].state_dict(), scores.weights[8])
    config = recipe.data
    assert evaluate(tmp_path, config).metrics["top1"] == result.metrics["test_top1"]
    with pytest.raises(FileExistsError, match=r"save\.use: 'best' → 'last'"):
        train(recipe_of(), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"save\.use is best, which needs save\.best"):
        recipe_of(save={"use": "best", "best": False})


def test_without_branches_every_evaluation_counts_and_a_constant_branch_never_does(tmp_path):
    plain = recipe_of(model={"name": "deit_pico", "kwargs": {"depth": 1}}, epochs=3)
    result, _ = run(tmp_path / "plain", [9, 8, 7], plain)
    assert result.best["epoch"] == 1
    attention = {"name": "linear_angular", "auxiliary": {"schedule": "constant"}}
    model = {"name": "castling_deit_pico", "kwargs": {"depth": 1}, "attention": attention}
    result, _ = run(tmp_path / "constant", [9, 8, 7], recipe_of(model=model, epochs=3))
    assert result.best == {}
    off = recipe_of(save={"best": False}, epochs=1)
    result, _ = run(tmp_path / "off", [9], off)
    assert result.best == {}
    assert sorted(p.name for p in (tmp_path / "off" / "checkpoints").iterdir()) == ["last.ckpt"]


class Interrupt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_resumed_run_has_the_same_best(tmp_path):
    plain = recipe_of(model={"name": "deit_pico", "kwargs": {"depth": 1}}, epochs=4)
    values = [5, 9, 7, 8]
    expected, _ = run(tmp_path / "whole", values, plain)
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "run", values, plain, [Interrupt(7)])
    stale = tmp_path / "run" / "checkpoints" / "best-8.safetensors"
    stale.write_bytes(b"of a step that was killed before it was saved")
    result, _ = run(tmp_path / "run", values, plain)
    assert result.best == expected.best
    assert_equal(
        safetensors.torch.load_file(tmp_path / "run" / "best" / "model.safetensors"),
        safetensors.torch.load_file(tmp_path / "whole" / "best" / "model.safetensors"),
    )
    assert not stale.exists()


def test_a_checkpoint_never_loses_the_best_it_refers_to(tmp_path):
    """Saved after epoch 2 only: the best of epoch 3 must not replace that of epoch 2 before."""
    plain = recipe_of(
        model={"name": "deit_pico", "kwargs": {"depth": 1}}, epochs=4, save={"every_epochs": 2}
    )
    seen = {}

    class Look(Callback):
        def on_train_epoch_start(self, trainer, module):
            folder = tmp_path / "checkpoints"
            seen[trainer.current_epoch] = sorted(p.name for p in folder.glob("best*"))

    run(tmp_path, [1, 2, 3, 4], plain, [Look()])
    assert seen[2] == ["best-4.safetensors"]
    assert seen[3] == ["best-4.safetensors", "best-6.safetensors"]


def test_training_stops_early_once_the_ramp_has_ended(tmp_path):
    recipe = recipe_of(epochs=20, early_stopping={"patience": 2, "min_delta": 1.0})
    # Of 20 epochs the ramp takes 16; before, nothing counts.
    values = [90] * 15 + [50, 50.9, 50.5, 99, 99]
    result, _ = run(tmp_path, values, recipe)
    assert result.steps == 2 * 18
    assert "stopped early, after step 36: top1" in result.stopped_early
    assert result.stopped_early in str(result)
    assert result.best["epoch"] == 17  # min_delta is for stopping alone
    assert result.switch["exact"]
    # As if it had been ended while it was evaluated: it does not train on.
    (tmp_path / "result.json").unlink()
    again, _ = run(tmp_path, values, recipe)
    assert untimed(again) == untimed(result)


def test_patience_survives_an_interruption(tmp_path):
    recipe = recipe_of(
        model={"name": "deit_pico", "kwargs": {"depth": 1}},
        epochs=9,
        early_stopping={"patience": 3},
    )
    values = [5, 9, 8, 8, 8, 99, 99, 99, 99]
    with pytest.raises(TrainingInterrupted):
        run(tmp_path, values, recipe, [Interrupt(7)])
    result, _ = run(tmp_path, values, recipe)
    assert result.steps == 2 * 5
    assert result.best["epoch"] == 2


def test_lower_is_better_where_the_task_says_so(tmp_path, monkeypatch):
    from castling.tasks.classification import ClassificationTask

    monkeypatch.setattr(ClassificationTask, "headline", "loss")
    monkeypatch.setattr(ClassificationTask, "maximize", False)

    class Losses(Scores):
        def on_validation_end(self, trainer, module):
            module.metrics["loss"] = self.values[trainer.current_epoch]

    recipe = recipe_of(
        model={"name": "deit_pico", "kwargs": {"depth": 1}},
        epochs=6,
        early_stopping={"patience": 2},
    )
    losses = Losses([0.5, 0.3, 0.4, 0.4, 0.1, 0.1])
    result = train(recipe, tmp_path, progress=False, callbacks=[losses])
    assert (result.best["epoch"], result.best["value"]) == (2, 0.3)
    assert result.steps == 2 * 4


def test_a_lost_file_of_the_best_is_said(tmp_path, caplog):
    plain = recipe_of(model={"name": "deit_pico", "kwargs": {"depth": 1}}, epochs=2)
    run(tmp_path, [9, 5], plain)
    (tmp_path / "result.json").unlink()
    (tmp_path / "checkpoints" / "best-2.safetensors").unlink()
    result, _ = run(tmp_path, [9, 5], plain)
    assert "best-2.safetensors is missing" in caplog.text
    assert result.other_dir == ""
    assert not (tmp_path / "best").exists()
    assert dataclasses.asdict(result)["use"] == "last"


@pytest.mark.parametrize("channels_last", [False, True])
def test_weights_in_channels_last_order_are_saved(tmp_path, channels_last):
    recipe = recipe_of(hardware={"accelerator": "cpu", "channels_last": channels_last})
    train(recipe, tmp_path / "run", progress=False)
    model, _ = open_model(tmp_path / "run")
    assert all(value.is_contiguous() for value in model.state_dict().values())
    assert evaluate(tmp_path / "run").metrics["loss"] > 0
