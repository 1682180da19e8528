"""The balanced sampler: every class equally often, a function of (seed, epoch) alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from castling.data import DataConfig, DataModule, LoaderConfig, open_source
from castling.data.sampler import EpochBatches
from castling.data.sources import FolderConfig
from castling.data.transforms.classification import (
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    ClassificationTransformConfig,
)

LABELS = np.repeat([0, 1, 2], [2, 30, 68])


def epoch_of(epoch, *, start=0, **options):
    sampler = EpochBatches(len(LABELS), 10, train=True, seed=5, labels=LABELS, **options)
    sampler.seek(epoch, start)
    return [key.indices for key in sampler]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_class_is_drawn_equally_often(epoch):
    drawn = np.concatenate(epoch_of(epoch))
    assert len(drawn) == 100
    assert sorted(np.bincount(LABELS[drawn])) == [33, 33, 34]
    for label in range(3):
        times = np.bincount(drawn, minlength=100)[label == LABELS]
        assert times.max() - times.min() <= 1  # images of a class take turns


def test_epochs_differ_and_repeat_themselves():
    first, again, second = (np.concatenate(epoch_of(e)).tolist() for e in (0, 0, 1))
    assert first == again
    assert first != second
    # The large class shows other images in other epochs.
    shown = [set(np.concatenate(epoch_of(e))) for e in range(8)]
    assert len(set.union(*shown)) > len(shown[0]) + 20


def test_a_resumed_epoch_and_two_processes_see_the_same_batches():
    whole = epoch_of(3)
    assert epoch_of(3, start=4) == whole[4:]
    # Two processes with 5 images each are one with 10.
    halves = [
        [
            key.indices
            for key in _seeked(
                EpochBatches(100, 5, train=True, seed=5, labels=LABELS, rank=rank, world_size=2), 3
            )
        ]
        for rank in range(2)
    ]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def _seeked(sampler, epoch):
    sampler.seek(epoch)
    return sampler


def test_a_class_without_images_does_not_matter():
    labels = np.array([0, 0, 0, 4])
    drawn = np.concatenate([key.indices for key in EpochBatches(4, 4, train=True, labels=labels)])
    assert sorted(labels[drawn]) == [0, 0, 4, 4]


@pytest.mark.parametrize(("sampler", "counts"), [("balanced", [20, 20]), ("shuffle", [4, 36])])
def test_the_loader_follows_the_option(tmp_path, sampler, counts):
    for split, label, count in (("train", "a", 4), ("train", "b", 36), ("val", "a", 1)):
        folder = tmp_path / split / label
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    (tmp_path / "val" / "b").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "b" / "0.png")
    config = DataConfig(
        source=FolderConfig(path=str(tmp_path)), loader=LoaderConfig(batch_size=8, sampler=sampler)
    )
    source = open_source(config.source)
    options = ClassificationTransformConfig(image_size=8)
    data = DataModule(
        source,
        config,
        ClassificationTrainTransform(options, source.info),
        ClassificationEvalTransform(options),
    )
    drawn = torch.cat([batch.targets["label"] for batch in data.loader("train", training=True)])
    assert torch.bincount(drawn).tolist() == counts
    validated = torch.cat([batch.targets["label"] for batch in data.loader("val")])
    assert torch.bincount(validated).tolist() == [1, 1]
