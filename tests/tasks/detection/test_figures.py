"""Average precision equals that of pycocotools, COCO's own evaluator."""

import contextlib
import io
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from castling.data import open_source, source_config_class
from castling.data.detection.masks import decode_masks, encode_masks, pack_masks, unpack_rles
from castling.tasks.detection import DetectionPrediction
from castling.tasks.detection.coco_files import CocoIds, coco_results
from castling.tasks.detection.metrics import DetectionMetrics

CLASSES = ["cat", "dog", "bird", "fish"]
SIZE = (90, 120)
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
COCO_MINI = Path(os.environ.get("CASTLING_COCO_MINI", "none"))


def scene(seed, *, crowds=True, classes=(0, 1, 2)):
    """Objects of an image and detections near them and elsewhere, with masks."""
    rng = np.random.default_rng(seed)
    objects = 0 if seed % 5 == 0 else int(rng.integers(1, 9))
    boxes = random_boxes(rng, objects)
    labels = rng.choice(classes, objects)
    crowd = rng.random(objects) < 0.25 if crowds else np.zeros(objects, bool)
    whose = rng.integers(0, objects, 12) if objects else np.zeros(0, int)
    near = boxes[whose]
    moved = near + rng.normal(0, 1, near.shape)
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    moved = moved.clip(0, [SIZE[1], SIZE[0]] * 2)
    found = np.concatenate([moved, random_boxes(rng, 3)])
    # Equal scores, within an image and between images, are the hard case of sorting.
    scores = rng.integers(1, 20, len(found)) / 20
    guessed = np.concatenate([labels[whose], rng.choice(classes, 3)])
    guessed = np.where(rng.random(len(found)) < 0.1, rng.choice(classes, len(found)), guessed)
    order = np.argsort(-scores, kind="stable")
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "iscrowd": torch.tensor(crowd),
        "area": torch.tensor(areas(boxes) * rng.uniform(0.5, 1, objects), dtype=torch.float32),
        "segmentation": pack_masks(encode_masks(filled(boxes)), SIZE),
    }
    prediction = DetectionPrediction(
        name=str(seed),
        original_size=SIZE,
        boxes=tuple(map(tuple, torch.tensor(found[order], dtype=torch.float32).tolist())),
        scores=tuple(torch.tensor(scores[order], dtype=torch.float32).tolist()),
        labels=tuple(guessed[order].tolist()),
        classes=tuple(CLASSES[label] for label in guessed[order]),
        masks=tuple(map(plain, encode_masks(filled(found[order])))),
    )
    return prediction, target


def random_boxes(rng, count):
    corner = rng.uniform(0, 60, (count, 2)) * [1.5, 1]
    return np.concatenate([corner, corner + rng.uniform(2, 30, (count, 2))], axis=1)


def areas(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def filled(boxes):
    """Ellipses in the boxes: (n, H, W)."""
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = [
        ((xs - (a + c) / 2) / (c - a + 1e-9) * 2) ** 2
        + ((ys - (b + d) / 2) / (d - b + 1e-9) * 2) ** 2
        <= 1
        for a, b, c, d in boxes
    ]
    return torch.tensor(np.array(masks).reshape(-1, *SIZE))


def plain(rle):
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def by_pycocotools(scenes, kind):
    """(10, 101, K, 4) precision of pycocotools, and its statistics."""
    images, annotations, results = [], [], []
    for number, (prediction, target) in enumerate(scenes, 1):
        images.append({"id": number, "height": SIZE[0], "width": SIZE[1]})
        for row, (a, b, c, d) in enumerate(target["boxes"].double().tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(target["labels"][row]) + 7,
                    "bbox": [a, b, c - a, d - b],
                    "area": float(target["area"][row]),
                    "iscrowd": int(target["iscrowd"][row]),
                    "segmentation": plain(unpack_rles(target["segmentation"])[row]),
                }
            )
        for row, (a, b, c, d) in enumerate(prediction.boxes):
            results.append(
                {
                    "image_id": number,
                    "category_id": prediction.labels[row] + 7,
                    "score": prediction.scores[row],
                    **(
                        {"bbox": [a, b, c - a, d - b]}
                        if kind == "bbox"
                        else {"segmentation": prediction.masks[row]}
                    ),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 7 + i, "name": name} for i, name in enumerate(CLASSES)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.eval["precision"][..., -1], evaluation.stats[:6]


def measured(scenes, order=None):
    metric = DetectionMetrics(len(CLASSES))
    for index in order if order is not None else range(len(scenes)):
        prediction, target = scenes[index]
        metric.update([prediction], [target], [index])
    return metric


@pytest.mark.parametrize("crowds", [True, False])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_figures_are_those_of_pycocotools(kind, crowds):
    scenes = [scene(seed, crowds=crowds) for seed in range(25)]
    metric = measured(scenes)
    values = metric.compute()
    precision, stats = by_pycocotools(scenes, kind)
    prefix = "" if kind == "bbox" else "mask_"
    for name, expected in zip(NAMES, stats, strict=True):
        own = values.get(prefix + name)
        if expected == -1:
            assert own is None
        else:
            assert own == pytest.approx(100 * expected, abs=1e-9)
    assert 5 < values["AP"] < 95
    for label, row in enumerate(metric.class_figures()):
        known = precision[:, :, label, 0]
        expected = None if (known == -1).all() else pytest.approx(100 * known.mean(), abs=1e-9)
        assert row[f"{prefix}AP"] == expected
    assert metric.class_figures()[3][f"{prefix}AP"] is None  # no fish anywhere


def test_the_order_of_evaluation_does_not_matter():
    scenes = [scene(seed) for seed in range(12)]
    order = np.random.default_rng(0).permutation(len(scenes)).tolist()
    assert measured(scenes, order).compute() == measured(scenes).compute()


def test_images_of_a_class():
    scenes = [scene(seed, crowds=False) for seed in range(10)]
    rows = measured(scenes).class_figures()
    for label in range(len(CLASSES)):
        expected = sum(label in target["labels"].tolist() for _, target in scenes)
        assert rows[label]["images"] == expected


def _share(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    scenes = [scene(seed) for seed in range(11)]
    # The second process has images without any object or detection too.
    metric = measured(scenes, range(rank, len(scenes), 2))
    values = {"all": metric.compute(), "classes": metric.class_figures()}
    Path(folder, f"{rank}.json").write_text(json.dumps(values))
    torch.distributed.destroy_process_group()


def test_two_processes_find_what_one_does(tmp_path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_share, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    expected = measured([scene(seed) for seed in range(11)])
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {"all": expected.compute(), "classes": expected.class_figures()}


def empty(boxes=0):
    return {
        "boxes": torch.tensor([[1.0, 1, 9, 9]] * boxes).reshape(-1, 4),
        "labels": torch.zeros(boxes, dtype=torch.int64),
        "iscrowd": torch.ones(boxes, dtype=torch.bool),
        "area": torch.full((boxes,), 64.0),
    }


@pytest.mark.parametrize("crowds", [0, 2], ids=["no objects", "all crowds"])
@pytest.mark.parametrize("found", [0, 1])
def test_nothing_to_find(crowds, found):
    prediction = DetectionPrediction(
        name="a",
        original_size=SIZE,
        boxes=((1.0, 1.0, 8.0, 8.0),) * found,
        scores=(0.5,) * found,
        labels=(0,) * found,
        classes=("cat",) * found,
    )
    metric = DetectionMetrics(2)
    metric.update([prediction], [empty(crowds)], [0])
    assert metric.compute() == {"AP": 0.0, "AP50": 0.0}
    row = {"AP": None, "AP50": None, "AP75": None, "images": 0}
    assert metric.class_figures() == [row, row]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_images_there_are_no_figures():
    assert DetectionMetrics(2).compute() == {}


def test_three_thousand_objects():
    rng = np.random.default_rng(0)
    boxes = torch.tensor(random_boxes(rng, 3000), dtype=torch.float32)
    target = {
        "boxes": boxes,
        "labels": torch.zeros(3000, dtype=torch.int64),
        "iscrowd": torch.zeros(3000, dtype=torch.bool),
        "area": torch.tensor(areas(boxes.numpy())),
    }
    prediction = DetectionPrediction(
        name="a",
        original_size=SIZE,
        boxes=tuple(map(tuple, boxes[:100].tolist())),
        scores=(0.9,) * 100,
        labels=(0,) * 100,
        classes=("cat",) * 100,
    )
    metric = DetectionMetrics(1)
    metric.update([prediction], [target], [0])
    # A hundred of three thousand are right: precision 1 at recalls 0, 0.01, 0.02, 0.03 of 101.
    assert metric.compute()["AP"] == pytest.approx(100 * 4 / 101)


@pytest.mark.slow
@pytest.mark.skipif(not (COCO_MINI / "instances_val.json").is_file(), reason="no coco_mini")
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_real_annotations_give_the_figures_of_pycocotools(kind):
    """Moved objects of COCO, crowds among them, against the annotations in their own file."""
    source = open_source(source_config_class("coco")(path=str(COCO_MINI)))
    classes = source.info.classes
    metric = DetectionMetrics(len(classes))
    predictions = []
    for index in range(source.info.splits["val"]):
        sample = source.sample("val", index)
        rng = np.random.default_rng(index)
        predictions.append(moved(sample, rng, classes))
        metric.update([predictions[-1]], [sample.target], [index])
    ids = CocoIds.read(COCO_MINI / "instances_val.json", classes)
    results = coco_results(predictions, ids)
    for entry in results:
        del entry["segmentation" if kind == "bbox" else "bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(COCO_MINI / "instances_val.json"))
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    prefix = "" if kind == "bbox" else "mask_"
    found = metric.compute()
    for name, expected in zip(NAMES, evaluation.stats[:6], strict=True):
        assert found[prefix + name] == pytest.approx(100 * expected, abs=1e-9)
    assert 20 < found[f"{prefix}AP"] < 90


def moved(sample, rng, classes):
    """Detections near the objects, some with another class, with scores in random order."""
    target, (height, width) = sample.target, sample.original_size
    boxes = target["boxes"].numpy()
    shift = rng.integers(-3, 4, (len(boxes), 2))
    boxes = (boxes + np.tile(shift, 2)).clip(0, [width, height] * 2)
    masks = [
        np.roll(mask, (y, x), (0, 1))
        for mask, (x, y) in zip(decode_masks(target["segmentation"]).numpy(), shift, strict=True)
    ]
    labels = target["labels"].numpy().copy()
    other = rng.random(len(labels)) < 0.1
    labels[other] = rng.integers(0, len(classes), int(other.sum()))
    scores = rng.random(len(labels)).astype(np.float32)
    return DetectionPrediction(
        name=sample.name,
        original_size=(height, width),
        boxes=tuple(map(tuple, boxes.astype(np.float32).tolist())),
        scores=tuple(scores.tolist()),
        labels=tuple(labels.tolist()),
        classes=tuple(classes[label] for label in labels),
        masks=tuple(map(plain, encode_masks(torch.tensor(np.array(masks))))) if masks else (),
    )
