"""A run that was stopped anywhere ends as the one that was not."""

import dataclasses

import pytest
import safetensors.torch
from tests.train.interrupted import InterruptAt, assert_same_run, train_until_killed

from castling.train import TrainingInterrupted, recipe_from_dict, recipe_to_yaml, train

TINY = {
    "model": {"name": "castling_deit_pico", "kwargs": {"depth": 1}, "drop_path": 0.1},
    "task": {"name": "classification", "mix": {"mixup": 0.2}, "erase": 0.3},
    "data": {
        "source": "digits",
        "split": {"subset": 160},
        "transform": {
            "image_size": 16,
            "auto_augment": "rand-m5-n1",
            "multi_scale": [12, 16],
        },
        "loader": {"batch_size": 32},
    },
    "epochs": 3,
    "ema": {"decay": 0.9, "warmup": 3},
    "hardware": {"accelerator": "cpu"},
    "save": {"every_steps": 2},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result = train(recipe_from_dict(TINY), folder, progress=False)
    return folder, result


@pytest.mark.parametrize("stop_at", [5, 7], ids=["end of epoch", "middle of epoch"])
def test_interrupted_run_ends_like_whole_one(whole, tmp_path, capsys, stop_at):
    folder, expected = whole
    recipe = recipe_from_dict(TINY)
    with pytest.raises(TrainingInterrupted, match=f"after step {stop_at}.*same command"):
        train(recipe, tmp_path, callbacks=[InterruptAt(stop_at)])
    capsys.readouterr()
    result = train(recipe, tmp_path, resume="must")
    assert "resumed in epoch 2 at batch" in capsys.readouterr().err
    assert result.metrics == expected.metrics
    assert result.switched_metrics == expected.switched_metrics
    assert_same_run(folder, tmp_path)


def test_average_takes_a_resumed_step_in_once(tmp_path):
    hardware = {"accelerator": "cpu", "accumulate": 2}
    recipe = recipe_from_dict(TINY | {"hardware": hardware, "epochs": 2})
    train(recipe, tmp_path / "whole", progress=False)
    with pytest.raises(TrainingInterrupted):
        train(recipe, tmp_path / "run", progress=False, callbacks=[InterruptAt(4)])
    train(recipe, tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_run_ended_by_sigkill_resumes(whole, tmp_path):
    folder, expected = whole
    run = tmp_path / "run"
    train_until_killed(recipe_from_dict(TINY), run)
    result = train(recipe_from_dict(TINY), run, progress=False)
    assert result.metrics == expected.metrics
    assert_same_run(folder, run)


def test_finished_run_is_returned_not_repeated(whole):
    folder, expected = whole
    before = (folder / "model.safetensors").stat().st_mtime_ns
    result = train(recipe_from_dict(TINY), folder, progress=False)
    assert result.metrics == expected.metrics
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_other_recipe_is_refused_with_differences(whole):
    folder, _ = whole
    recipe = recipe_from_dict(TINY)
    other = dataclasses.replace(recipe, seed=3)
    with pytest.raises(FileExistsError, match=r"finished run of another recipe(.|\n)*seed: 0 → 3"):
        train(other, folder, progress=False)
    with pytest.raises(FileExistsError, match="finished run"):
        train(recipe, folder, resume="never", progress=False)


def test_must_resume_needs_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(recipe_from_dict(TINY), tmp_path / "run", resume="must", progress=False)


def test_damaged_checkpoint_is_named(tmp_path):
    recipe = recipe_from_dict(TINY)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read.*delete it"):
        train(recipe, tmp_path, progress=False)


def test_batchnorm_stays_frozen_in_an_epoch_resumed_in_its_middle(tmp_path):
    recipe = recipe_from_dict(
        TINY
        | {
            "model": {"name": "cas_vit_pico"},
            "data": {
                "source": "digits",
                "split": {"subset": 24},
                "transform": {"image_size": 32},
                "loader": {"batch_size": 8},
            },
            "epochs": 1,
            "ema": {},
            "regularize": {"freeze_batchnorm": True},
        }
    )
    with pytest.raises(TrainingInterrupted):
        train(recipe, tmp_path, callbacks=[InterruptAt(1)])
    train(recipe, tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    counts = [value for name, value in state.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(value == 0 for value in counts)
