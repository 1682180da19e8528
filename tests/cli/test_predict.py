"""``castling predict``: patterns, tables, drawn images."""

import csv
import json

import pytest
from PIL import Image

import castling_launcher
from castling.cli.predict import drawn_names, expand
from castling.data import DataConfig, LoaderConfig, SplitConfig
from castling.tasks import Prediction
from castling.train import ModelConfig, Recipe, train


def run(*arguments):
    return castling_launcher.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "run"
    recipe = Recipe(
        model=ModelConfig(name="castling_deit_pico", kwargs={"depth": 1, "patch_size": 8}),
        data=DataConfig(split=SplitConfig(subset=40), loader=LoaderConfig(batch_size=20)),
        epochs=1,
    )
    train(recipe, folder, progress=False)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("b.png", "a.PNG", "deep/er/c.jpg", "deep/b.png", "notes.txt", "[x].png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.new("RGB", (20, 30), (len(name) * 9, 0, 0)).save(path)
    return folder


def test_patterns(photos, monkeypatch):
    monkeypatch.chdir(photos)
    everything = ["[x].png", "a.PNG", "b.png", "deep/b.png", "deep/er/c.jpg"]
    assert expand(["*.png"]) == (["[x].png", "b.png"], [])
    assert expand(["**/*.*"]) == (everything, [])
    assert expand(["*"]) == (["[x].png", "a.PNG", "b.png", "deep"], [])
    assert expand(["[x].png"]) == (["[x].png"], [])  # a file of that very name
    assert expand(["*.gif", "deep/*.png", "absent.png"]) == (
        ["deep/b.png", "absent.png"],
        ["*.gif"],
    )
    assert expand(["b.png", "b.*"]) == (["b.png"], [])


def test_names_of_drawn_images_are_distinct():
    found = [Prediction(name=name) for name in ("a/x.jpg", "b/x.png", "X.jpg", "y")]
    assert list(drawn_names(found)) == ["x.png", "x-2.png", "X-3.png", "y.png"]


def test_output_holds_drawings_and_tables(trained, photos, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ("predict", trained, photos / "*.png", photos / "*.gif", "--output", output)
    assert run(*arguments, "--top", 2) == 1  # one pattern matched nothing
    said = capsys.readouterr()
    assert f"no image matches {photos}/*.gif" in said.err
    assert len(said.out.splitlines()) == 2
    names = {path.name for path in output.iterdir()}
    assert names == {"[x].png", "b.png", "predictions.csv", "predictions.json"}
    drawn = Image.open(output / "b.png")
    assert drawn.height > 30
    rows = json.loads((output / "predictions.json").read_text())
    with (output / "predictions.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["error"] != "" for row in rows] == [True, False, False]
    assert len(table) == 1 + 2 * 2
    for row in rows[1:]:
        own = [each for each in table if each["name"] == row["name"]]
        assert [each["class"] for each in own] == row["classes"]
        assert [float(each["probability"]) for each in own] == pytest.approx(row["probabilities"])
    assert run(*arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*arguments, "--overwrite", "--quiet", "--json") == 1
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_help_says_what_the_percentages_are(capsys):
    with pytest.raises(SystemExit):
        run("predict", "--help")
    assert "not calibrated" in " ".join(capsys.readouterr().out.split())
