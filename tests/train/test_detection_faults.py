"""Images that break careless detectors: trained on, evaluated, drawn without a crash."""

import json

import numpy as np
import pytest
from PIL import Image

import castling_launcher
from castling.data import DataError
from castling.data.detection.masks import counts_to_rle
from castling.train import recipe_from_dict, train

CLASSES = ("cat", "dog", "nowhere")


def rectangle(left, top, width, height):
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


class Folder:
    """A COCO folder in the making."""

    def __init__(self, path):
        self.path, self.splits = path, {}

    def add(self, split, size, boxes, *, crowd=False):
        """An image of (height, width) with boxes x, y, w, h."""
        content = self.splits.setdefault(
            split,
            {
                "images": [],
                "annotations": [],
                "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
            },
        )
        number = len(content["images"])
        name = f"{split}{number}.jpg"
        generator = np.random.default_rng([number, len(split)])
        pixels = generator.integers(0, 256, (size[0] // 10, size[1] // 10, 3), dtype=np.uint8)
        folder = self.path / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize(size[::-1]).save(folder / name)
        content["images"].append(
            {"id": number, "file_name": name, "height": size[0], "width": size[1]}
        )
        for left, top, width, height in boxes:
            shape = rectangle(left, top, width, height)
            if crowd:
                total = size[0] * size[1]
                counts = counts_to_rle([0, total // 2, total - total // 2], size)["counts"]
                shape = {"size": list(size), "counts": counts.decode()}
                left, top, width, height = 0, 0, size[1] // 2, size[0]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1 + len(content["annotations"]) % 2,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": int(crowd),
                    "segmentation": shape,
                }
            )

    def write(self):
        for split, content in self.splits.items():
            (self.path / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = Folder(tmp_path_factory.mktemp("faults"))
    for split in ("train", "val"):
        generator = np.random.default_rng(0)
        places = generator.integers(0, 380, (3000, 2)).tolist()
        made.add(split, (400, 400), [(x, y, 12, 14) for x, y in places])
        made.add(split, (120, 90), [])
        made.add(split, (100, 100), [(50, 50, 1, 1), (10, 10, 40, 50)])
        made.add(split, (1200, 10_000), [(9000, 100, 700, 900), (5, 5, 3, 3)])
        made.add(split, (100, 140), [(0, 0, 70, 100)], crowd=True)
        made.add(split, (60, 200), [(20, 20, 30, 30)])
    made.write()
    return made.path


def recipe(folder, model, transform, epochs=1):
    return recipe_from_dict(
        {
            "task": "detection",
            "model": model,
            "data": {
                "source": {"name": "coco", "path": str(folder)},
                "transform": transform,
                "loader": {"batch_size": 3},
            },
            "epochs": epochs,
            "hardware": {"accelerator": "cpu"},
        }
    )


STRETCH = {"image_size": 64, "mosaic": 0.3, "zoom_out": 0.3}
KEEP = {"image_size": 64, "resize": "keep", "max_size": 256, "crop": 0.0}


@pytest.mark.parametrize(
    ("model", "transform"),
    [
        ({"name": "picodet_pico/esnet_pico", "head": {"score_threshold": 0.0}}, STRETCH),
        pytest.param(
            {"name": "mask_rcnn_pico/resnet10t"}, KEEP, marks=pytest.mark.slow, id="mask_rcnn"
        ),
        pytest.param(
            {"name": "retinanet_pico/esnet_pico"}, KEEP, marks=pytest.mark.slow, id="retinanet"
        ),
        pytest.param(
            {"name": "d_fine_pico/esnet_pico"}, STRETCH, marks=pytest.mark.slow, id="d_fine"
        ),
    ],
)
def test_hard_images(folder, tmp_path, capsys, model, transform):
    result = train(recipe(folder, model, transform), tmp_path / "run", progress=False)
    assert 0 <= result.metrics["val_AP"] <= 100
    if "mask" in model["name"]:
        assert 0 <= result.metrics["val_mask_AP"] <= 100
    arguments = ["evaluate", str(tmp_path / "run"), "--json"]
    assert castling_launcher.main(arguments) == 0
    classes = json.loads(capsys.readouterr().out)["per_class"]
    assert classes["nowhere"] is None
    assert classes["cat"] is not None
    drawn = tmp_path / "drawn"
    images = str(folder / "images" / "val")
    arguments = ["predict", str(tmp_path / "run"), images, "--output", str(drawn), "--score", "0"]
    assert castling_launcher.main(arguments) == 0
    assert len(list(drawn.glob("*.png"))) == 6


def test_nothing_to_learn_is_refused_before_anything_is_written(tmp_path):
    made = Folder(tmp_path / "data")
    for _ in range(2):
        made.add("train", (100, 100), [])
        made.add("train", (100, 140), [(0, 0, 70, 100)], crowd=True)
    made.add("val", (100, 100), [(10, 10, 40, 50)])
    made.write()
    model = {"name": "picodet_pico/esnet_pico"}
    with pytest.raises(DataError, match="split without a single object"):
        train(recipe(made.path, model, STRETCH), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_nothing_to_find(tmp_path):
    """Validation images that are all crowds or empty have no average precision."""
    made = Folder(tmp_path / "data")
    made.add("train", (100, 100), [(10, 10, 40, 50)] * 3)
    made.add("train", (100, 100), [(10, 10, 40, 50)])
    made.add("val", (100, 100), [])
    made.add("val", (100, 140), [(0, 0, 70, 100)], crowd=True)
    made.write()
    model = {"name": "picodet_pico/esnet_pico", "head": {"score_threshold": 0.0}}
    result = train(recipe(made.path, model, STRETCH), tmp_path / "run", progress=False)
    assert result.metrics["val_AP"] == 0
