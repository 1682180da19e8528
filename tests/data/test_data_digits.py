from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from castling.data import AugmentConfig, DataConfig, DataError, open_images


def test_splits_are_disjoint_complete_and_stratified() -> None:
    data = open_images(DataConfig())
    parts = [data.train, data.val, data.test]
    positions = [set(part.selection.positions.tolist()) for part in parts]
    assert len(set.union(*positions)) == sum(map(len, positions)) == 1797
    for part in parts:
        counts = torch.bincount(part.labels)
        assert counts.max() - counts.min() <= 8
    pixels = [{part.selection.read(i).tobytes() for i in range(len(part))} for part in parts]
    assert not pixels[0] & pixels[1]
    assert not pixels[0] & pixels[2]
    assert not pixels[1] & pixels[2]


def test_images_and_labels_are_those_of_scikit_learn() -> None:
    data = open_images(DataConfig(image_size=8))
    bunch = load_digits()
    place = int(data.test.selection.positions[17])
    image, label = data.test[17]
    assert label == bunch.target[place]
    expected = torch.from_numpy(np.rint(bunch.images[place] * 255 / 16)).float() / 255
    assert torch.allclose(image, ((expected - 0.5) / 0.5).expand(3, 8, 8), atol=1e-6)


def test_digits_are_never_mirrored() -> None:
    augment = AugmentConfig(crop="none")
    data = open_images(DataConfig(image_size=16, augment=augment))
    assert torch.equal(
        data.train.transform.finish(data.train.pixels(0)[None], np.zeros(1, np.uint64), None)[0],
        data.train[0][0],
    )
    with pytest.raises(DataError, match="horizontal_flip"):
        open_images(DataConfig(augment=AugmentConfig(horizontal_flip=0.5)))


def test_opening_is_deterministic_and_splits_ignore_the_run_seed() -> None:
    first, second = (open_images(DataConfig(seed=seed, subset=100)) for seed in (0, 1))
    assert torch.equal(first.train.labels, second.train.labels)
    assert np.array_equal(first.train.selection.positions, second.train.selection.positions)
    assert np.array_equal(first.test.selection.positions, second.test.selection.positions)
