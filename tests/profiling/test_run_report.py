"""The page of a run: what it says, against the run's own files; old runs; escaping."""

import csv
import json
import re
import shutil

import pytest

import castling
from castling.data import DataConfig, LoaderConfig, SplitConfig
from castling.data.transforms import ClassificationTransformConfig
from castling.deploy import evaluate
from castling.models.saved import open_model
from castling.profiling.run_facts import read_run
from castling.profiling.run_report import headline, write_run_report
from castling.train import ModelConfig, Recipe, recipe_changes, train

RECIPE = Recipe(
    model=ModelConfig(name="castling_deit_pico", kwargs={"depth": 1, "patch_size": 8}),
    data=DataConfig(
        split=SplitConfig(subset=80),
        transform=ClassificationTransformConfig(image_size=32),
        loader=LoaderConfig(batch_size=20),
    ),
    epochs=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "a run"
    train(RECIPE, folder, progress=False)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(finished, tmp_path / "a run")


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_predictions_are_those_of_the_test_split(finished):
    rows = rows_of(finished / "predictions.csv")
    result = json.loads((finished / "result.json").read_text())
    assert len(rows) == result["images"]["test"]
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert 100 * right / len(rows) == pytest.approx(result["switched_metrics"]["test_top1"])
    per_class = evaluate(finished / "switched").per_class
    for name, expected in per_class.items():
        own = [row for row in rows if row["label"] == name]
        hits = sum(row["predicted"] == name for row in own)
        assert 100 * hits / len(own) == pytest.approx(expected)
    shown = [row["example"] for row in rows if row["example"]]
    assert 12 < len(shown) <= 36
    assert sorted(shown) == sorted(f"examples/{p.name}" for p in (finished / "examples").iterdir())


def test_the_headline_says_model_data_accuracy_split_and_cost(finished):
    run = read_run(finished)
    result = run.result
    text = headline(run)
    top1 = result.switched_metrics["test_top1"]
    name = (json.loads((finished / "model.json").read_text())["attention"] or {}).get("name")
    what = f"castling_deit_pico with {name} attention" if name else "castling_deit_pico"
    assert text.startswith(f"{what}, trained on digits (80 images of 10 classes)")
    assert f"top-1 {top1:.2f} % on {result.images['test']} test images after the switch" in text
    model, _ = open_model(finished / "switched")
    count = castling.macs(model, (3, 32, 32)).total
    assert f"{count / 1e6:.1f} M MACs per image" in text
    assert " ms " not in text  # the switch took its times on a machine that may have been busy


def test_sections_and_commands(run):
    page = write_run_report(run, recipe_changes(RECIPE)).read_text()
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        *("Result", "Training", "Confusion matrix", "Classes", "Wrong predictions"),
        *("Right predictions", "Switch certificate", "Speed", "Mask trajectories", "Recipe"),
        *("Data", "Next"),
    ]
    assert "The times are a short check of that moment" in page
    shown = re.sub(r"<style>.*?</style>|<svg.*?</svg>|style=\"[^\"]*\"", "", page, flags=re.DOTALL)
    assert re.search(r"score \d+ %", shown)
    assert not re.search(r"\d%", shown)
    assert page.count("data:image/png;base64,") == len(list((run / "examples").iterdir()))
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    for verb in ("evaluate", "predict", "export", "compare"):
        assert f"castling {verb} &#x27;{run}&#x27;" in page
    assert "castling switch" not in page  # it is switched
    assert "validation" in re.search("<h2>Training</h2>.*?</svg>", page, re.DOTALL)[0]
    assert "share of entries" in page
    for option in ("model.kwargs.depth", "data.split.subset", "model.name", "data.source.name"):
        assert f">{option}</td>" in page
    assert ">optim.lr</td>" not in page


def test_an_old_run_without_the_new_files(run):
    for name in ("predictions.csv", "metrics.csv", "recipe.yaml", "auxiliary.csv"):
        (run / name).unlink()
    shutil.rmtree(run / "examples")
    page = write_run_report(run).read_text()
    assert "no predictions.csv" in page
    assert "metrics.csv is missing" in page
    assert "recipe.yaml is missing" in page
    assert "Switch certificate" in page


def test_a_run_whose_models_are_gone(run):
    shutil.rmtree(run / "switched")
    for name in ("model.json", "model.safetensors", "README.md"):
        (run / name).unlink()
    page = write_run_report(run).read_text()
    assert "castling_deit_pico, trained on digits" in page
    assert "MACs per image" not in page


def test_the_page_says_which_weights_it_is_about(run):
    result = json.loads((run / "result.json").read_text())
    result |= {
        "use": "last",
        "other_dir": str(run / "best"),
        "best": {"metric": "top1", "value": 91.25, "step": 8, "epoch": 7},
        "stopped_early": "stopped early, after step 12",
    }
    (run / "result.json").write_text(json.dumps(result))
    best = "best evaluation after the auxiliary branch ended (epoch 7, validation top-1 91.25 %)"
    said = f"Weights of the last step; those of the {best} are in "
    page = write_run_report(run).read_text()
    assert f"{said}best/." in page
    assert "Stopped early, after step 12." in page
    (run / "result.json").write_text(json.dumps(result | {"use": "best", "other_dir": "x/last"}))
    page = write_run_report(run).read_text()
    assert f"Weights of the {best}; those of the last step" in page
    assert read_run(run).result.best_since
    (run / "result.json").write_text(json.dumps(result | {"switch": {}}))  # no branch at all
    page = write_run_report(run).read_text()
    assert "those of the best evaluation (epoch 7, validation top-1 91.25 %) are in" in page


def test_names_of_classes_are_text(run):
    path = run / "predictions.csv"
    text = path.read_text()
    card = json.loads((run / "model.json").read_text())
    card["classes"] = ["<i>zero</i>", *card["classes"][1:]]
    (run / "model.json").write_text(json.dumps(card))
    lines = [line.split(",") for line in text.splitlines()]
    for line in lines[1:]:
        line[1:3] = [{"0": "<i>zero</i>"}.get(name, name) for name in line[1:3]]
    path.write_text("".join(",".join(line) + "\n" for line in lines))
    page = write_run_report(run).read_text()
    assert "<i>zero</i>" not in page
    assert "&lt;i&gt;zero&lt;/i&gt;" in page


def test_changes_of_a_recipe():
    changes = recipe_changes(RECIPE)
    assert changes == {
        "model.name": ("castling_deit_pico", "castling_deit_pico"),
        "model.kwargs.depth": (1, None),
        "model.kwargs.patch_size": (8, None),
        "data.source.name": ("digits", None),
        "data.split.subset": (80, None),
        "data.loader.batch_size": (20, 128),
        "epochs": (2, 10),
    }
