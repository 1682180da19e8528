from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castling.data import DataError
from castling.data.hold_out import balanced_subset, hold_out, hold_out_by_key
from castling.utils.randomness import keys, uniform

LABELS = np.repeat([0, 1, 2], [40, 20, 60])

SETS = st.lists(st.integers(min_value=8, max_value=40), min_size=2, max_size=5)
SEEDS = st.integers(min_value=0, max_value=2**32)


def _labels(counts: list[int], seed: int) -> np.ndarray:
    """Labels of classes with the given numbers of images, in any order."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(labels)


@settings(deadline=None)
@given(
    counts=SETS,
    fractions=st.lists(st.floats(min_value=0.01, max_value=0.4), min_size=1, max_size=2),
    seed=SEEDS,
    shuffle=st.booleans(),
)
def test_held_out_parts_of_any_set(
    counts: list[int], fractions: list[float], seed: int, shuffle: bool
) -> None:
    labels = _labels(counts, seed)
    names = [f"class {label}" for label in range(len(counts))]
    parts = hold_out(labels, fractions, names, seed=seed, shuffle=shuffle)
    # Disjoint and complete, each part sorted.
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all(np.array_equal(part, np.sort(part)) for part in parts)
    # Stratified: every class gives its share to every part.
    for part, fraction in zip(parts[1:], fractions, strict=True):
        held = np.bincount(labels[part], minlength=len(counts))
        assert held.tolist() == [max(1, round(fraction * count)) for count in counts]
    again = hold_out(labels, fractions, names, seed=seed, shuffle=shuffle)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@settings(deadline=None)
@given(counts=SETS, seed=SEEDS, data=st.data())
def test_subsets_of_any_set(counts: list[int], seed: int, data: st.DataObject) -> None:
    labels = _labels(counts, seed)
    sizes = st.integers(min_value=len(counts), max_value=len(labels))
    small, large = sorted((data.draw(sizes), data.draw(sizes)))
    chosen, more = (balanced_subset(labels, n, seed=seed, what="subset") for n in (small, large))
    assert len(set(chosen.tolist())) == small
    assert set(chosen.tolist()) <= set(more.tolist())
    taken = np.bincount(labels[chosen], minlength=len(counts))
    # A class has fewer than the largest one only where all of its images are taken, or by one.
    assert all(taken[c] in (counts[c], max(taken), max(taken) - 1) for c in range(len(counts)))
    assert np.array_equal(chosen, balanced_subset(labels, small, seed=seed, what="subset"))


@pytest.mark.parametrize("shuffle", [True, False])
def test_held_out_parts_are_disjoint_complete_and_stratified(shuffle: bool) -> None:
    parts = hold_out(LABELS, [0.1, 0.2], list("abc"), seed=0, shuffle=shuffle)
    assert sorted(np.concatenate(parts).tolist()) == list(range(120))
    counts = [np.bincount(LABELS[part]).tolist() for part in parts]
    assert counts == [[28, 14, 42], [4, 2, 6], [8, 4, 12]]


def test_held_out_parts_depend_on_the_seed_alone() -> None:
    first, again = (hold_out(LABELS, [0.2], list("abc"), seed=3) for _ in range(2))
    other = hold_out(LABELS, [0.2], list("abc"), seed=4)
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_without_shuffling_the_last_images_are_held_out() -> None:
    train, test = hold_out(LABELS, [0.25], list("abc"), seed=0, shuffle=False)
    assert test.tolist() == [*range(30, 40), *range(55, 60), *range(105, 120)]
    assert len(train) == 90


def test_a_class_too_small_to_split_is_named() -> None:
    with pytest.raises(DataError, match="'rare' has 2 images"):
        hold_out([0] * 50 + [1] * 2, [0.1, 0.1], ["common", "rare"], seed=0)


def test_subset_is_balanced_nested_and_seeded() -> None:
    small = balanced_subset(LABELS, 20, seed=0, what="subset")
    assert sorted(np.bincount(LABELS[small]).tolist()) == [6, 7, 7]
    large = balanced_subset(LABELS, 50, seed=0, what="subset")
    assert set(small) < set(large)
    assert not np.array_equal(small, balanced_subset(LABELS, 20, seed=1, what="subset"))


def test_subset_takes_what_a_small_class_has() -> None:
    chosen = balanced_subset(LABELS, 90, seed=0, what="subset")
    assert np.bincount(LABELS[chosen]).tolist() == [35, 20, 35]


@pytest.mark.parametrize("count", [2, 121])
def test_an_impossible_subset_is_refused(count: int) -> None:
    with pytest.raises(DataError, match="subset is"):
        balanced_subset(LABELS, count, seed=0, what="subset")


def test_keys_are_distinct_and_uniform() -> None:
    many = keys(0, 1, np.arange(20_000))
    assert len(np.unique(many)) == 20_000
    numbers = uniform(many, 0)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(numbers, uniform(many, 1))[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


KEYED = st.lists(st.integers(min_value=3, max_value=60), min_size=1, max_size=5)
FRACTIONS = st.lists(st.floats(min_value=0.01, max_value=0.4), min_size=1, max_size=2)


def _image_keys(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def _part_of(parts: list[np.ndarray], count: int) -> np.ndarray:
    found = np.full(count, -1)
    for number, part in enumerate(parts):
        found[part] = number
    return found


def _by_rule(image_keys: np.ndarray, fractions: list[float], seed: int) -> np.ndarray:
    """The part of each image by its key alone, written out."""
    draws = uniform(keys(seed, image_keys.view(np.int64)), 0)
    found = np.zeros(len(draws), dtype=np.int64)
    low = 0.0
    for number, fraction in enumerate(fractions, start=1):
        found[(draws >= low) & (draws < low + fraction)] = number
        low += fraction
    return found


@settings(deadline=None)
@given(counts=KEYED, fractions=FRACTIONS, seed=SEEDS, data=st.data())
def test_held_out_by_key_whatever_lies_beside(
    counts: list[int], fractions: list[float], seed: int, data: st.DataObject
) -> None:
    labels = _labels(counts, seed)
    image_keys = _image_keys(len(labels), seed)
    names = [f"class {label}" for label in range(len(counts))]
    parts = hold_out_by_key(labels, image_keys, fractions, names, seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    before = _part_of(parts, len(labels))
    # Every class is in every part, and only an image that stands in is not where its key says.
    for label in range(len(counts)):
        members = labels == label
        assert set(before[members]) == set(range(len(parts)))
        off = members & (before != _by_rule(image_keys, fractions, seed))
        missing = set(range(len(parts))) - set(_by_rule(image_keys, fractions, seed)[members])
        assert sorted(before[off]) == sorted(missing)
    # The order does not matter.
    order = np.random.default_rng(seed + 1).permutation(len(labels))
    again = hold_out_by_key(labels[order], image_keys[order], fractions, names, seed=seed)
    assert np.array_equal(_part_of(again, len(labels)), before[order])
    # One image more, anywhere: no image moves, but for those that stand in.
    label = data.draw(st.integers(0, len(counts) - 1))
    more_labels = np.append(labels, label)
    more_keys = np.append(image_keys, np.uint64(data.draw(st.integers(0, 2**64 - 1))))
    more = hold_out_by_key(more_labels, more_keys, fractions, names, seed=seed)
    after = _part_of(more, len(more_labels))[:-1]
    moved = np.flatnonzero(before != after)
    rule = _by_rule(image_keys, fractions, seed)
    assert all(labels[moved] == label)
    assert all((before[moved] != rule[moved]) | (after[moved] != rule[moved]))
    assert len(moved) <= len(parts)
    whole = set(rule[labels == label]) == set(range(len(parts)))
    assert not (whole and len(moved))


@settings(deadline=None)
@given(counts=KEYED, seed=SEEDS)
def test_copies_of_one_image_fall_into_one_part(counts: list[int], seed: int) -> None:
    labels = _labels(counts, seed)
    image_keys = _image_keys(len(labels), seed)
    names = [f"class {label}" for label in range(len(counts))]
    double_labels, double_keys = np.tile(labels, 3), np.tile(image_keys, 3)
    parts = hold_out_by_key(double_labels, double_keys, [0.2, 0.1], names, seed=seed)
    found = _part_of(parts, len(double_labels)).reshape(3, -1)
    assert (found == found[0]).all()
    alone = hold_out_by_key(labels, image_keys, [0.2, 0.1], names, seed=seed)
    assert np.array_equal(found[0], _part_of(alone, len(labels)))


def test_a_copy_in_another_class_takes_no_part_from_either() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    image_keys = np.array([1, 2, 3, 3, 4, 5], dtype=np.uint64)
    for seed in range(50):
        parts = hold_out_by_key(labels, image_keys, [0.1, 0.1], ["a", "b"], seed=seed)
        found = _part_of(parts, 6)
        assert found[2] == found[3]
        assert set(found[:3]) == set(found[3:]) == {0, 1, 2}


def test_shares_by_key_are_met_on_average() -> None:
    labels = np.zeros(20_000, dtype=np.int64)
    for seed in (0, 1):
        parts = hold_out_by_key(labels, _image_keys(20_000, 5), [0.1, 0.25], ["a"], seed=seed)
        # Four standard deviations of a binomial count.
        assert abs(len(parts[1]) - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5
        assert abs(len(parts[2]) - 5000) < 4 * (20_000 * 0.25 * 0.75) ** 0.5


def test_the_seed_draws_other_images_by_key() -> None:
    labels, image_keys = np.zeros(200, dtype=np.int64), _image_keys(200, 0)
    first, again, other = (
        hold_out_by_key(labels, image_keys, [0.2], ["a"], seed=seed)[1] for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_of_too_few_different_images_is_named() -> None:
    labels = np.array([0] * 50 + [1] * 4)
    image_keys = np.append(_image_keys(50, 0), np.array([7, 7, 7, 8], dtype=np.uint64))
    with pytest.raises(DataError, match="'rare' has 2 different images"):
        hold_out_by_key(labels, image_keys, [0.1, 0.1], ["common", "rare"], seed=0)


def test_a_subset_by_key_keeps_its_images_when_others_come() -> None:
    image_keys = _image_keys(121, 1)
    labels = np.append(LABELS, 1)
    small = balanced_subset(LABELS, 20, seed=0, what="subset", image_keys=image_keys[:120])
    assert sorted(np.bincount(LABELS[small]).tolist()) == [6, 7, 7]
    order = np.random.default_rng(0).permutation(120)
    shuffled = balanced_subset(
        LABELS[order], 20, seed=0, what="subset", image_keys=image_keys[order]
    )
    assert set(order[shuffled]) == set(small)
    more = balanced_subset(labels, 20, seed=0, what="subset", image_keys=image_keys)
    assert len(set(small) - set(more)) <= 1


def test_the_nearest_image_stands_in() -> None:
    stood_in = 0
    for seed in range(40):
        image_keys = _image_keys(6, seed)
        draws = uniform(keys(seed, image_keys.view(np.int64)), 0)
        rest, held = hold_out_by_key([0] * 6, image_keys, [0.2], ["a"], seed=seed)
        if (draws >= 0.2).all():  # nothing would be held out
            assert held.tolist() == [draws.argmin()]
            stood_in += 1
        else:
            assert held.tolist() == np.flatnonzero(draws < 0.2).tolist()
        assert len(rest) + len(held) == 6
    assert stood_in > 3


@pytest.mark.parametrize(("name", "start"), [("cat", "class 'cat' has"), ("", "the data have")])
def test_too_few_images_are_said_of_the_class_or_the_data(name: str, start: str) -> None:
    message = f"^{start} 1 (different )?images, too few .* or give the splits yourself"
    with pytest.raises(DataError, match=message):
        hold_out([0], [0.1, 0.1], [name], seed=0)
    with pytest.raises(DataError, match=message):
        hold_out_by_key([0], np.array([7], dtype=np.uint64), [0.1, 0.1], [name], seed=0)
