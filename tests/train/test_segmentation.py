"""Segmenters train, resume exactly, switch, share work between processes, predict, are reported."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from lightning.pytorch import Callback
from PIL import Image

import castling
import castling.train as train_package
import castling_launcher
from castling.data import open_source, source_config_class
from castling.deploy.saved_data import validation_images
from castling.models.saved import open_model
from castling.profiling.run_report import write_run_report
from castling.tasks import task_from_card
from castling.tasks.segmentation import task as task_module
from castling.tasks.segmentation.inference import augmented
from castling.train import (
    TrainingInterrupted,
    dry_run,
    load_recipe,
    recipe_from_dict,
    recipe_to_yaml,
    train,
)

OPTIONS = {"canvas": 64, "images": 12, "digits": [1, 4], "target": "mask"}
SCENES = {"name": "digit_scenes", **OPTIONS}
TINY = {
    "task": {"name": "segmentation", "class_weights": "auto"},
    "model": {"name": "efficientvit_head_pico/castling_levit_s8_pico"},
    "data": {
        "source": SCENES,
        "transform": {"image_size": 64},
        "loader": {"batch_size": 4},
    },
    "epochs": 2,
    "ema": {"decay": 0.9, "warmup": 3},
    "optim": {"lr": 1e-3},
    "hardware": {"accelerator": "cpu"},
    "save": {"every_steps": 1},
}


class InterruptAt(Callback):
    """Presses Ctrl-C while a step is computed, counted from 1."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def rows(path):
    with Path(path).open() as file:
        return [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in csv.DictReader(file)
        ]


def assert_same_run(one, other):
    for name in ("metrics.csv", "auxiliary.csv", "predictions.csv"):
        assert rows(one / name) == rows(other / name)
    a = safetensors.torch.load_file(one / "model.safetensors")
    b = safetensors.torch.load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(recipe_from_dict(TINY), folder, progress=False)


@pytest.fixture(scope="module")
def source():
    return open_source(source_config_class("digit_scenes")(**OPTIONS))


def test_a_run_leaves_what_it_should(whole, source):
    folder, result = whole
    assert result.headline == "mIoU"
    assert set(result.percentages) == {"mIoU", "mAcc", "pAcc"}
    assert {"val_mIoU", "test_pAcc", "test_mAcc"} <= set(result.metrics)
    assert result.switched_metrics == result.metrics  # the switch was exact
    recorded = rows(folder / "predictions.csv")
    held = range(source.info.splits["test"])
    masks = [source.sample("test", index).target["mask"] for index in held]
    assert sum(int(row["pixels"]) for row in recorded) == sum(mask.numel() for mask in masks)
    for label, name in enumerate(source.info.classes):
        pixels = sum(int((mask == label).sum()) for mask in masks)
        assert sum(int(r["pixels"]) for r in recorded if r["label"] == name) == pixels
    right = sum(int(row["pixels"]) for row in recorded if row["label"] == row["predicted"])
    share = 100 * right / sum(mask.numel() for mask in masks)
    assert share == pytest.approx(result.metrics["test_pAcc"])
    page = write_run_report(folder).read_text()
    for heading in ("Classes", "Confusion matrix", "Errors near borders", "Worst images"):
        assert f"<h2>{heading}" in page
    card = json.loads((folder / "model.json").read_text())
    assert card["task"]["class_weights"] == "auto"


def test_interrupted_in_the_middle_of_an_epoch(whole, tmp_path):
    folder, expected = whole
    recipe = recipe_from_dict(TINY)
    with pytest.raises(TrainingInterrupted):
        train(recipe, tmp_path, progress=False, callbacks=[InterruptAt(5)])
    result = train(recipe, tmp_path, resume="must", progress=False)
    assert result.metrics == expected.metrics
    assert_same_run(folder, tmp_path)


@pytest.mark.slow
def test_killed(whole, tmp_path):
    folder, expected = whole
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(recipe_to_yaml(recipe_from_dict(TINY)))
    run = tmp_path / "run"
    code = (
        "import sys, time, castling\n"
        "from lightning.pytorch import Callback\n"
        "from castling.train import load_recipe, train\n"
        "class Slow(Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, batch_idx):\n"
        "        time.sleep(0.3)\n"
        "train(load_recipe(sys.argv[1]), sys.argv[2], progress=False, callbacks=[Slow()])\n"
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(castling.__file__).parents[1]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(recipe_file), str(run)], env=environment
    )
    checkpoint = run / "checkpoints" / "last.ckpt"
    deadline = time.time() + 240
    while not checkpoint.exists():
        assert process.poll() is None, "the training process ended by itself"
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "result.json").exists()
    result = train(recipe_from_dict(TINY), run, progress=False)
    assert result.metrics == expected.metrics
    assert_same_run(folder, run)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    """Both see the same weights, each half of the images: the figures are those of one process."""
    shared = {
        **TINY,
        "optim": {"lr": 1e-30},  # weights stay as they are
        "ema": {},
        "epochs": 1,
        "regularize": {"freeze_batchnorm": True},
    }
    two = {
        **shared,
        "data": {**TINY["data"], "loader": {"batch_size": 2}},
        "hardware": {"accelerator": "cpu", "devices": 2, "strategy": "ddp_spawn"},
    }
    train(recipe_from_dict(shared), tmp_path / "one", progress=False)
    train(recipe_from_dict(two), tmp_path / "two", progress=False)

    def figures(folder):
        (row,) = rows(tmp_path / folder / "metrics.csv")
        return {name: value for name, value in row.items() if name.startswith("val_")}

    assert figures("one") == figures("two")
    assert float(figures("one")["val_mIoU"]) > 0  # so that equal figures say something


def test_the_switch_and_folding_are_compared_by_pixels(whole):
    folder, _ = whole
    model, card = open_model(folder)
    task = task_from_card(card)
    images = [*validation_images(task, card, folder, None, 2)]
    report = castling.switch_(model, calibration=images, task=task)
    assert report.agreement == 1
    assert report.exact
    folded = castling.fold_(model, images[0], task=task)
    assert folded.agreement >= 0.999
    certificate = json.loads((folder / "switched" / "certificate.json").read_text())
    assert certificate["agreement"] == 1


def test_dry_run_on_noise():
    result = dry_run(recipe_from_dict(TINY), image_size=64, batch_size=2)
    assert "val_mIoU" in result.metrics


def test_a_recipe_with_a_classifier_is_refused_first(tmp_path):
    recipe = recipe_from_dict({**TINY, "model": {"name": "cas_vit_pico"}})
    with pytest.raises(ValueError, match=r"model.name is cas_vit_pico; segmentation needs HEAD/"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_recipe_with_a_detector_is_refused_first(tmp_path):
    recipe = recipe_from_dict({**TINY, "model": {"name": "retinanet_pico/cas_vit_pico"}})
    with pytest.raises(ValueError, match="detection"):
        train(recipe, tmp_path / "run", progress=False)


def test_images_of_other_kinds_are_refused(tmp_path):
    recipe = recipe_from_dict({**TINY, "data": {"source": "digit_scenes"}})
    with pytest.raises(ValueError, match=r"segmentation needs data for segmentation.*masks/train"):
        train(recipe, tmp_path / "run", progress=False)


def run(*arguments):
    return castling_launcher.main([str(argument) for argument in arguments])


@pytest.fixture
def photos(source, tmp_path):
    folder = tmp_path / "photos"
    for index, name in enumerate(("a.png", "deep/b.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = source.sample("test", index).image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels[: 50 + index]).save(folder / name)
    return folder


def test_predict_draws_and_writes(whole, photos, tmp_path, capsys):
    folder, _ = whole
    (photos / "broken.png").write_text("no image")
    drawn, masks, table = tmp_path / "drawn", tmp_path / "masks", tmp_path / "t.csv"
    arguments = ("predict", folder, photos, "--output", drawn, "--masks", masks, "--csv", table)
    assert run(*arguments) == 1  # one image is broken
    assert "broken.png" in capsys.readouterr().err
    expected = {Path("a.png"), Path("deep/b.png")}
    for place in (drawn, masks):
        assert {p.relative_to(place) for p in place.rglob("*.png")} == expected
    found = castling.Predictor(folder)(photos / "deep/b.png")[0]
    with Image.open(masks / "deep/b.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), found.mask)
    listed = rows(table)
    assert set(listed[0]) == {"name", "class", "pixels", "share", "error"}
    own = {r["class"]: int(r["pixels"]) for r in listed if r["name"].endswith("b.png")}
    assert sum(own.values()) == 51 * 64
    assert own == {found.classes[label]: count for label, count in found.found()}
    assert rows(drawn / "predictions.csv") == listed
    content = json.loads((drawn / "predictions.json").read_text())
    assert len(content) == 3
    assert run(*arguments) != 0  # folders that hold files are refused
    assert "choose another folder" in capsys.readouterr().err


def test_windows_over_large_images(whole, photos, tmp_path):
    folder, _ = whole
    large = tmp_path / "large.png"
    with Image.open(photos / "a.png") as image:
        image.resize((256, 96)).save(large)  # its shorter side becomes 64
    plain, small, huge = (
        castling.Predictor(folder, window=window)(large)[0].mask for window in (None, 64, 4096)
    )
    assert np.array_equal(plain, huge)
    assert plain.shape == small.shape == (96, 256)
    assert run("predict", folder, large, "--window", "64x64", "--masks", tmp_path / "m") == 0
    with Image.open(tmp_path / "m" / "large.png") as image:
        assert np.array_equal(np.asarray(image), small)


def test_masks_and_windows_are_refused_for_other_tasks(tmp_path, capsys):
    from castling.data import DataInfo
    from castling.data.transforms import ClassificationTransformConfig
    from castling.tasks import DEFAULT_TASK, build_task

    task = build_task(DEFAULT_TASK(), DataInfo(["a"], {}), ClassificationTransformConfig())
    network = torch.nn.Conv2d(3, 1, 1)
    with pytest.raises(ValueError, match="classification looks at whole images"):
        castling.Predictor(network, task=task, window=64)
    with pytest.raises(ValueError, match="this model is for classification"):
        castling.Predictor(network, task=task).require_masks()
    with pytest.raises(ValueError, match="window must be at least 1"):
        castling.Predictor(network, task=task, window=0)


def test_evaluate_on_its_own_test_images(whole, capsys):
    folder, expected = whole
    assert run("evaluate", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    for name, value in found["metrics"].items():
        assert value == expected.switched_metrics[f"test_{name}"]
    assert set(found["class_figures"]["background"]) == {"IoU", "accuracy", "precision", "images"}


def test_options_of_the_task_in_the_place_of_its_own(whole, photos, capsys, monkeypatch):
    folder, _ = whole
    seen = []

    def watched(scores, probabilities, images, scales, flip, multiple):
        seen.append((scales, flip))
        return augmented(scores, probabilities, images, scales, flip, multiple)

    monkeypatch.setattr(task_module, "augmented", watched)
    other = {"augment": {"scales": [1.0, 1.5], "flip": True}}
    first, second = (
        castling.Predictor(folder, options=options)(photos / "a.png")[0].mask
        for options in (None, other)
    )
    assert not np.array_equal(first, second)
    assert run("evaluate", folder, "--json", "--task", json.dumps(other)) == 0
    assert set(seen) == {((1.0, 1.5), True)}
    assert len(seen) == 2
    capsys.readouterr()
    assert run("evaluate", folder, "--task", "{inference: tiles}") != 0
    assert "task.inference is 'tiles'" in capsys.readouterr().err
    assert run("evaluate", folder, "--task", "{infrence: slide}") != 0
    assert "did you mean inference" in capsys.readouterr().err
    assert run("evaluate", folder, "--task", "slide") != 0
    assert "write options as" in capsys.readouterr().err


RECIPES = Path(train_package.__file__).parents[3] / "recipes"
SEGMENTERS = [
    path
    for path in sorted(RECIPES.glob("*.yaml"))
    if re.search(r"^task: segmentation|^  name: segmentation", path.read_text(), re.MULTILINE)
]


@pytest.mark.slow
@pytest.mark.parametrize("path", SEGMENTERS, ids=lambda path: path.stem)
def test_a_recipe_starts_steps_and_is_saved(path):
    assert dry_run(load_recipe(path), image_size=128, batch_size=2).steps == 1
