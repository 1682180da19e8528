"""Two CPU processes train one model."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

import castling
from castling.models.saved import open_model
from castling.train import recipe_from_dict, train

# A host whose relative positions lose their only reader, the branch, half way through training:
# parameters without a gradient, which DistributedDataParallel has to be told of.
RECIPE = {
    "model": {
        "name": "castling_mvitv2_pico",
        "attention": {"name": "linear_angular", "auxiliary": {"ramp_end": 0.5}},
    },
    "data": {
        "source": "digits",
        "split": {"subset": 96},
        "transform": {"image_size": 16},
        "loader": {"batch_size": 16},
    },
    "epochs": 2,
    "ema": {"decay": 0.9},
    "hardware": {"accelerator": "cpu", "devices": 2, "strategy": "ddp_spawn"},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return folder, train(recipe_from_dict(RECIPE), folder, progress=False)


def rows(folder):
    with (Path(folder) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_processes_equal_one_with_the_double_batch(two, tmp_path):
    folder, result = two
    single = {
        **RECIPE,
        "data": {**RECIPE["data"], "loader": {"batch_size": 32}},
        "hardware": {"accelerator": "cpu"},
    }
    expected = train(recipe_from_dict(single), tmp_path, progress=False)
    assert result.steps == expected.steps == 6
    assert result.metrics["val_loss"] == pytest.approx(expected.metrics["val_loss"], abs=1e-4)
    for a, b in zip(rows(folder), rows(tmp_path), strict=True):
        # validation is shared between the processes and added up: every image counts once
        assert float(a["val_loss"]) == pytest.approx(float(b["val_loss"]), abs=1e-4)


def test_two_processes_leave_a_whole_run(two):
    folder, result = two
    assert (folder / "result.json").exists()
    model, card = open_model(folder / "switched")
    assert card.switched
    assert result.switched_metrics == pytest.approx(result.metrics)
    assert sum(p.numel() for p in model.parameters()) == result.switch["parameters_after"]


def test_the_command_line_starts_two_processes_that_both_end(tmp_path):
    """Strategy ddp runs the command a second time; only the first process reports."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "castling_launcher", "train", "--run", str(tmp_path / "run")),
            *("--model.kwargs", '{"depth": 1}', "--data.transform.image_size", "16"),
            *("--data.split.subset", "32", "--data.loader.batch_size", "8", "--epochs", "1"),
            *("--hardware.accelerator", "cpu", "--hardware.devices", "2"),
            *("--hardware.strategy", "ddp"),
        ],
        env=os.environ
        | {"PYTHONPATH": str(Path(castling.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert (tmp_path / "run" / "result.json").is_file()
    assert (tmp_path / "run" / "switched" / "model.safetensors").is_file()
