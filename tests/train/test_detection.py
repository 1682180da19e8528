"""Detectors train, resume exactly, average, switch, share work between processes, are reported."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tests.train.interrupted import (
    InterruptAt,
    assert_same_run,
    rows,
    train_until_killed,
)

import castling.train as train_package
import castling_launcher
from castling.data import open_source, source_config_class
from castling.data.detection.masks import unpack_rles
from castling.profiling.run_report import write_run_report
from castling.train import (
    TrainingInterrupted,
    dry_run,
    load_recipe,
    recipe_from_dict,
    train,
)

SCENES = {"name": "digit_scenes", "canvas": 64, "images": 24, "digits": [0, 4]}
TINY = {
    "task": "detection",
    # So little training gives low scores.
    "model": {"name": "picodet_pico/castling_levit_s8_pico", "head": {"score_threshold": 0.0}},
    "data": {
        "source": SCENES,
        "transform": {
            "image_size": 64,
            "crop": 0.5,
            "zoom_out": 0.3,
            "mosaic": 0.3,
            "copy_paste": 0.3,
            "multi_scale": [64, 128],
        },
        "loader": {"batch_size": 6},
    },
    "epochs": 2,
    "ema": {"decay": 0.9, "warmup": 3},
    "optim": {"lr": 1e-3},
    "hardware": {"accelerator": "cpu"},
    "save": {"every_steps": 1},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(recipe_from_dict(TINY), folder, progress=False)


def test_a_run_leaves_what_it_should(whole):
    folder, result = whole
    assert result.headline == "AP"
    assert {"val_AP", "val_AP50", "test_AP75"} <= set(result.metrics)
    assert result.switched_metrics.keys() == result.metrics.keys()
    assert (folder / "switched" / "certificate.json").is_file()
    assert rows(folder / "auxiliary.csv")
    losses = rows(folder / "metrics.csv")[-1]
    assert float(losses["train_loss"]) > 0
    recorded = rows(folder / "predictions.csv")
    source = open_source(source_config_class("digit_scenes")(**_options()))
    objects = sum(
        len(source.sample("test", index).target["labels"])
        for index in range(source.info.splits["test"])
    )
    assert sum(row["kind"] == "object" for row in recorded) == objects
    page = write_run_report(folder).read_text()
    assert "Validation: the plain loss" not in page  # detectors have none
    for heading in ("Precision and recall", "Classes", "Errors", "Mask trajectories", "Speed"):
        assert f"<h2>{heading}" in page
    assert "Worst misses" in page


def _options():
    return {key: value for key, value in SCENES.items() if key != "name"}


def test_interrupted_in_the_middle_of_an_epoch(whole, tmp_path):
    folder, expected = whole
    recipe = recipe_from_dict(TINY)
    with pytest.raises(TrainingInterrupted):
        train(recipe, tmp_path, progress=False, callbacks=[InterruptAt(6)])
    result = train(recipe, tmp_path, resume="must", progress=False)
    assert result.metrics == expected.metrics
    assert_same_run(folder, tmp_path)


@pytest.mark.slow
def test_killed(whole, tmp_path):
    folder, expected = whole
    run = tmp_path / "run"
    train_until_killed(recipe_from_dict(TINY), run)
    result = train(recipe_from_dict(TINY), run, progress=False)
    assert result.metrics == expected.metrics
    assert_same_run(folder, run)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    """Both see the same weights, each half of the images: the figures are those of one process."""
    head = {"score_threshold": 0.0, "width": 96}
    model = {"name": "picodet_pico/esnet_pico", "head": head}
    plain = {"image_size": 64, "crop": 0.0, "photometric": 0.0}
    learnt = {
        **TINY,
        "model": model,
        "data": {**TINY["data"], "transform": plain},
        "epochs": 30,
        "optim": {"lr": 0.01},
        "ema": {},
    }
    train(recipe_from_dict(learnt), tmp_path / "learnt", progress=False)
    shared = {
        **TINY,
        "optim": {"lr": 1e-30},  # weights stay as they are
        "ema": {},
        "epochs": 1,
        "regularize": {"freeze_batchnorm": True},
        "model": {**model, "checkpoint": str(tmp_path / "learnt")},
    }
    two = {
        **shared,
        "data": {**TINY["data"], "loader": {"batch_size": 3}},
        "hardware": {"accelerator": "cpu", "devices": 2, "strategy": "ddp_spawn"},
    }
    train(recipe_from_dict(shared), tmp_path / "one", progress=False)
    train(recipe_from_dict(two), tmp_path / "two", progress=False)

    def figures(folder):
        (row,) = rows(tmp_path / folder / "metrics.csv")
        return {name: value for name, value in row.items() if name.startswith("val_")}

    assert figures("one") == figures("two")
    assert float(figures("one")["val_AP50"]) > 0  # so that equal figures say something


def test_dry_run():
    result = dry_run(recipe_from_dict(TINY), image_size=64, batch_size=2)
    assert "val_AP" in result.metrics


def test_a_recipe_with_a_classifier_is_refused_first(tmp_path):
    recipe = recipe_from_dict({**TINY, "model": {"name": "cas_vit_pico"}})
    with pytest.raises(ValueError, match=r"model.name is cas_vit_pico; detection needs HEAD/"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_images_of_classes_are_refused(tmp_path):
    recipe = recipe_from_dict({**TINY, "data": {"source": "digits"}})
    with pytest.raises(ValueError, match=r"detection needs data for detection.*COCO, Pascal VOC"):
        train(recipe, tmp_path / "run", progress=False)


def test_scenes_are_refused_for_classification(tmp_path):
    recipe = recipe_from_dict({"model": {"name": "deit_pico"}, "data": {"source": "digit_scenes"}})
    with pytest.raises(ValueError, match=r"needs data for classification.*folders named by their"):
        train(recipe, tmp_path / "run", progress=False)


def test_one_small_image_a_batch_says_what_to_raise(tmp_path):
    recipe = recipe_from_dict(
        {
            **TINY,
            "model": {"name": "picodet_pico/esnet_pico"},
            "data": {**TINY["data"], "transform": {"image_size": 64}, "loader": {"batch_size": 1}},
        }
    )
    with pytest.raises(ValueError, match=r"one image.*raise data\.loader\.batch_size"):
        train(recipe, tmp_path / "run", progress=False)


def test_options_of_classification_are_refused():
    with pytest.raises(ValueError, match=r"no option 'label_smoothing' in task; it has none"):
        recipe_from_dict({**TINY, "task": {"name": "detection", "label_smoothing": 0.1}})


@pytest.mark.parametrize("below", ["", "images"])
def test_images_without_annotations_are_said_to_lack_them(below, tmp_path):
    (tmp_path / "data" / below).mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / below / "a.png")
    recipe = recipe_from_dict({**TINY, "data": {"source": str(tmp_path / "data")}})
    with pytest.raises(ValueError, match=r"COCO, Pascal VOC or YOLO.*found"):
        train(recipe, tmp_path / "run", progress=False)


def run(*arguments):
    return castling_launcher.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    """Scenes in COCO's format, with gaps in the numbers of images and classes."""
    folder = tmp_path_factory.mktemp("coco")
    source = open_source(source_config_class("digit_scenes")(**_options()))
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 * i + 5, "name": name} for i, name in enumerate("0123456789")],
    }
    (folder / "photos").mkdir()
    for index in range(4):
        sample = source.sample("test", index)
        name, target = f"scene{index}.png", sample.target
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(folder / "photos" / name)
        height, width = sample.original_size
        content["images"].append(
            {"id": 100 + 7 * index, "file_name": name, "height": height, "width": width}
        )
        rles = unpack_rles(target["segmentation"])
        for row, (a, b, c, d) in enumerate(target["boxes"].tolist()):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 100 + 7 * index,
                    "category_id": 3 * int(target["labels"][row]) + 5,
                    "bbox": [a, b, c - a, d - b],
                    "area": float(target["area"][row]),
                    "iscrowd": 0,
                    "segmentation": {
                        "size": [height, width],
                        "counts": rles[row]["counts"].decode(),
                    },
                }
            )
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def test_predict_draws_and_writes(whole, coco_folder, tmp_path, capsys):
    folder, _ = whole
    arguments = ("predict", folder, coco_folder / "photos", "--score", 0.001)
    files = {name: tmp_path / f"{name}.out" for name in ("csv", "coco")}
    assert (
        run(
            *arguments,
            *("--csv", files["csv"], "--coco", files["coco"], "--output", tmp_path / "drawn"),
            *("--coco_ids", coco_folder / "instances.json"),
        )
        == 0
    )
    assert "scene0.png" in capsys.readouterr().out
    results = json.loads(files["coco"].read_text())
    assert {entry["image_id"] for entry in results} <= {100, 107, 114, 121}
    truth = COCO(str(coco_folder / "instances.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(files["coco"])), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    table = rows(files["csv"])
    assert {"name", "class", "score", "x1", "y1", "x2", "y2", "error"} == set(table[0])
    assert len(table) == sum(entry["score"] >= 0.001 for entry in results)
    drawn = sorted(path.name for path in (tmp_path / "drawn").glob("*.png"))
    assert drawn == [f"scene{i}.png" for i in range(4)]
    listed = json.loads((tmp_path / "drawn" / "predictions.json").read_text())
    assert len(listed) == 4
    with Image.open(tmp_path / "drawn" / "scene0.png") as image:
        assert np.asarray(image).shape == (448, 448, 3)


def test_predict_refuses_before_the_work(whole, coco_folder, tmp_path, capsys):
    folder, _ = whole
    image = coco_folder / "photos" / "scene0.png"
    there = tmp_path / "there.json"
    there.write_text("mine")
    assert run("predict", folder, image, "--coco", there) != 0
    assert "there.json" in capsys.readouterr().err
    assert there.read_text() == "mine"
    assert run("predict", folder, image, "--coco_ids", there) != 0
    assert "--coco_ids is for the file of --coco" in capsys.readouterr().err
    foreign = tmp_path / "foreign.png"
    Image.new("RGB", (64, 64)).save(foreign)
    ids = coco_folder / "instances.json"
    assert run("predict", folder, foreign, "--coco", tmp_path / "x", "--coco_ids", ids) != 0
    assert "no image is called foreign.png" in capsys.readouterr().err


def test_evaluate_on_its_own_test_images(whole, capsys):
    folder, expected = whole
    assert run("evaluate", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    for name, value in found["metrics"].items():
        assert value == expected.switched_metrics[f"test_{name}"]
    assert set(found["per_class"]) == set("0123456789")


RECIPES = Path(train_package.__file__).parents[3] / "recipes"
DETECTORS = [p for p in sorted(RECIPES.glob("*.yaml")) if "task: detection" in p.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("path", DETECTORS, ids=lambda path: path.stem)
def test_a_recipe_starts_steps_and_is_saved(path):
    assert dry_run(load_recipe(path), image_size=128, batch_size=2).steps == 1
