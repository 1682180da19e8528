"""A run that goes on over a folder that has changed, and the figures of a run afterwards."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image

from castling.data import DataConfig, FolderConfig, SplitConfig, read_split_record
from castling.deploy import evaluate
from castling.train import load_recipe, recipe_from_dict, train
from castling.train.recorded_split import load_run_recipe
from castling.train.run_folder import read_checkpoint

#: The split options that recipes of earlier versions do not have.
YOUNGER = {"split": "by", "loader": "last_batch"}


def noise(path, seed):
    """A 12×10 image that differs from that of every other seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        for index in range(20):
            noise(tmp_path / "photos" / name / f"{index:02d}.png", 100 * label + index)
    return tmp_path / "photos"


def recipe(photos, **data):
    return recipe_from_dict(
        {
            "model": {"name": "castling_deit_pico", "kwargs": {"depth": 1, "embed_dim": 16}},
            "data": {
                "source": str(photos),
                "transform": {"image_size": 16, "crop": "none"},
                "loader": {"batch_size": 8, "cache": "none"},
                **data,
            },
            "epochs": 2,
            "hardware": {"accelerator": "cpu"},
            "save": {"every_steps": 1},
        }
    )


class StopAt(Callback):
    """Ends training before a step, counted from 0, as a lost machine would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


class Indices(Callback):
    """Keeps which images were trained on."""

    def __init__(self):
        self.names = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.names += batch.names


def interrupted(photos, run, **data):
    with pytest.raises(RuntimeError, match="stopped"):
        train(recipe(photos, **data), run, progress=False, callbacks=[StopAt(3)])


def weights(run):
    return (run / "model.safetensors").read_bytes()


def test_a_run_writes_its_split_down_and_keeps_it_when_images_come(photos, tmp_path, caplog):
    whole = tmp_path / "whole"
    train(recipe(photos), whole, progress=False)
    run = tmp_path / "run"
    interrupted(photos, run)
    record = read_split_record(run)
    assert record == read_split_record(whole)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["castling"]["split"] == record.digest
    noise(photos / "cat" / "000.png", 900)
    first = photos / "dog" / "00.png"
    first.rename(photos / "dog" / "zz.png")
    seen = Indices()
    train(recipe(photos), run, progress=False, callbacks=[seen])
    assert weights(run) == weights(whole)  # bit for bit, as if nothing had come
    assert not any("000.png" in name for name in seen.names)
    assert "new images: 1 (cat/000.png)" in caplog.text  # also without the display
    assert read_split_record(run) == record


def test_changed_training_images_are_refused_unless_allowed(photos, tmp_path):
    run = tmp_path / "run"
    interrupted(photos, run)
    record = read_split_record(run)
    gone = next(image for image in record.images["train"] if image.label == 0)
    (photos / gone.path).unlink()
    for index in range(10):
        noise(photos / "dog" / f"new-{index}.png", 900 + index)
    with pytest.raises(ValueError, match=rf"train images removed.*: 1 .{gone.path}(?s:.*)allow"):
        train(recipe(photos), run, progress=False)
    assert read_split_record(run) == record
    seen = Indices()
    result = train(recipe(photos), run, progress=False, changed_data="allow", callbacks=[seen])
    now = read_split_record(run)
    assert sum(result.images.values()) == sum(now.sizes.values()) == 49
    assert gone.key in now.trained
    for split in ("val", "test"):
        assert set(record.images[split]) <= set(now.images[split])
    assert any("new-" in name for name in seen.names)


def test_a_split_of_another_run_is_refused(photos, tmp_path):
    run = tmp_path / "run"
    interrupted(photos, run)
    path = run / "split.json"
    text = path.read_text()
    path.unlink()
    with pytest.raises(ValueError, match=r"split\.json.* is missing(?s:.*)--changed_data allow"):
        train(recipe(photos), run, progress=False)
    path.write_text(text.replace('"unused": []', '"unused": ["x.png"]'))
    with pytest.raises(ValueError, match="not the one of its last checkpoint"):
        train(recipe(photos), run, progress=False)
    path.write_text(text)
    assert train(recipe(photos), run, progress=False).metrics


def as_of_earlier_version(run):
    """Take out of a run what earlier versions did not write."""
    (run / "split.json").unlink()
    path = run / "recipe.yaml"
    values = yaml.safe_load(path.read_text())
    for section, name in YOUNGER.items():
        del values["data"][section][name]
    path.write_text(yaml.safe_dump(values))
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    del checkpoint["castling"]["split"]
    torch.save(checkpoint, path)
    path = run / "result.json"
    if path.is_file():
        values = json.loads(path.read_text())
        del values["split"]
        path.write_text(json.dumps(values))


def test_runs_of_earlier_versions_go_on_and_are_evaluated_by_position(photos, tmp_path):
    old = {"split": {"by": "position"}, "loader": {"batch_size": 12, "last_batch": "drop"}}
    whole, run = tmp_path / "whole", tmp_path / "run"
    expected = train(recipe(photos, **old), whole, progress=False)
    assert expected.images == {"train": 32, "val": 4, "test": 4}
    assert expected.steps == 2 * (32 // 12)
    interrupted(photos, run, **old)
    as_of_earlier_version(run)
    assert load_run_recipe(run).data.split.by == "position"
    new = recipe(photos, loader={"batch_size": 12})  # the command that began it, with new defaults
    assert new.data.split.by == "content"
    result = train(new, run, progress=False)
    assert result.steps == expected.steps
    assert weights(run) == weights(whole)
    assert train(new, run, progress=False).already_finished
    assert read_split_record(run).sizes == expected.images
    as_of_earlier_version(run)
    found = evaluate(run)
    assert found.metrics["loss"] == pytest.approx(expected.metrics["test_loss"])
    assert "drawn anew by position; if files" in found.notes[-1]
    with pytest.raises(FileExistsError, match=r"epochs: 2 → 3$"):
        train(dataclasses.replace(new, epochs=3), run, progress=False)


def test_evaluation_takes_the_recorded_images(photos, tmp_path):
    run = tmp_path / "run"
    result = train(recipe(photos), run, progress=False)
    for index in range(20):
        noise(photos / "cat" / f"000-{index}.png", 900 + index)
    trained = read_split_record(run).images["train"][0]
    shutil.copy(photos / trained.path, photos / "dog" / "copy.png")
    named = DataConfig(source=FolderConfig(path=str(photos / ".." / "photos")))
    for data in (None, named):  # the run's own folder is known by any of its names
        for split in ("val", "test"):
            found = evaluate(run, data, split=split)
            assert (found.split, found.images) == (split, result.images[split])
            loss = result.metrics[f"{split}_loss"]
            assert found.metrics["loss"] == pytest.approx(loss, rel=1e-5)
            assert any("new images: 21 " in note for note in found.notes)
            assert any(
                "copies of images trained on" in note and "dog/copy.png" in note
                for note in found.notes
            )


@pytest.mark.parametrize("kept", ["val", "test"])
def test_a_run_whose_folder_has_one_of_val_and_test_goes_on(kept, photos, tmp_path):
    for index, name in enumerate(("cat", "dog")):
        (photos / name).rename(photos / f"moved-{name}")
        (photos / "train").mkdir(exist_ok=True)
        (photos / f"moved-{name}").rename(photos / "train" / name)
        for number in range(3):
            noise(photos / kept / name / f"{number}.png", 500 + 10 * index + number)
    whole, run = tmp_path / "whole", tmp_path / "run"
    images = {"split": {"val_fraction": None, "test_fraction": None}}
    expected = train(recipe(photos, **images), whole, progress=False)
    assert expected.images == {"train": 40, "val": 6}
    interrupted(photos, run, **images)
    train(recipe(photos, **images), run, progress=False)
    assert weights(run) == weights(whole)
    found = evaluate(run)
    assert (found.split, found.images) == (kept, 6)
    assert found.metrics["loss"] == pytest.approx(expected.metrics["test_loss"], rel=1e-5)


def test_evaluation_refuses_a_split_that_is_not_the_run_s(photos, tmp_path):
    run = tmp_path / "run"
    train(recipe(photos), run, progress=False)
    path = run / "split.json"
    text = path.read_text()
    values = json.loads(text)
    images = values["images"]
    images["train"][0], images["test"][0] = images["test"][0], images["train"][0]
    path.write_text(json.dumps(values))
    for model in (run, run / "switched"):
        with pytest.raises(ValueError, match=r"split\.json, .* not the one .* trained with"):
            evaluate(model)
    path.unlink()
    with pytest.raises(ValueError, match=r"split\.json, .* is missing"):
        evaluate(run)
    path.write_text(text)
    assert evaluate(run).trained_on == 0
    (run / "result.json").write_text("")
    assert evaluate(run).trained_on == 0


def test_evaluation_needs_the_images_of_its_own_split_alone(photos, tmp_path):
    run = tmp_path / "run"
    result = train(recipe(photos), run, progress=False)
    for image in read_split_record(run).images["val"]:
        (photos / image.path).unlink()
    found = evaluate(run)
    assert found.metrics["loss"] == pytest.approx(result.metrics["test_loss"], rel=1e-5)
    with pytest.raises(ValueError, match=r"none of the \d val images"):
        evaluate(run, split="val")


def test_evaluation_of_other_folders_warns_of_images_trained_on(photos, tmp_path):
    run = tmp_path / "run"
    train(recipe(photos), run, progress=False)
    record = read_split_record(run)
    other = tmp_path / "other"
    for index in range(3):
        noise(other / "cat" / f"{index}.png", 950 + index)
        noise(other / "dog" / f"{index}.png", 970 + index)
    data = DataConfig(source=FolderConfig(path=str(other)))
    found = evaluate(run, data)
    assert (found.split, found.images) == ("all", 6)  # all of a flat folder, none held out
    assert found.notes == ("there are no folders of splits, so all images are evaluated",)
    for image in (record.images["train"][0], record.images["test"][0]):
        shutil.copy(photos / image.path, other / "cat" / f"copy-{image.key}.png")
    found = evaluate(run, data)
    assert found.images == 8
    assert "trained on 1 of these 8 images" in found.notes[-1]
    assert record.images["train"][0].key in found.notes[-1]
    asked = dataclasses.replace(data, split=SplitConfig(test_fraction=0.5))
    assert evaluate(run, asked).images < 8
    (other / "train").mkdir()
    for name in ("cat", "dog"):
        (other / name).rename(other / "train" / name)
    shutil.copytree(other / "train", other / "test")
    found = evaluate(run, data)
    assert (found.split, found.images) == ("test", 8)
    assert "trained on 1 of these 8 images" in found.notes[-1]


def test_a_source_whose_images_cannot_change_is_recorded_by_numbers(tmp_path):
    small = recipe("digits", split={"subset": 32})
    result = train(dataclasses.replace(small, epochs=1), tmp_path, progress=False)
    record = read_split_record(tmp_path)
    assert (record.images, record.sizes) == ({}, result.images)
    assert evaluate(tmp_path).images == result.images["test"]


def test_notes_say_what_small_images_and_batches_lose(photos, tmp_path):
    from castling.train.build import open_data

    data, _ = open_data(recipe(photos))
    assert not any("recipes/" in note or "leaves out" in note for note in data.notes)
    for file in photos.glob("*/*.png"):
        Image.open(file).resize((120, 100)).save(file)
    reduced, _ = open_data(recipe(photos, loader={"batch_size": 8, "last_batch": "drop"}))
    (text,) = [note for note in reduced.notes if "recipes/photos.yaml" in note]
    assert "typically 100 pixels on their shorter side, are reduced to 16" in text
    train_images = reduced.sizes["train"]
    assert train_images % 8
    left_out = f"every epoch leaves out {train_images % 8} of {train_images} training images"
    assert any(note.startswith(left_out) for note in reduced.notes)


def test_copies_and_new_images_are_said_before_training(photos, tmp_path, capsys):
    trained = photos / "cat" / "00.png"
    shutil.copy(trained, photos / "dog" / "00.png")
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="stopped"):
        train(recipe(photos), run, progress=True, callbacks=[StopAt(3)])
    assert "images in more than one class: 1 (cat/00.png and dog/00.png)" in capsys.readouterr().err
    noise(photos / "cat" / "new.png", 999)
    train(recipe(photos), run, progress=True)
    text = capsys.readouterr().err
    assert "new images: 1 (cat/new.png)" in text
    assert "the run goes on without the new images" in text


def test_recipe_of_the_run_holds_every_option(photos, tmp_path):
    interrupted(photos, tmp_path / "run")
    values = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    for section, name in YOUNGER.items():
        assert name in values["data"][section]
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe(photos)
    assert json.loads((tmp_path / "run" / "split.json").read_text())["source"] == str(photos)


def test_copies_among_the_test_images_do_not_count_as_held_out(photos, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(photos, folder / "train")
    for seed, split in ((700, "val"), (800, "test")):
        for name in ("cat", "dog"):
            noise(folder / split / name / "own.png", seed + ord(name[0]))
    shutil.copy(next((folder / "train" / "cat").iterdir()), folder / "test" / "cat" / "copy.png")
    run = tmp_path / "run"
    train(recipe(folder), run, progress=False)
    found = evaluate(run)
    assert (found.split, found.images, found.trained_on) == ("test", 3, 1)
    assert "trained on 1 of them" in found.describe()
    assert any("1 of these 3 images" in n and "copy.png" in n for n in found.notes)
    assert evaluate(run, split="val").trained_on == 0
    everything = evaluate(run, split="train")
    assert everything.trained_on == everything.images


def test_whether_files_of_an_older_run_were_held_out_is_not_known(photos, tmp_path):
    run = tmp_path / "run"
    train(recipe(photos), run, progress=False)
    assert evaluate(run).trained_on == 0
    (run / "split.json").unlink()
    values = json.loads((run / "result.json").read_text())
    for name in [name for name in values if "split" in name]:
        del values[name]  # earlier versions kept none
    (run / "result.json").write_text(json.dumps(values) + "\n")
    found = evaluate(run)
    assert found.trained_on is None
    assert "not known" in found.describe()
