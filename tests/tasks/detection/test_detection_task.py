"""The task of detection: learning, coordinates, masks, drawing, rows of a run's report."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tasks.detection.toy_detector import Toy
from torch import nn

from castling.data import (
    Batch,
    DataConfig,
    DataModule,
    LoaderConfig,
    open_source,
    source_config_class,
)
from castling.data.registry import DataInfo
from castling.data.transforms.detection import DetectionTransformConfig
from castling.models.backbone import build_backbone
from castling.tasks import Step, build_task, list_tasks
from castling.tasks.detection import DetectionConfig, DetectionPrediction, targets_of
from castling.tasks.detection.coco_files import CocoIds, coco_results
from castling.tasks.evaluation import evaluate_loader

OPTIONS = DetectionTransformConfig(image_size=64, crop=0.0, photometric=0.0, multiple=8)
INFO = DataInfo(["cat", "dog"], {"train": 1}, kind="detection", has_masks=True)


def detector(classes, masks=False):
    backbone = build_backbone("resnet10t", {}, (8,))
    return Toy(backbone, classes, masks)


def digit_scenes(**options):
    chosen = source_config_class("digit_scenes")(**options)
    source = open_source(chosen)
    config = DataConfig(source=chosen, transform=OPTIONS, loader=LoaderConfig(batch_size=8))
    task = build_task(DetectionConfig(), source.info, OPTIONS)
    data = DataModule(source, config, task.transform(training=True), task.transform(training=False))
    return task, data


class Fixed(Toy):
    """Finds what it is told, whatever the image."""

    def __init__(self, found, classes=2):
        nn.Module.__init__(self)
        self.found, self.num_classes = found, classes

    def forward(self, images):
        return {"x": images.mean((1, 2, 3))}

    def decode(self, raw, size, valid=None):
        count = len(raw["x"])
        return {name: value.expand(count, *value.shape) for name, value in self.found.items()}


def batch_of(*originals, valid, padded):
    return Batch(
        images=torch.zeros((len(originals), 3, *padded), dtype=torch.uint8),
        valid=torch.tensor(valid),
        targets={},
        index=torch.arange(len(originals)),
        names=tuple(f"{i}.png" for i in range(len(originals))),
        original_sizes=originals,
    )


def test_boxes_come_back_in_pixels_of_the_original():
    task = build_task(DetectionConfig(), INFO, OPTIONS)
    found = {
        "boxes": torch.tensor([[10.0, 20, 30, 60], [-5, -5, 90, 90], [50, 2, 63, 8], [0, 0, 1, 1]]),
        "scores": torch.tensor([0.5, 0.9, 0.4, 0.0]),
        "labels": torch.tensor([1, 0, 1, 0]),
    }
    # The first is 100×80 shown as 50×40, the second 20×80 stretched to 40×64 without padding
    batch = batch_of((100, 80), (20, 80), valid=[[50, 40], [40, 64]], padded=(64, 64))
    first, second = task.predict(Fixed(found), batch)
    assert first.classes == ("cat", "dog")  # best first; what lies in the padding is dropped
    assert first.boxes == ((0, 0, 80, 100), (20, 40, 60, 100))
    assert second.boxes[:2] == ((0, 0, 80, 20), (12.5, 10, 37.5, 20))
    assert second.boxes[2] == pytest.approx((62.5, 1, 78.75, 4))
    assert second.scores == pytest.approx((0.9, 0.5, 0.4))
    assert first.original_size == (100, 80)


def test_masks_come_back_in_pixels_of_the_original():
    from pycocotools import mask as official

    found = {
        "boxes": torch.tensor([[10.0, 20, 30, 40]]),
        "scores": torch.tensor([0.5]),
        "labels": torch.tensor([1]),
        "masks": torch.ones((1, 28, 28)),
    }
    task = build_task(DetectionConfig(), INFO, OPTIONS)
    (one,) = task.predict(Fixed(found), batch_of((128, 64), valid=[[64, 64]], padded=(64, 64)))
    mask = official.decode(one.masks[0])
    assert mask.shape == (128, 64)
    rows, columns = np.nonzero(mask)
    assert (columns.min(), columns.max()) == pytest.approx((10, 30), abs=1)
    assert (rows.min(), rows.max()) == pytest.approx((40, 80), abs=1)
    assert int(mask.sum()) == pytest.approx(20 * 40, rel=0.1)


def test_a_model_of_other_classes_is_refused():
    task = build_task(DetectionConfig(), INFO, OPTIONS)
    with pytest.raises(ValueError, match="knows 3 classes, the data 2"):
        task.prepare_training(detector(3))
    with pytest.raises(ValueError, match="no detector"):
        task.prepare_training(nn.Identity())
    options = dataclasses.replace(OPTIONS, multiple=4)
    with pytest.raises(ValueError, match=r"data.transform.multiple is 4.*set it to 8"):
        build_task(DetectionConfig(), INFO, options).prepare_training(detector(2))
    bare = dataclasses.replace(INFO, has_masks=False)
    with pytest.raises(ValueError, match="has boxes alone"):
        build_task(DetectionConfig(), bare, OPTIONS).prepare_training(detector(2, masks=True))


@pytest.mark.parametrize("masks", [False, True])
def test_it_learns(masks):
    assert "detection" in list_tasks()
    task, data = digit_scenes(images=100, canvas=64)
    model = detector(len(data.classes), masks)
    task.prepare_training(model)
    loader = data.loader("train", training=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for step, batch in zip(range(12), loader, strict=False):
        parts = task.training_step(model, batch, Step(batch=step))
        torch.testing.assert_close(parts["loss"], parts["classes"] + parts["boxes"])
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        totals.append(parts["loss"].item())
    assert np.mean(totals[-3:]) < 0.9 * np.mean(totals[:3])
    assert ("masks" in batch.targets) == masks
    assert len(targets_of(batch)) == len(batch)
    result = evaluate_loader(task, model, data.loader("val"), "val")
    assert set(result.metrics) >= {"AP", "AP50", "AP75"} | ({"mask_AP"} if masks else set())
    assert set(result.per_class) == set(data.classes)


def prediction(**changes):
    values = {
        "name": "photos/a.png",
        "original_size": (60, 80),
        "boxes": ((5.0, 6.0, 25.0, 36.0), (30.0, 10.0, 70.0, 50.0), (31.0, 10.0, 70.0, 50.0)),
        "scores": (0.9, 0.5, 0.2),
        "labels": (1, 0, 0),
        "classes": ("dog", "cat", "cat"),
    }
    return DetectionPrediction(**{**values, **changes})


def test_rows_and_summary():
    one = prediction()
    assert one.summary() == "2 cat (best 50 %), 1 dog (best 90 %)"
    assert one.rows()[0] == {
        **{"name": "photos/a.png", "class": "dog", "score": 0.9},
        **{"x1": 5.0, "y1": 6.0, "x2": 25.0, "y2": 36.0},
    }
    assert len(one.shown(top=1, score=0.5)) == 2
    nothing = one.above(0.95)
    assert nothing.rows() == []
    assert nothing.summary() == "nothing found (lower scores: up to 90 %)"
    assert DetectionPrediction(name="a").above(0.5).summary() == "nothing found"
    broken = DetectionPrediction(name="b", error="no such file")
    assert broken.rows() == [{"name": "b", "error": "no such file"}]


def test_coco_results():
    counted = coco_results([prediction()], CocoIds.counted([prediction()], ["cat", "dog"]))
    assert [entry["category_id"] for entry in counted] == [2, 1, 1]
    assert counted[0]["image_id"] == 1
    assert counted[0]["bbox"] == [5.0, 6.0, 20.0, 30.0]


def test_coco_ids_of_a_file(tmp_path):
    file = tmp_path / "instances.json"
    file.write_text(
        '{"images": [{"id": 139, "file_name": "a.png"}, {"id": 4, "file_name": "x/b.png"}, '
        '{"id": 5, "file_name": "y/b.png"}], "categories": [{"id": 18, "name": "dog"}, '
        '{"id": 17, "name": "cat"}]}'
    )
    ids = CocoIds.read(file, ["cat", "dog"])
    (first, *_) = coco_results([prediction()], ids)
    assert (first["image_id"], first["category_id"]) == (139, 18)
    assert ids.image("somewhere/y/b.png") == 5
    with pytest.raises(ValueError, match=r"more than one image is called b.png"):
        ids.image("b.png")
    with pytest.raises(ValueError, match=r"no image is called c.png"):
        ids.image("c.png")
    with pytest.raises(ValueError, match="no category fish"):
        CocoIds.read(file, ["cat", "fish"])
    file.write_text("[1]")
    with pytest.raises(ValueError, match="no COCO file of annotations"):
        CocoIds.read(file, ["cat"])


def test_drawing():
    task = build_task(DetectionConfig(), INFO, OPTIONS)
    image = Image.new("RGB", (480, 360), (0, 0, 0))
    one = prediction(
        original_size=(360, 480),
        boxes=((100.0, 100.0, 300.0, 250.0), (-20.0, 300.0, 900.0, 500.0)),
        scores=(0.9, 0.8),
        labels=(0, 1),
        classes=("cat", "dog"),
    )
    drawn = np.asarray(task.draw(image, one))
    changed = drawn.any(axis=2)
    assert drawn.shape == (360, 480, 3)
    assert changed[100, 100:300].all()
    assert changed[100:250, 100].all()
    assert not changed[200:240, 150:290].any()  # inside
    assert changed[300, :].all()  # cut off at the border
    nothing = np.asarray(task.draw(image, one.above(1.0)))
    np.testing.assert_array_equal(nothing, np.asarray(image))
    truth = {"boxes": torch.tensor([[400.0, 10, 440, 50]])}
    with_truth = np.asarray(task.draw(image, one, truth))
    assert (with_truth[10, 400:440] == 255).all()
    assert not np.asarray(image).any()  # a copy


def test_drawn_masks_keep_to_their_pixels():
    from castling.tasks.detection.paste import encoded

    mask = encoded(np.ones((100, 40), bool), 120, 200, (360, 480))
    one = prediction(
        original_size=(360, 480),
        boxes=((200.0, 120.0, 240.0, 220.0),),
        scores=(0.9,),
        labels=(0,),
        classes=("cat",),
        masks=(mask,),
    )
    task = build_task(DetectionConfig(), INFO, OPTIONS)
    image = Image.new("RGB", (480, 360), (90, 90, 90))
    drawn = np.asarray(task.draw(image, one))
    assert (drawn[200:215, 205:235] != 90).any(axis=2).all()
    assert (drawn[:100] == 90).all()
    assert (drawn[:, 300:] == 90).all()


def test_small_images_are_enlarged_for_their_captions():
    task = build_task(DetectionConfig(), INFO, OPTIONS)
    image = Image.new("RGB", (80, 60))
    assert task.draw(image, prediction()).size == (480, 360)
