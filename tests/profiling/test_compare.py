"""Runs side by side: options, results, curves, in the terminal, as JSON and as a page."""

import csv
import json
import re
import shutil

import pytest

import castling
import castling_launcher
from castling.models.saved import open_model
from castling.profiling.compare import compare_runs
from castling.train import Recipe, recipe_from_dict, train

VALUES = {
    "model": {"name": "castling_deit_pico", "kwargs": {"depth": 1, "patch_size": 8}},
    "data": {"source": "digits", "split": {"subset": 80}, "loader": {"batch_size": 20}},
    "epochs": 2,
}


def recipe(**changes) -> Recipe:
    return recipe_from_dict({**VALUES, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    train(recipe(), folder / "first" / "run", progress=False)
    other = {"name": "deit_pico", "kwargs": {"depth": 2, "patch_size": 8}}
    train(recipe(model=other, epochs=4), folder / "second" / "run", progress=False)
    return folder / "first" / "run", folder / "second" / "run"


def test_what_differs_and_what_came_of_it(runs):
    found = compare_runs(runs)
    assert found.names == ("first/run", "second/run")
    assert found.options == {
        "model.name": ("castling_deit_pico", "deit_pico"),
        "model.kwargs.depth": (1, 2),
        "epochs": (2, 4),
    }
    assert found.notes == ()
    results = dict(found.results())
    for index, run in enumerate(runs):
        own = json.loads((run / "result.json").read_text())
        for split, label in (("val", "validation"), ("test", "test")):
            value = own["metrics"][f"{split}_top1"]
            assert results[f"{label} top-1"][index] == f"{value:.2f} %"
        assert results["parameters"][index] == f"{own['parameters']:,}"
        used = run / "switched" if (run / "switched").is_dir() else run
        count = castling.macs(open_model(used)[0], (3, 32, 32)).total
        assert results["MACs per image"][index] == f"{count / 1e6:,.2f} M"
        assert results["optimiser steps"][index] == str(own["steps"])
    assert results["test top-1, switched"][1] == "–"
    assert results["switch"] == ("exact", "–")
    assert "ms per image, measured now" not in results


def test_curves_are_those_of_metrics_csv(runs):
    found = compare_runs(runs)
    with (runs[1] / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    losses = [float(row["val_loss"]) for row in rows]
    assert found.curves["validation loss"]["second/run"] == ([1, 2, 3, 4], losses)
    progress = dict(found.progress())
    assert progress["validation loss at 50 %"][1] == f"{losses[1]:.4f} (epoch 2)"
    assert progress["validation loss at 100 %"][1] == f"{losses[3]:.4f} (epoch 4)"
    best = min(losses)
    assert progress["validation loss, best of all"][1] == (
        f"{best:.4f} (epoch {losses.index(best) + 1})"
    )
    top = [float(row["val_top1"]) for row in rows]
    expected = f"{max(top):.2f} % (epoch {top.index(max(top)) + 1})"
    assert progress["validation top-1, best of all"][1] == expected
    assert progress["validation loss at 25 %"][0] == "–"  # before the first epoch of two


def test_quarters_without_an_epoch_of_their_own_are_left_out(runs, tmp_path):
    copy = shutil.copytree(runs[0], tmp_path / "copy")  # two epochs, as the first
    labels = [label for label, _ in compare_runs([runs[0], copy]).progress()]
    assert [label for label in labels if label.startswith("validation loss")] == [
        *("validation loss at 50 %", "validation loss at 100 %", "validation loss, best of all"),
    ]


def test_notes_say_what_best_and_speed_are(runs):
    found = compare_runs(runs)
    best = json.loads((runs[0] / "result.json").read_text())["best"]
    notes = found.to_dict()["notes"]
    assert "ms per image, in each run" in dict(found.results())
    assert any("--measure compares them side by side" in note for note in notes)
    assert (
        f"best after the auxiliary branch ended: first/run epoch {best['epoch']}, "
        f"validation top-1 {best['value']:.2f} %"
    ) in notes  # the other run has no branch: all its epochs count
    assert not re.search(r"\d%", str(found))
    text = " ".join(str(found).split())
    for note in notes:
        assert f"note: {note}" in text


def test_two_runs_fit_80_columns(runs, capsys):
    assert castling_launcher.main(["compare", *map(str, runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("model.kwargs.depth") for line in lines)


def test_page_and_json(runs, tmp_path, capsys):
    page = tmp_path / "compare.html"
    arguments = ["compare", *map(str, runs), "--output", str(page), "--measure", "--json"]
    assert castling_launcher.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == ["first/run", "second/run"]
    assert all(run["milliseconds"] > 0 for run in found["runs"])
    assert found["machine"]["device"].startswith("cpu")
    assert found["options"]["epochs"] == [2, 4]
    text = page.read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == ["Results", "Training", "Recipes", "Speed"]
    assert "https://" not in text
    values = [
        run["result"]["switched_metrics"].get("test_top1", run["result"]["metrics"]["test_top1"])
        for run in found["runs"]
    ]
    best = found["runs"][values.index(max(values))]["name"]
    assert f"Best by top-1: {best}, {max(values):.2f} %" in text or "All reach" in text


def test_different_data_is_said(runs, tmp_path):
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(text.replace("subset: 80", "subset: 60"))
    found = compare_runs([runs[0], copy])
    assert found.options == {"data.split.subset": (80, 60)}
    assert "do not compare" in str(found)


@pytest.mark.parametrize("count", [0, 1])
def test_one_run_is_not_enough(runs, count):
    with pytest.raises(ValueError, match="at least two"):
        compare_runs(runs[:count])


def test_a_run_twice_and_one_that_is_not_finished(runs, tmp_path):
    with pytest.raises(ValueError, match="twice"):
        compare_runs([runs[0], runs[0].parent / ".." / "first" / "run"])
    with pytest.raises(FileNotFoundError, match="not a finished run"):
        compare_runs([runs[0], tmp_path])
