from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castling.data import DataError
from castling.data.splits import balanced_subset, hold_out
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
