"""Pre-training as a task: masks fixed by the image, targets ignored, pictures, records."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import tv_tensors

import castling
from castling.data.registry import DataInfo
from castling.data.sample import Sample, stack_samples
from castling.data.transforms.pretraining import PretrainingTransform, PretrainingTransformConfig
from castling.heads.pretrainer import Pretrainer
from castling.tasks import PretrainingConfig, Step, build_task
from castling.tasks.pretraining.report import choose_examples, report_parts
from castling.tasks.pretraining.task import keys_of

INFO = DataInfo(["a", "b"], {"train": 4}, kind="detection")
SMALL = {"width": 32, "depth": 1, "attention_heads": 2}


def task_of(info=INFO, **options):
    return build_task(
        PretrainingConfig(), info, PretrainingTransformConfig(image_size=32, **options)
    )


def batch_of(count=3, side=32):
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(count):
        image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
        samples.append(Sample(tv_tensors.Image(image), {}, index, f"{index}.jpg", (side, side)))
    return stack_samples(samples)


class Remembers(Pretrainer):
    """Notes the keys it is given."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.seen = []

    def image_losses(self, images, keys):
        self.seen.append(keys.tolist())
        return images.mean((1, 2, 3))

    def pictures(self, images, keys):
        return {"masked": images}


def test_masks_of_evaluation_follow_from_the_pixels():
    """Not from position, batch or name; another pixel is another mask."""
    task, model, batch = task_of(), Remembers(), batch_of()
    metric = task.metrics()
    task.evaluation_step(model, batch, metric)
    task.evaluation_step(model, batch.select([2, 0]), metric)
    first, second = model.seen
    assert [first[2], first[0]] == second
    assert len(set(first)) == 3
    changed = batch.images.clone()
    changed[1, 2, 31, 31] ^= 1
    assert (keys_of(changed) != keys_of(batch.images)).tolist() == [False, True, False]
    images = task.preprocess(batch.images)
    losses = images.mean((1, 2, 3))
    expected = (losses.sum() + losses[2] + losses[0]) / 5
    assert metric.compute()["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_masks_of_training_follow_from_seed_epoch_and_image():
    task, model, batch = task_of(), Remembers(), batch_of()
    for step in (Step(0, 1), Step(0, 1, batch=9, rank=3), Step(0, 2), Step(1, 1)):
        task.training_step(model, batch, step)
    same, again, epoch, seed = model.seen
    assert same == again
    assert not {*same} & ({*epoch} | {*seed})


def test_targets_are_dropped_before_anything_is_done_with_them():
    transform = PretrainingTransform(PretrainingTransformConfig(image_size=16), INFO)
    image = tv_tensors.Image(torch.zeros(3, 40, 30, dtype=torch.uint8))
    sample = Sample(image, {"boxes": torch.zeros(1, 4)}, 0, "a", (40, 30))
    found = transform.augment(transform.resize(sample), None)
    assert found.target == {}
    assert found.image.shape == (3, 16, 16)
    assert transform.random
    assert transform.fixed_size is None


@pytest.mark.parametrize("kind", ["classification", "detection", "segmentation", "unlabelled"])
def test_every_kind_of_data_is_taken_and_classes_are_forgotten(kind):
    task = task_of(dataclasses.replace(INFO, kind=kind))
    assert task.info.classes == []
    assert task.model_arguments() == {}


def test_a_prediction_shows_image_mask_and_reconstruction():
    task = task_of()
    model = castling.create_model("mae/deit_pico", head=SMALL).eval()
    batch = batch_of(2)
    with torch.no_grad():
        found = task.predict(model, batch)
        alone = task.predict(model, batch.select([1]))[0]
    assert alone.loss == pytest.approx(found[1].loss, rel=1e-5)
    assert [name for name, _ in found[0].pictures] == ["image", "masked", "reconstruction"]
    shown = np.array(Image.open(io.BytesIO(found[0].pictures[0][1])), dtype=float)
    truth = batch.images[0].permute(1, 2, 0).numpy().astype(float)
    assert np.corrcoef(shown.ravel(), truth.ravel())[0, 1] > 0.6  # JPEG of noise
    drawn = task.draw(Image.new("RGB", (5, 5)), found[0])
    assert drawn.size == (3 * 96 + 2 * 4, 96 + 18)
    assert json.loads(json.dumps(found[0].to_dict())) == {
        **{"name": "0.jpg", "original_size": [32, 32], "error": ""},
        "loss": found[0].loss,
    }
    assert found[0].rows() == [{"name": "0.jpg", "loss": round(found[0].loss, 6), "error": ""}]
    raw = task.outputs(model, task.preprocess(batch.images))
    assert raw["features"].shape == (2, 64, 8, 8)
    assert task.decode(raw, batch)[0].summary() == ""


def test_examples_from_the_lowest_to_the_highest_loss():
    rows = [{"loss": str(value), "name": "n", "example": ""} for value in range(100)][::-1]
    chosen = [float(rows[index]["loss"]) for index in choose_examples(rows)]
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1], len(chosen)) == (0.0, 99.0, 12)
    assert len(choose_examples(rows[:2])) == 2
    for index in choose_examples(rows):
        rows[index]["example"] = "x.jpg"
    table, examples = report_parts(rows)
    assert table.rows[2] == ("median", "49.5000")
    assert len(examples.examples) == 12
    assert report_parts([]) == []
