from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from castling.data import AugmentConfig, DataConfig, DataError, EpochBatches, loaders, open_images

Make = Callable[..., Path]
HEAVY = AugmentConfig(
    crop="resized",
    auto_augment="rand-m9-mstd0.5-inc1",
    erase_probability=0.3,
    multi_scale=(8, 12, 16),
)
CONTENT = {"train": {"a": 20, "b": 20}, "val": {"a": 5, "b": 6}}


def _epochs(config: DataConfig, epochs: range) -> list[list[tuple[Tensor, Tensor]]]:
    train = loaders(config, open_images(config)).train
    found = []
    for epoch in epochs:
        train.sampler.set_epoch(epoch)
        found.append(list(train))
    return found


def _same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a, b) and torch.equal(x, y)
        for (a, x), (b, y) in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("augment", [AugmentConfig(), HEAVY])
@pytest.mark.parametrize("packed", [False, True])
def test_batches_repeat_survive_resume_and_ignore_workers_and_cache(
    make_folder: Make, zip_folder: Make, augment: AugmentConfig, packed: bool
) -> None:
    source = make_folder(CONTENT)
    source = zip_folder(source) if packed else source
    config = DataConfig(source=str(source), image_size=16, batch_size=8, augment=augment)
    through = _epochs(config, range(3))
    torch.manual_seed(99)
    resumed = _epochs(config, range(2, 3))
    assert _same(through[2], resumed[0])
    assert not _same(through[1], through[2])
    assert _same(through[2], _epochs(replace(config, cache="none"), range(2, 3))[0])
    workers = _epochs(replace(config, workers=2, cache="none"), range(1, 3))
    assert _same(through[1], workers[0])
    assert _same(through[2], workers[1])
    assert not _same(through[0], _epochs(replace(config, seed=1), range(1))[0])


def test_loading_leaves_the_global_generator_alone(make_folder: Make) -> None:
    config = DataConfig(source=str(make_folder(CONTENT)), image_size=16, augment=HEAVY)
    data = open_images(config)
    before = torch.get_rng_state()
    for loader in loaders(config, data):
        list(loader)
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_sees_every_image_once() -> None:
    batches = EpochBatches(40, 8, train=True)
    first = [index for key in batches for index in key.indices]
    assert sorted(first) == list(range(40))
    batches.set_epoch(1)
    second = [index for key in batches for index in key.indices]
    assert sorted(second) == list(range(40))
    assert first != second


def test_incomplete_training_batches_are_left_out_but_small_sets_train() -> None:
    assert [len(key.indices) for key in EpochBatches(21, 8, train=True)] == [8, 8]
    small = list(EpochBatches(5, 8, train=True))
    assert [sorted(key.indices) for key in small] == [[0, 1, 2, 3, 4]]


def test_processes_together_see_the_batches_of_one() -> None:
    whole = list(EpochBatches(50, 12, train=True, sides=(8, 16)))
    parts = [
        list(EpochBatches(50, 4, train=True, rank=r, world_size=3, sides=(8, 16))) for r in range(3)
    ]
    assert len(whole) == 4
    for batch, key in enumerate(whole):
        joined = sum((part[batch].indices for part in parts), ())
        assert joined == key.indices
        assert {part[batch].size for part in parts} == {key.size}


@pytest.mark.parametrize(("length", "batch"), [(50, 4), (7, 4), (13, 4), (3, 64), (24, 4)])
def test_evaluation_sees_every_image_once_over_all_processes(length: int, batch: int) -> None:
    parts = [EpochBatches(length, batch, train=False, rank=r, world_size=3) for r in range(3)]
    seen = [index for part in parts for key in part for index in key.indices]
    assert sorted(seen) == list(range(length))
    assert all(len(list(part)) == len(part) >= 1 for part in parts)
    assert all(0 < len(key.indices) <= batch for part in parts for key in part)


def test_a_small_training_set_feeds_all_processes_evenly() -> None:
    parts = [list(EpochBatches(5, 8, train=True, rank=r, world_size=2)) for r in range(2)]
    assert [len(part[0].indices) for part in parts] == [3, 3]
    assert {i for part in parts for key in part for i in key.indices} == set(range(5))


def test_wrong_rank_and_too_few_images() -> None:
    with pytest.raises(ValueError, match="rank is 2"):
        EpochBatches(10, 2, train=True, rank=2, world_size=2)
    with pytest.raises(ValueError, match="cannot feed"):
        EpochBatches(1, 2, train=True, rank=0, world_size=2)


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_multi_scale_batches_have_the_drawn_sizes(make_folder: Make, crop: str) -> None:
    augment = AugmentConfig(crop=crop, multi_scale=(8, 16, 24))
    config = DataConfig(
        source=str(make_folder(CONTENT)), image_size=16, batch_size=2, augment=augment
    )
    found = loaders(config, open_images(config))
    keys = list(found.train.sampler)
    shapes = [tuple(images.shape[2:]) for images, _ in found.train]
    assert shapes == [key.size for key in keys]
    assert set(shapes) == {(8, 8), (16, 16), (24, 24)}
    assert {tuple(images.shape[2:]) for images, _ in found.val} == {(16, 16)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_while_training(make_folder: Make, workers: int) -> None:
    folder = make_folder(CONTENT)
    stream = io.BytesIO()
    Image.effect_noise((40, 40), 90).save(stream, "PNG")
    (folder / "train" / "b" / "7.png").write_bytes(stream.getvalue()[:600])
    config = DataConfig(source=str(folder), image_size=16, cache="none", workers=workers)
    train = loaders(config, open_images(config)).train
    with pytest.raises(DataError, match=r"train/b/7\.png"):
        list(train)


def test_the_cache_reads_files_once_and_respects_its_limit(make_folder: Make) -> None:
    folder = make_folder(CONTENT)
    config = DataConfig(source=str(folder), image_size=16)
    kept = open_images(config)
    loose = open_images(replace(config, cache_limit_megabytes=0))
    for file in folder.rglob("*.png"):
        file.unlink()
    assert sum(len(labels) for _, labels in loaders(config, kept).val) == 11
    with pytest.raises(DataError, match="cannot be opened"):
        loose.val[0]


def test_a_zip_set_survives_the_way_to_another_process(make_folder: Make, zip_folder: Make) -> None:
    source = zip_folder(make_folder(CONTENT))
    data = open_images(DataConfig(source=str(source), image_size=16, cache="none"))
    image, label = data.train[5]
    copy = pickle.loads(pickle.dumps(data.train))
    assert torch.equal(copy[5][0], image)
    assert copy[5][1] == label
