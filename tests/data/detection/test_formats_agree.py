"""The same objects, written in three formats, are the same to train on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from castling.data import CocoConfig, SourceConfig, VocConfig, YoloConfig, check_source, open_source

WIDTH, HEIGHT = 64, 48
CLASSES = ["cat", "dog", "hen"]


@pytest.fixture
def written(tmp_path: Path, save_noise: Callable[..., None]) -> list[SourceConfig]:
    """Three images with 0, 1 and 20 objects; every class occurs."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    roots = {kind: tmp_path / kind for kind in ("coco", "voc", "yolo")}
    for folder in ("Annotations", "JPEGImages"):
        (roots["voc"] / folder).mkdir(parents=True)
    (roots["yolo"] / "labels").mkdir(parents=True)
    for index, count in enumerate((0, 1, 20)):
        for kind, folder in (("coco", ""), ("voc", "JPEGImages"), ("yolo", "images")):
            save_noise(roots[kind] / folder / f"{index}.png", (WIDTH, HEIGHT), index)
        images.append({"id": index, "file_name": f"{index}.png", "width": WIDTH, "height": HEIGHT})
        xml, lines = [], []
        for place in range(count):
            x, y = (int(random.integers(side - 4)) for side in (WIDTH, HEIGHT))
            w, h = int(random.integers(1, WIDTH - x + 1)), int(random.integers(1, HEIGHT - y + 1))
            label = place % 3
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": label,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                }
            )
            sides = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}  # pixels from 1
            box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
            xml.append(f"<object><name>{CLASSES[label]}</name><bndbox>{box}</bndbox></object>")
            centre = (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT
            lines.append(f"{label} {centre[0]} {centre[1]} {w / WIDTH} {h / HEIGHT}")
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        (roots["voc"] / "Annotations" / f"{index}.xml").write_text(
            f"<annotation>{size}{''.join(xml)}</annotation>"
        )
        (roots["yolo"] / "labels" / f"{index}.txt").write_text("\n".join(lines))
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (roots["coco"] / "instances_train.json").write_text(json.dumps(content))
    (roots["yolo"] / "classes.txt").write_text("\n".join(CLASSES))
    configs = (CocoConfig, VocConfig, YoloConfig)
    return [make(path=str(root)) for make, root in zip(configs, roots.values(), strict=True)]


def test_targets_are_equal(written: list[SourceConfig]) -> None:
    for config in written:
        assert check_source(config).problems == ()
    sources = [open_source(config) for config in written]
    assert all(source.info == sources[0].info for source in sources)
    for index in range(3):
        first, *others = (source.sample("train", index) for source in sources)
        for other in others:
            assert torch.equal(other.image, first.image)
            assert other.target.keys() == first.target.keys()
            for name, value in first.target.items():
                torch.testing.assert_close(
                    other.target[name].as_subclass(torch.Tensor),
                    value.as_subclass(torch.Tensor),
                    rtol=1e-5,
                    atol=1e-4,
                )
