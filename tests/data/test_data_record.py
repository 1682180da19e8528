"""The split of a run, written down and found again in a folder that has changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data.pictures import picture

from castling.data import (
    ClassificationEvalTransform,
    DataConfig,
    DataError,
    DataModule,
    FolderConfig,
    SplitConfig,
    SplitRecord,
    open_source,
    read_split_record,
)
from castling.data.split_record import leaks

Make = Callable[..., Path]
CONTENT = {"cat": 20, "dog": 20}


def _open(folder: Path, record: SplitRecord | None = None, **options: object) -> DataModule:
    split = {name: options.pop(name) for name in ("by", "subset") if name in options}
    config = DataConfig(source=FolderConfig(path=str(folder)), split=SplitConfig(**split))
    transform = ClassificationEvalTransform(config.transform)
    source = open_source(config.source)
    return DataModule(source, config, transform, transform, record=record, **options)


def _files(data: DataModule) -> dict[str, list[str]]:
    return {
        split: [Path(data.dataset(split).name(i)).name for i in range(len(data.dataset(split)))]
        for split in data.sizes
    }


def _new(folder: Path, name: str, seed: int = 1) -> None:
    picture(9, seed).save(folder / name)


def test_the_record_comes_back_from_its_file(make_folder: Make, tmp_path: Path) -> None:
    data = _open(make_folder(CONTENT), subset=10)
    record = data.record()
    record.write(tmp_path / "run")
    again = read_split_record(tmp_path / "run")
    assert again == record
    assert again is not None
    assert again.digest == record.digest
    assert record.sizes == {split: len(files) for split, files in _files(data).items()}
    assert record.sizes["train"] == 10
    used = {image.path for images in record.images.values() for image in images}
    assert len(used) + len(record.unused) == 40
    assert not used & set(record.unused)
    values = json.loads((tmp_path / "run" / "split.json").read_text())
    assert values["classes"] == ["cat", "dog"]
    path, label, key = values["images"]["train"][0]
    assert (path.split("/")[0], label, len(key)) == ("cat", 0, 16)
    assert read_split_record(tmp_path) is None
    other = dataclasses.replace(record, classes=["dog", "cat"])
    assert other.digest != record.digest


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace("split 1", "split 2"),
        lambda text: text.replace('"train": [\n', '"train": [\n["cat/x.png", 0, ""],\n'),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_record_is_named(
    make_folder: Make, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    _open(make_folder(CONTENT)).record().write(tmp_path)
    path = tmp_path / "split.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=r"split\.json is not a whole record"):
        read_split_record(tmp_path)


@pytest.mark.parametrize("by", ["content", "path", "position"])
def test_an_image_more_changes_no_recorded_split(make_folder: Make, by: str) -> None:
    folder = make_folder(CONTENT)
    first = _open(folder, by=by)
    before, record = _files(first), first.record()
    _new(folder / "cat", "000-new.png")
    again = _open(folder, record, by=by)
    assert _files(again) == before
    assert again.changes.added == ["cat/000-new.png"]
    assert not again.changes.training
    assert again.changes.lines() == ["new images: 1 (cat/000-new.png)"]
    fresh = _files(_open(folder, by=by))
    moved = sum(len(set(before[split]) - set(fresh[split])) for split in before)
    assert (moved == 0) == (by != "position")


def test_renamed_images_are_known_by_their_content(make_folder: Make) -> None:
    folder = make_folder(CONTENT)
    first = _open(folder)
    record = first.record()
    for image in record.images["train"][:3]:
        file = folder / image.path
        file.rename(file.with_name(f"renamed-{file.name}"))
    again = _open(folder, record)
    assert [image.key for image in again.record().images["train"]] == [
        image.key for image in record.images["train"]
    ]
    assert len(again.changes.renamed["train"]) == 3
    assert not again.changes.training
    assert not again.changes.added
    assert "train images renamed since training began: 3 " in again.changes.lines()[0]


def test_removed_changed_and_relabelled_images_are_changes_of_training(make_folder: Make) -> None:
    folder = make_folder(CONTENT)
    record = _open(folder).record()
    cats = [image.path for image in record.images["train"] if image.label == 0]
    (folder / cats[0]).unlink()
    _new(folder, cats[1])
    (folder / cats[2]).rename(folder / "dog" / "was-a-cat.png")
    held_out = record.images["test"][0].path
    (folder / held_out).unlink()
    changes = _open(folder, record).changes
    assert changes.training
    assert changes.removed == {"train": [cats[0]], "test": [held_out]}
    assert changes.changed == {"train": [cats[1], "dog/was-a-cat.png"]}
    assert changes.added == []
    assert [line.split(":")[0] for line in changes.lines()] == [
        "train images removed since training began",
        "test images removed since training began",
        "train images changed since training began",
    ]


def test_a_test_image_replaced_by_one_trained_on_is_no_test_image(make_folder: Make) -> None:
    folder = make_folder(CONTENT)
    record = _open(folder).record()
    trained, tested = record.images["train"][0], record.images["test"][0]
    (folder / tested.path).write_bytes((folder / trained.path).read_bytes())
    data = _open(folder, record, read=("test",))
    test = data.dataset("test")
    assert str(folder / tested.path) not in {test.name(index) for index in range(len(test))}
    assert data.changes.removed == {"test": [tested.path]}
    assert data.sizes["test"] == record.sizes["test"] - 1


def test_new_images_join_where_their_content_says(make_folder: Make) -> None:
    folder = make_folder(CONTENT)
    first = _open(folder)
    before, record = _files(first), first.record()
    for n in range(30):
        _new(folder / "dog", f"new-{n}.png", seed=n)
    joined = _files(_open(folder, record, take_in=True))
    fresh = _files(_open(folder))
    for split in before:
        assert set(before[split]) <= set(joined[split])
        new = {name for name in joined[split] if name.startswith("new")}
        assert new == {name for name in fresh[split] if name.startswith("new")}
    assert sum(len(names) for names in joined.values()) == 70
    assert all(any(name.startswith("new") for name in joined[split]) for split in joined)


def test_images_once_trained_on_stay_known(make_folder: Make) -> None:
    folder = make_folder(CONTENT)
    record = _open(folder).record()
    gone = record.images["train"][0]
    (folder / gone.path).unlink()
    later = _open(folder, record, take_in=True).record()
    assert later.earlier == [gone.key]
    assert later.trained == record.trained


def test_copies_are_noted(make_folder: Make) -> None:
    folder = make_folder({"train": CONTENT, "test": {"cat": 3, "dog": 3}})
    assert leaks(_open(folder).record()) == []
    image = (folder / "train" / "cat" / "0.png").read_bytes()
    (folder / "test" / "cat" / "copy.png").write_bytes(image)
    (folder / "train" / "dog" / "copy.png").write_bytes(image)
    copies, double = leaks(_open(folder).record())
    assert copies.startswith("val images that are copies of training images: 1 (test/cat/copy.png)")
    assert "test/cat/copy.png" in copies
    assert double.startswith("images in more than one class: 1 ")
    assert "train/cat/0.png" in double


def test_other_classes_or_nothing_left_is_refused(make_folder: Make) -> None:
    folder = make_folder(CONTENT)
    record = _open(folder).record()
    (folder / "emu").mkdir()
    for n in range(5):
        _new(folder / "emu", f"{n}.png", seed=n)
    with pytest.raises(DataError, match="were cat, dog, and are cat, dog, emu; train a new run"):
        _open(folder, record)
    other = make_folder({"cat": 9, "dog": 9}, "other", size=(5, 5))
    for file in other.glob("*/*.png"):
        file.rename(file.with_name(f"x{file.name}"))
    with pytest.raises(DataError, match=r"none of the .* images .* is left"):
        _open(other, record)


def test_unreadable_files_get_a_place_and_are_reported(make_folder: Make) -> None:
    folder = make_folder(CONTENT)
    (folder / "cat" / "3.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"1 of \d+ .* images are damaged(?s:.*)cat/3\.png is empty"
    ):
        _open(folder)


def test_only_what_is_read_is_checked(make_folder: Make) -> None:
    folder = make_folder({"train": CONTENT, "test": {"cat": 3, "dog": 3}})
    (folder / "train" / "cat" / "3.png").write_bytes(b"no image")
    data = _open(folder, read=("test",))
    assert data.sizes == {"train": 40, "val": 6}
    with pytest.raises(DataError, match=r"train/cat/3\.png"):
        _open(folder, read=("train",))


def test_all_images_at_once(make_folder: Make) -> None:
    folder = make_folder({"cat": 1, "dog": 2})  # too few to be split
    data = _open(folder, whole=True, read=("train",))
    assert len(data.dataset("train")) == 3
    assert data.contents("train") == data._keys.of("train")  # type: ignore[union-attr]
    with pytest.raises(DataError, match="too few"):
        _open(folder)
