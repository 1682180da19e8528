"""Labels of one order of classes in another: objects and images keep the names of their classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from castling.data import (
    CocoConfig,
    DataError,
    DataInfo,
    FileSource,
    FolderConfig,
    ReportingSource,
    Sample,
    open_source,
)
from castling.data.renumbered import renumbered
from castling.tasks.detection.noise import write_noise


class Named:
    """A source of one image whose every target names the class of each of its values."""

    def __init__(self, classes: list[str]) -> None:
        self.info = DataInfo(classes, {"train": 1})

    def sample(self, split: str, index: int) -> Sample:
        count = len(self.info.classes)
        image = tv_tensors.Image(torch.zeros(3, 1, count + 1, dtype=torch.uint8))
        target = {
            "label": torch.tensor(count - 1),
            "labels": torch.arange(count),
            "mask": tv_tensors.Mask(torch.tensor([[*range(count), 255]], dtype=torch.uint8)),
            "ids": torch.arange(count),
        }
        return Sample(image, target, index, "one", (1, count + 1))

    def size(self, split: str, index: int) -> tuple[int, int]:
        return 1, len(self.info.classes) + 1

    def name(self, split: str, index: int) -> str:
        return "one"

    def labels(self, split: str) -> np.ndarray:
        return np.array([len(self.info.classes) - 1])

    def problems(self) -> list[str]:
        return []


@settings(deadline=None)
@given(st.data())
def test_every_value_keeps_its_name(data: st.DataObject) -> None:
    names = [f"class {number}" for number in range(data.draw(st.integers(1, 255)))]
    known = data.draw(st.permutations(names))
    own = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    source = renumbered(Named(own), known, "these")
    target = source.sample("train", 0).target
    assert known[int(target["label"])] == own[-1]
    assert [known[label] for label in target["labels"].tolist()] == own
    *pixels, ignored = target["mask"][0].tolist()
    assert [known[label] for label in pixels] == own
    assert ignored == 255
    assert isinstance(target["mask"], tv_tensors.Mask)
    assert target["mask"].dtype == torch.uint8
    assert target["ids"].tolist() == list(range(len(own)))
    assert source.labels("train") == known.index(own[-1])
    assert source.info.classes == known
    assert source.name("train", 0) == "one"
    assert source.size("train", 0) == (1, len(own) + 1)
    assert source.problems() == []


def test_classes_in_the_same_order_are_left_alone() -> None:
    source = Named(["a", "b"])
    assert renumbered(source, ["a", "b"], "these") is source


def test_unknown_names_are_listed() -> None:
    with pytest.raises(DataError, match=r"^photos has classes .* not know: cow, hen; it knows cat"):
        renumbered(Named(["cow", "cat", "hen"]), ["cat", "dog"], "photos")


def test_names_that_several_classes_have_are_not_guessed() -> None:
    with pytest.raises(DataError, match=r"several have one: crane$"):
        renumbered(Named(["crane", "cat"]), ["cat", "crane", "crane"], "photos")
    same = Named(["cat", "crane", "crane"])  # as of ImageNet
    assert renumbered(same, ["cat", "crane", "crane"], "photos") is same


def test_files_stay_files_and_report(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    folder = open_source(FolderConfig(path=str(make_folder({"cat": 3, "dog": 3}))))
    photos = renumbered(folder, ["dog", "hen", "cat"], "photos")
    assert isinstance(photos, FileSource)
    assert not isinstance(photos, ReportingSource)
    assert photos.path("train", 0) == folder.path("train", 0)
    assert photos.content("train", 0) == folder.content("train", 0)
    assert photos.noticed is folder.noticed
    write_noise(tmp_path / "noise", 2)
    objects: Any = open_source(CocoConfig(path=str(tmp_path / "noise")))
    turned = renumbered(objects, ["b", "a"], "objects")
    assert isinstance(turned, FileSource)
    assert isinstance(turned, ReportingSource)
    assert turned.report(depth="none") == objects.report(depth="none")
    assert json.dumps(turned.report().to_dict()) == json.dumps(objects.report().to_dict())
