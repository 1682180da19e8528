"""Searches for a learning rate and a batch size: what they try, and that they change nothing."""

import csv
import itertools
import json
import math

import pytest
import timm.optim
import torch

import castling_launcher
from castling.train import find_batch_size, find_learning_rate, recipe_from_dict, tune

TINY = {
    "model": {"name": "deit_pico", "kwargs": {"depth": 1}},
    "data": {
        "source": "digits",
        "split": {"subset": 96},
        "transform": {"image_size": 16},
        "loader": {"batch_size": 32},
    },
    "hardware": {"accelerator": "cpu", "accumulate": 2},
    "optim": {"lr": 0.5, "lr_batch": 256, "layer_decay": 0.5},
}


def test_rates_rise_evenly_on_a_logarithmic_axis_and_reach_every_layer(tmp_path, monkeypatch):
    used = []

    class Recorded(torch.optim.AdamW):
        def step(self, *arguments, **options):
            used.append([(group["lr"], group["lr_scale"]) for group in self.param_groups])
            return super().step(*arguments, **options)

    monkeypatch.setattr(
        timm.optim,
        "create_optimizer_v2",
        lambda groups, name, **options: Recorded(groups, lr=options["lr"]),
    )
    recipe = recipe_from_dict(TINY)
    found = find_learning_rate(recipe, tmp_path / "run", steps=20)
    # optim.lr is meant for 256 images a step; the steps here have 32, whatever is accumulated.
    rates = [rate * 32 / 256 for rate in found.learning_rates]
    assert len(used) >= len(rates) >= 15
    ratios = [later / earlier for earlier, later in itertools.pairwise(rates)]
    # Lightning's first step is twice as long.
    assert ratios[1:] == pytest.approx([10 ** (7 / 20)] * len(ratios[1:]), rel=1e-3)
    assert rates[0] == pytest.approx(1e-7, rel=1.5)
    for rate, groups in zip(rates, used, strict=False):
        assert {scale for _, scale in groups} == {1.0, 0.5, 0.25}
        for lr, scale in groups:
            assert lr == pytest.approx(rate * scale)
    assert all(map(math.isfinite, found.losses))
    assert found.suggestion in found.learning_rates
    with (tmp_path / "run" / "learning-rate.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["learning_rate"]) for row in rows] == list(found.learning_rates)
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == ["learning-rate.csv", "learning-rate.png"]
    assert f"--optim.lr {found.suggestion:.2g}" in str(found)


@pytest.mark.parametrize(("scatter", "learns"), [(0.0, True), (0.3, True), (0.3, False)])
def test_scatter_at_small_rates_is_no_fall(scatter, learns):
    """Losses of a detector: those of small rates scatter, and fall from 1e-3 on if at all."""
    rates = torch.logspace(-7, 0, 100).tolist()
    noise = scatter * torch.randn(100, generator=torch.Generator().manual_seed(3))
    fall = torch.linspace(-7, 0, 100).add(3.5).clamp(0, 1) * learns
    found, certain = tune.steepest_fall(rates, (3 - fall + noise).tolist())
    assert certain == learns
    assert not learns or 1e-4 < found < 1e-2


def test_a_loss_that_is_not_finite_ends_the_fall():
    rates = torch.logspace(-7, 0, 40).tolist()
    losses = [3.0] * 20 + [2.5, 2.0, 1.5, 1.0] + [float("nan")] * 16
    assert tune.steepest_fall(rates, losses)[0] in rates[16:22]


def test_the_batch_grows_to_the_bound_or_to_the_images(monkeypatch):
    recipe = recipe_from_dict(TINY)
    monkeypatch.setattr(tune, "_LARGEST", {"cpu": 4})
    found = find_batch_size(recipe)
    assert (found.batch_size, found.limited_by) == (16, "bound")
    monkeypatch.setattr(tune, "_LARGEST", {"cpu": 9})
    found = find_batch_size(recipe)
    assert (found.batch_size, found.limited_by) == (96, "images")


def test_the_batch_stops_where_memory_ends(monkeypatch):
    from castling.tasks.classification import ClassificationTask

    step = ClassificationTask.training_step

    def limited(self, model, batch, at):
        if len(batch) > 11:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return step(self, model, batch, at)

    monkeypatch.setattr(ClassificationTask, "training_step", limited)
    found = find_batch_size(recipe_from_dict(TINY))
    assert (found.batch_size, found.limited_by) == (8, "memory")


def test_the_command_line_prints_both(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "_LARGEST", {"cpu": 2})
    flags = ("--data.split.subset", "32", "--data.transform.image_size", "16")
    assert castling_launcher.main(["train", *flags, "--find_batch_size"]) == 0
    out = capsys.readouterr().out
    assert "--data.loader.batch_size 4 (larger ones were not tried)" in out
    assert list(tmp_path.iterdir()) == []


def test_both_searches_print_one_json_value_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "_LARGEST", {"cpu": 2})
    flags = ("--data.split.subset", "32", "--data.transform.image_size", "16", "--run", "r")
    both = ("--find_batch_size", "--find_lr", "--json", "--quiet")
    assert castling_launcher.main(["train", *flags, *both]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["batch_size"] == 4
    assert len(found["learning_rates"]) > 0
    assert said.err == ""


@pytest.mark.parametrize("sides", [[16, 32, 24], []])
def test_the_batch_is_tried_at_the_largest_resolution_that_training_draws(monkeypatch, sides):
    from castling.tasks.classification import ClassificationTask

    step, tried = ClassificationTask.training_step, set()

    def recorded(self, model, batch, at):
        tried.add(tuple(batch.images.shape[2:]))
        return step(self, model, batch, at)

    monkeypatch.setattr(ClassificationTask, "training_step", recorded)
    monkeypatch.setattr(tune, "_LARGEST", {"cpu": 2})
    transform = {"image_size": 16, "multi_scale": sides}
    find_batch_size(recipe_from_dict({**TINY, "data": {**TINY["data"], "transform": transform}}))
    assert tried == {(max(sides, default=16),) * 2}


def test_the_batch_of_a_detector_is_tried_at_the_longest_sides(monkeypatch, tmp_path):
    from castling.tasks.detection import DetectionTask
    from castling.tasks.detection.noise import write_noise

    step, tried = DetectionTask.training_step, set()

    def recorded(self, model, batch, at):
        tried.add(tuple(batch.images.shape[2:]))
        return step(self, model, batch, at)

    monkeypatch.setattr(DetectionTask, "training_step", recorded)
    monkeypatch.setattr(tune, "_LARGEST", {"cpu": 1})
    write_noise(tmp_path / "images", 4)
    sizes = {"image_size": 48, "max_size": 72, "multi_scale": [32, 64]}
    transform = {**sizes, "resize": "keep", "multiple": 32}
    recipe = {
        "task": "detection",
        "model": {"name": "picodet_pico/castling_levit_s8_pico"},
        "data": {"source": str(tmp_path / "images"), "transform": transform},
        "hardware": {"accelerator": "cpu"},
    }
    find_batch_size(recipe_from_dict(recipe))
    assert tried == {(96, 96)}
