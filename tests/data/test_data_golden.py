"""Batches of the bundled digits are those of the first release, bit for bit.

The values were computed by that release's code, which normalised and erased in the workers.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import Tensor

from castling.data import Batch, DataModule, erase_batch, sample_keys

Open = Callable[..., DataModule]
SEED = 5

EXACT = [
    ({}, "7fe9bbf073a37100"),
    (
        {"crop": "resized", "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.3},
        "ff8ade1e08e6fd4b",
    ),
    ({"crop": "none", "auto_augment": "augmix-m3-w3"}, "0790f9af9b223fc3"),
    ({"auto_augment": "original"}, "c030c36c3251f88e"),
    ({"crop": "resized", "multi_scale": (16, 24, 32)}, "5b8a11bd720993bf"),
]

# Mean and standard deviation of every batch: filters and noise in floating point differ in their
# last digits between processors.
CLOSE = [
    (
        {"multi_scale": (16, 24, 32)},
        (0.0, "pixel"),
        [
            (-0.408204, 0.658263),
            (-0.411344, 0.679527),
            (-0.429931, 0.663346),
            (-0.426851, 0.647247),
            (-0.43727, 0.678095),
            (-0.42062, 0.681967),
            (-0.428694, 0.656116),
            (-0.429092, 0.669751),
        ],
    ),
    (
        {},
        (0.5, "pixel"),
        [
            (-0.387503, 0.7408),
            (-0.406656, 0.732551),
            (-0.410357, 0.718806),
            (-0.411054, 0.723364),
            (-0.412268, 0.713185),
            (-0.38052, 0.739633),
            (-0.402373, 0.739056),
            (-0.413281, 0.733157),
        ],
    ),
    (
        {},
        (0.9, "rand"),
        [
            (-0.382691, 0.726202),
            (-0.405295, 0.780134),
            (-0.44735, 0.745216),
            (-0.391708, 0.770376),
            (-0.405235, 0.748727),
            (-0.337959, 0.765175),
            (-0.370888, 0.780554),
            (-0.412037, 0.777417),
        ],
    ),
]


def _normalised(batch: Batch) -> Tensor:
    """(pixels/255 − 0.5)/0.5 in float32, as tasks compute it."""
    half = torch.full((3, 1, 1), 0.5)
    return batch.images.float() * (1 / (255 * half)) - half / half


def _training(data: DataModule) -> Iterator[tuple[int, Batch]]:
    """Four batches of epochs 0 and 3."""
    loader = data.loader("train", training=True)
    for epoch in (0, 3):
        loader.sampler.set_epoch(epoch)
        yield from ((epoch, batch) for batch in itertools.islice(loader, 4))


def _digest(batches: Iterable[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(_normalised(batch).numpy().tobytes())
        digest.update(batch.targets["label"].numpy().tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(("augment", "digest"), EXACT)
def test_training_batches_are_the_same_bytes(open_data: Open, augment: dict, digest: str) -> None:
    data = open_data("digits", seed=SEED, batch_size=32, **augment)
    assert _digest(batch for _, batch in _training(data)) == digest


def test_evaluation_batches_are_the_same_bytes(open_data: Open) -> None:
    data = open_data("digits", seed=SEED, batch_size=32)
    batches = itertools.chain(data.loader("val"), data.loader("test"))
    assert _digest(batches) == "29f39b179fd859ba"


@pytest.mark.parametrize(("augment", "erasing", "moments"), CLOSE)
def test_resolutions_and_erasing_are_the_same(
    open_data: Open, augment: dict, erasing: tuple[float, str], moments: list[tuple[float, float]]
) -> None:
    data = open_data("digits", seed=SEED, batch_size=32, **augment)
    for (epoch, batch), expected in zip(_training(data), moments, strict=True):
        keys = sample_keys(SEED, epoch, batch.index)
        images = erase_batch(_normalised(batch), keys, *erasing).double()
        assert (images.mean().item(), images.std().item()) == pytest.approx(expected, abs=2e-5)
