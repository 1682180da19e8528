"""Whatever annotation files hold: a report comes back, and what is left can be trained on."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from castling.data import (
    CocoConfig,
    SourceConfig,
    VocConfig,
    YoloConfig,
    check_source,
    open_source,
)
from castling.data.detection.masks import unpack_rles

JUNK = st.one_of(
    st.sampled_from([None, True, "", "7", [], {}, [[]], -1, 0, 10**30, 1e308, math.nan, -math.inf]),
    st.integers(-100, 100),
    st.floats(-100, 100),
    st.text(max_size=5),
    st.lists(st.floats(), max_size=8),
    st.lists(st.lists(st.floats(-50, 100), max_size=8), max_size=3),
    st.fixed_dictionaries(
        {"size": st.sampled_from([[48, 64], [64, 48], 3, []]), "counts": st.text(max_size=6)}
    ),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
FAST = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check_what_is_left(config: SourceConfig) -> None:
    """A report comes back; without errors every target is sound, with masks of its own objects."""
    report = check_source(config)
    assert str(report)
    json.dumps(report.to_dict())
    if report.errors:
        return
    source = open_source(config)
    for split, count in source.info.splits.items():
        for index in range(count):
            sample = source.sample(split, index)
            boxes = sample.target["boxes"].as_subclass(torch.Tensor)
            objects = len(boxes)
            assert torch.isfinite(boxes).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            height, width = sample.original_size
            assert (boxes >= -1).all()
            assert (boxes <= torch.tensor([width, height] * 2) + 1).all()
            labels = sample.target["labels"]
            assert ((labels >= 0) & (labels < len(source.info.classes))).all()
            assert (sample.target["area"] > 0).all() or objects == 0 or source.info.has_masks
            assert torch.isfinite(sample.target["area"]).all()
            for name in ("labels", "iscrowd", "area", "ids"):
                assert sample.target[name].shape == (objects,)
            if source.info.has_masks:
                assert len(unpack_rles(sample.target["segmentation"])) == objects
    ids = [
        i
        for k in range(source.info.splits["train"])
        for i in source.sample("train", k).target["ids"]
    ]
    assert len(set(map(int, ids))) == len(ids)


@given(data=st.data())
@FAST
def test_coco(coco_folder: Callable[..., Any], data: st.DataObject) -> None:
    folder = coco_folder(images=2)
    root = folder.write()
    values = copy.deepcopy(folder.train)
    for _ in range(data.draw(st.integers(1, 2))):
        section = data.draw(st.sampled_from(["images", "annotations", "annotations", "categories"]))
        entries = values[section]
        if data.draw(st.integers(0, 9)) == 0:
            values[section] = data.draw(JUNK)
        elif isinstance(entries, list) and entries:
            place = data.draw(st.integers(0, len(entries) - 1))
            entry = entries[place]
            if isinstance(entry, dict) and entry and data.draw(st.integers(0, 9)):
                field = data.draw(st.sampled_from(sorted(entry)))
                if data.draw(st.booleans()):
                    entry[field] = data.draw(JUNK)
                else:
                    del entry[field]
            else:
                entries[place] = data.draw(JUNK)
    (root / "instances_train.json").write_text(json.dumps(values))
    check_what_is_left(CocoConfig(path=str(root), leave_out=data.draw(st.sampled_from([0, 1]))))


@pytest.fixture
def images(tmp_path: Path, save_noise: Callable[..., None]) -> Path:
    for index in range(2):
        save_noise(tmp_path / "images" / "train" / f"{index}.png", (64, 48), index)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    return tmp_path


NUMBER = st.one_of(
    st.floats(-0.5, 1.5).map(str),
    st.integers(-2, 5).map(str),
    st.sampled_from(["nan", "inf", "x", ""]),
)


@given(
    lines=st.lists(st.lists(NUMBER, max_size=11).map(" ".join), max_size=4),
    raw=st.binary(max_size=20),
    leave_out=st.sampled_from([0, 1]),
)
@FAST
def test_yolo(images: Path, lines: list[str], raw: bytes, leave_out: float) -> None:
    (images / "labels" / "train" / "0.txt").write_text("\n".join([*lines, "0 .5 .5 .5 .5"]))
    (images / "labels" / "train" / "1.txt").write_bytes(raw)
    (images / "data.yaml").write_text("names: [a, b]\ntrain: images/train\n")
    check_what_is_left(YoloConfig(path=str(images), leave_out=leave_out))


TAGS = ["none", "none", "none", "annotation", "object", "name", "bndbox", "xmin", "size", "width"]


@given(
    values=st.lists(
        st.one_of(st.integers(1, 80).map(str), st.sampled_from(["", "x", "1e400", "-3", "7.5"])),
        min_size=6,
        max_size=6,
    ),
    lost=st.sampled_from(TAGS),
    raw=st.one_of(st.just(b"/>"), st.binary(max_size=30)),
    leave_out=st.sampled_from([0, 1]),
)
@FAST
def test_voc(images: Path, values: list[str], lost: str, raw: bytes, leave_out: float) -> None:
    width, height, *box = values
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    text = (
        f"<annotation><size><width>{width}</width><height>{height}</height></size><object>"
        "<name>cat</name><bndbox>" + "".join(f"<{side}>{each}</{side}>" for side, each in sides)
    )
    sound = "<object><name>cat</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax>"
    sound += "<ymax>9</ymax></bndbox></object>"
    text += f"</bndbox></object>{sound}</annotation>"
    text = text.replace(f"<{lost}>", "<other>", 1).replace(f"</{lost}>", "</other>", 1)
    (images / "images" / "train" / "0.xml").write_text(text)
    (images / "images" / "train" / "1.xml").write_bytes(b"<annotation" + raw)
    check_what_is_left(VocConfig(path=str(images), leave_out=leave_out))
