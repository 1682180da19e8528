from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from castling.data import BatchKey, DataError, DataModule

Open = Callable[..., DataModule]
SPLITS = ("train", "val", "test")


def test_splits_are_disjoint_complete_and_stratified(open_data: Open) -> None:
    data = open_data("digits")
    parts = [data.dataset(split) for split in SPLITS]
    positions = [set(part.selection.positions.tolist()) for part in parts]
    assert len(set.union(*positions)) == sum(map(len, positions)) == 1797
    for part in parts:
        counts = np.bincount(part.selection.labels)
        assert counts.max() - counts.min() <= 8
    pixels = [
        {part.selection.sample(i).image.numpy().tobytes() for i in range(len(part))}
        for part in parts
    ]
    assert not pixels[0] & pixels[1]
    assert not pixels[0] & pixels[2]
    assert not pixels[1] & pixels[2]


def test_images_and_labels_are_those_of_scikit_learn(open_data: Open) -> None:
    test = open_data("digits", image_size=8).dataset("test")
    bunch = load_digits()
    place = int(test.selection.positions[17])
    sample = test[17]
    assert sample.target["label"] == bunch.target[place]
    assert (sample.index, sample.name) == (17, f"digit {place}")
    assert sample.original_size == (8, 8)
    expected = torch.from_numpy(np.rint(bunch.images[place] * 255 / 16)).to(torch.uint8)
    assert torch.equal(sample.image, expected.expand(3, 8, 8))


def test_digits_are_never_mirrored(open_data: Open) -> None:
    train = open_data("digits", image_size=16, crop="none").dataset("train", training=True)
    batch = train[BatchKey(tuple(range(64)))]
    assert all(torch.equal(batch.images[i], train[i].image) for i in range(64))
    with pytest.raises(DataError, match="horizontal_flip"):
        open_data("digits", horizontal_flip=0.5)


def test_opening_is_deterministic_and_splits_ignore_the_run_seed(open_data: Open) -> None:
    first, second = (open_data("digits", seed=seed, subset=100) for seed in (0, 1))
    for split in SPLITS:
        ours, theirs = first.dataset(split).selection, second.dataset(split).selection
        assert np.array_equal(ours.positions, theirs.positions)
        assert np.array_equal(ours.labels, theirs.labels)


def test_a_subset_is_taken_from_what_was_not_held_out(open_data: Open) -> None:
    whole, part = open_data("digits"), open_data("digits", subset=500, val_subset=100)
    for split, count in (("train", 500), ("val", 100), ("test", 359)):
        chosen = part.dataset(split).selection.positions.tolist()
        assert len(chosen) == count == part.sizes[split]
        assert set(chosen) <= set(whole.dataset(split).selection.positions.tolist())
