from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.data.pictures import picture

from castling.data import Batch, DataError, DataModule, EpochBatches, plain_data_errors

Make = Callable[..., Path]
Open = Callable[..., DataModule]
HEAVY = {
    "crop": "resized",
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.2,
    "multi_scale": (8, 12, 16),
}
CONTENT = {"train": {"a": 20, "b": 20}, "val": {"a": 5, "b": 6}}
SMALL = {"image_size": 16, "batch_size": 8}


def _epochs(data: DataModule, epochs: range) -> list[list[Batch]]:
    train = data.loader("train", training=True)
    found = []
    for epoch in epochs:
        train.sampler.set_epoch(epoch)
        found.append(list(train))
    return found


def _same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.valid, b.valid)
        and torch.equal(a.targets["label"], b.targets["label"])
        and torch.equal(a.index, b.index)
        and a.names == b.names
        and a.original_sizes == b.original_sizes
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("augment", [{}, {"multi_scale": (8, 16)}, HEAVY])
@pytest.mark.parametrize("packed", [False, True])
def test_batches_repeat_and_ignore_workers_and_cache(
    make_folder: Make, zip_folder: Make, open_data: Open, augment: dict, packed: bool
) -> None:
    source = make_folder(CONTENT)
    options = {"source": zip_folder(source) if packed else source, **SMALL, **augment}
    through = _epochs(open_data(**options), range(3))
    torch.manual_seed(99)
    assert _same(through[2], _epochs(open_data(**options), range(2, 3))[0])
    assert not _same(through[1], through[2])
    assert _same(through[2], _epochs(open_data(**options, cache="none"), range(2, 3))[0])
    for workers in ({"workers": 2, "cache": "none"}, {"workers": 1}):
        found = _epochs(open_data(**options, **workers), range(1, 3))
        assert _same(through[1], found[0])
        assert _same(through[2], found[1])
    assert not _same(through[0], _epochs(open_data(**options, seed=1), range(1))[0])


def test_a_loader_starts_in_the_middle_of_an_epoch(make_folder: Make, open_data: Open) -> None:
    data = open_data(make_folder(CONTENT), **SMALL, **HEAVY)
    through = _epochs(data, range(3))
    resumed = data.loader("train", training=True, start=(1, 3))
    resumed.sampler.set_epoch(1)  # as Lightning does before the resumed epoch
    assert len(resumed) == data.batches_per_epoch() == 5
    assert _same(list(resumed), through[1][3:])
    resumed.sampler.set_epoch(2)
    assert _same(list(resumed), through[2])
    assert resumed.state_dict() == {}


def test_batches_describe_their_samples(make_folder: Make, open_data: Open) -> None:
    data = open_data(make_folder(CONTENT), **SMALL)
    images = data.dataset("train", training=True)
    for batch in data.loader("train", training=True):
        assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (8, 3, 16, 16))
        assert batch.images.is_contiguous()
        assert batch.valid.tolist() == [[16, 16]] * 8
        assert batch.original_sizes == ((10, 12),) * 8
        for row, index in enumerate(batch.index.tolist()):
            sample = images.selection.sample(index)
            assert batch.names[row] == sample.name == images.name(index)
            assert batch.targets["label"][row] == sample.target["label"]


def test_training_images_can_be_evaluated_in_order(make_folder: Make, open_data: Open) -> None:
    data = open_data(make_folder(CONTENT), **SMALL, **HEAVY, eval_batch_size=7)
    batches = list(data.loader("train"))
    assert [len(batch) for batch in batches] == [7] * 5 + [5]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(40))
    assert all(tuple(batch.images.shape[2:]) == (16, 16) for batch in batches)
    plain = data.dataset("train")
    whole = torch.cat([batch.images for batch in batches])
    assert all(torch.equal(whole[i], plain[i].image) for i in range(40))
    with pytest.raises(ValueError, match="only the train split"):
        data.loader("val", training=True)
    with pytest.raises(ValueError, match="'valid'"):
        data.loader("valid")


def test_loading_leaves_the_global_generators_alone(make_folder: Make, open_data: Open) -> None:
    data = open_data(make_folder(CONTENT), **SMALL, **HEAVY)
    before = torch.get_rng_state()
    for split in ("train", "val", "test"):
        list(data.loader(split, training=split == "train"))
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_sees_every_image_once() -> None:
    batches = EpochBatches(40, 8, train=True)
    first = [index for key in batches for index in key.indices]
    assert sorted(first) == list(range(40))
    batches.set_epoch(1)
    second = [index for key in batches for index in key.indices]
    assert sorted(second) == list(range(40))
    assert first != second


def _sizes(length: int, batch: int, **options: object) -> list[int]:
    return [len(key.indices) for key in EpochBatches(length, batch, train=True, **options)]


def test_incomplete_training_batches_are_left_out_or_filled() -> None:
    assert _sizes(85, 8) == [8] * 10  # 5 of 85 images are left out, others in every epoch
    assert _sizes(85, 8, last_batch="fill") == [8] * 11
    assert _sizes(21, 8) == [8, 8, 8]  # 5 of 21 would be too many
    assert _sizes(21, 8, last_batch="drop") == [8, 8]
    assert _sizes(16, 8) == [8, 8]
    small = list(EpochBatches(5, 8, train=True))
    assert [sorted(key.indices) for key in small] == [[0, 1, 2, 3, 4]]
    assert EpochBatches(85, 8, train=True).dropped == 5
    assert EpochBatches(21, 8, train=True).dropped == 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("length", [21, 25, 40, 47, 200])
def test_an_epoch_never_leaves_out_more_than_a_tenth(length: int, world_size: int) -> None:
    parts = [
        EpochBatches(length, 8, train=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen = [index for part in parts for key in part for index in key.indices]
    assert length - len(set(seen)) == parts[0].dropped <= length / 10
    assert len({len(part) for part in parts}) == 1
    assert {len(key.indices) for part in parts for key in part} == {parts[0].batch_size}
    # Those that come twice fill the last batch: they stand at the epoch's beginning.
    assert len(seen) - len(set(seen)) < 8 * world_size


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


def test_loaders_of_processes_share_an_epoch(make_folder: Make, open_data: Open) -> None:
    data = open_data(make_folder(CONTENT), **SMALL)
    parts = [data.loader("train", training=True, rank=rank, world_size=2) for rank in range(2)]
    assert [len(part) for part in parts] == [data.batches_per_epoch(2)] * 2 == [3, 3]
    seen = [index for part in parts for batch in part for index in batch.index.tolist()]
    assert (len(seen), len(set(seen))) == (48, 40)


def test_wrong_rank_and_too_few_images() -> None:
    with pytest.raises(ValueError, match="rank is 2"):
        EpochBatches(10, 2, train=True, rank=2, world_size=2)
    with pytest.raises(ValueError, match="cannot feed"):
        EpochBatches(1, 2, train=True, rank=0, world_size=2)


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_multi_scale_batches_have_the_drawn_sizes(
    make_folder: Make, open_data: Open, crop: str
) -> None:
    data = open_data(
        make_folder(CONTENT), image_size=16, batch_size=2, crop=crop, multi_scale=(8, 16, 24)
    )
    train = data.loader("train", training=True)
    keys = list(train.sampler)
    batches = list(train)
    assert [tuple(batch.images.shape[2:]) for batch in batches] == [key.size for key in keys]
    assert [batch.valid.tolist() for batch in batches] == [[list(key.size)] * 2 for key in keys]
    assert {key.size for key in keys} == {(8, 8), (16, 16), (24, 24)}
    assert {tuple(batch.images.shape[2:]) for batch in data.loader("val")} == {(16, 16)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_while_training(
    make_folder: Make, open_data: Open, workers: int
) -> None:
    folder = make_folder(CONTENT)
    stream = io.BytesIO()
    picture(0, 0, (40, 40)).convert("L").save(stream, "PNG")
    (folder / "train" / "b" / "7.png").write_bytes(stream.getvalue()[:600])
    data = open_data(folder, image_size=16, cache="none", workers=workers)
    train = data.loader("train", training=True)
    with pytest.raises(DataError, match=r"train/b/7\.png") as caught, plain_data_errors():
        list(train)
    assert str(caught.value).startswith(str(folder))
    assert "Traceback" not in str(caught.value)


def test_the_cache_reads_files_once_and_respects_its_limit(
    make_folder: Make, open_data: Open
) -> None:
    folder = make_folder(CONTENT)
    kept = open_data(folder, image_size=16)
    loose = open_data(folder, image_size=16, cache_limit_megabytes=0)
    for file in folder.rglob("*.png"):
        file.unlink()
    assert sum(len(batch) for batch in kept.loader("val")) == 11
    with pytest.raises(DataError, match="cannot be opened"):
        loose.dataset("val")[0]


@pytest.mark.parametrize("augment", [{}, HEAVY])
def test_a_zip_set_survives_the_way_to_another_process(
    make_folder: Make, zip_folder: Make, open_data: Open, augment: dict
) -> None:
    data = open_data(zip_folder(make_folder(CONTENT)), image_size=16, cache="none", **augment)
    images = data.dataset("train", training=True)
    copy = pickle.loads(pickle.dumps(images))
    key = next(iter(data.loader("train", training=True).sampler))
    assert _same([images[key]], [copy[key]])


def test_a_batch_survives_pickling_with_lists_of_targets(
    make_folder: Make, open_data: Open
) -> None:
    batch = next(iter(open_data(make_folder(CONTENT), **SMALL).loader("val")))
    boxes = [torch.rand(row, 4) for row in range(len(batch))]
    batch = replace(batch, targets={**batch.targets, "boxes": boxes})
    copy = pickle.loads(pickle.dumps(batch))
    assert _same([batch], [copy])
    assert all(torch.equal(a, b) for a, b in zip(boxes, copy.targets["boxes"], strict=True))
    part = batch.select([2, 0])
    assert part.index.tolist() == [2, 0]
    assert [len(each) for each in part.targets["boxes"]] == [2, 0]
    assert part.names == (batch.names[2], batch.names[0])
    assert batch.select([1]).names == (batch.names[1],)
    moved = batch.to("meta")
    assert moved.images.is_meta
    assert moved.targets["boxes"][1].is_meta


def test_images_first_read_by_an_evaluation_are_kept_as_usual(
    make_folder: Make, open_data: Open
) -> None:
    """Without a check before training the cache is filled by whoever asks first."""
    data = open_data(
        make_folder({"train": {"a": 9, "b": 9}, "val": {"a": 45, "b": 45}}),
        verify="none",
        cache="memory",
    )
    with torch.inference_mode():
        assert sum(len(batch) for batch in data.loader("val")) == 90
    sample = data.dataset("val")[0]
    assert not sample.image.is_inference()
    sample.image.add_(1)
