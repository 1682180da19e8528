"""``castling predict``: patterns, tables, drawn images."""

import csv
import json
import os
from pathlib import Path, PurePath

import pytest
from PIL import Image

import castling_launcher
from castling.cli.predict import drawn_names, expand
from castling.data import DataConfig, LoaderConfig, SplitConfig
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


def test_what_lies_in_a_named_folder_is_not_named_twice(photos, monkeypatch):
    monkeypatch.chdir(photos)
    (photos / ".hidden").mkdir()
    for name in (".hidden/h.png", ".h.png"):
        Image.new("RGB", (4, 4)).save(photos / name)
    assert expand(["b.png", "deep", "deep/**/*.jpg"]) == (["b.png", "deep"], [])
    assert expand(["deep/b.png", str(photos), "deep", "./deep/er/c.jpg"]) == ([str(photos)], [])
    assert expand([".", str(photos)]) == (["."], [])
    assert expand([".hidden/h.png", ".hidden", "."]) == ([".hidden", "."], [])
    # What the folder does not stand for is not left out.
    others = [".hidden/h.png", ".h.png", "notes.txt", ".", "absent.png", "x" * 999, "a\0.png"]
    assert expand(others) == (others, [])


def test_links_to_what_a_named_folder_holds(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.png").write_bytes((photos / "b.png").read_bytes())
    (photos / "in.png").symlink_to(tmp_path / "other.png")
    (tmp_path / "link.png").symlink_to(photos / "deep" / "b.png")
    (tmp_path / "album").symlink_to(photos)
    assert expand(["link.png", "album/b.png", "photos/in.png", "album", "photos"]) == (
        ["album"],
        [],
    )


def test_names_of_drawn_images_are_distinct():
    places = map(PurePath, ("a/x.jpg", "a/x.png", "x.jpg", "X.png", "b/x.tar.jpg", "y"))
    assert list(drawn_names(places)) == [
        *("a/x.png", "a/x-2.png", "x.png", "X-2.png", "b/x.tar.png", "y.png"),
    ]


def test_output_keeps_the_folders_below_an_argument(trained, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (photos / "empty").mkdir()
    loose = tmp_path / "c.jpg"
    Image.new("RGB", (8, 8)).save(loose)
    images = (photos, photos / "deep" / "**" / "*.jpg", "../" + tmp_path.name + "/c.jpg")
    assert run("predict", trained, *images, "--output", "out", "--quiet") == 0
    drawn = sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*.png"))
    assert drawn == ["[x].png", "a.png", "b.png", "c.png", "deep/b.png", "deep/er/c.png"]
    assert len(json.loads(Path("out/predictions.json").read_text())) == 6


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


def test_pattern_of_folders_stands_for_their_images(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert expand(["**/"]) == (["deep/"], [])
    assert expand([f"{photos}/**/"]) == ([f"{photos}/"], [])


def test_empty_argument_is_not_the_current_folder():
    with pytest.raises(ValueError, match="empty"):
        expand(["b.png", ""])


def test_csv_does_not_replace_an_image(trained, photos, capsys):
    image = photos / "b.png"
    before = image.read_bytes()
    assert run("predict", trained, image, "--csv", image) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert image.read_bytes() == before
    assert run("predict", trained, image, "--csv", photos / "deep") == 2
    table = photos / "table.csv"
    assert run("predict", trained, image, "--csv", table) == 0
    assert run("predict", trained, image, "--csv", table) == 2
    assert run("predict", trained, image, "--csv", table, "--overwrite") == 0


def test_output_of_a_name_that_is_not_utf8(trained, photos, tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (photos / "b.png").rename(photos / name)
    except OSError:
        pytest.skip("the file system takes UTF-8 names alone")
    for images in (photos / name, photos):
        output = tmp_path / f"out-{images.name!a}"
        assert run("predict", trained, images, "--output", output) == 0
        assert (output / r"caf\xe9.png").is_file()
        assert "caf\\xe9.png" in (output / "predictions.csv").read_text()
