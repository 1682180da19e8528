"""Random numbers that belong to a sample, not to the moment at which it is drawn.

A key is hashed from (seed, epoch, index, ...) with the finaliser of SplitMix64 (Steele, Lea and
Flood, 2014). The same key gives the same augmentation in any batch, in any worker process, on any
number of ranks, and after a resume; no global generator is advanced by loading data.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_MASK = (1 << 64) - 1
_STEP = np.uint64(0x9E3779B97F4A7C15)


def _scramble(state: Keys) -> Keys:
    """The SplitMix64 finaliser: every input bit reaches every output bit; wraps modulo 2⁶⁴."""
    state = state + _STEP
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def keys(seed: int, *parts: int | NDArray[np.int64]) -> Keys:
    """Hash a seed and further integers into 64-bit keys.

    Args:
        seed: any integer.
        parts: integers or arrays of integers; arrays are broadcast against one another.

    Returns:
        Keys of the broadcast shape, at least one-dimensional.
    """
    state = _scramble(np.array([seed & _MASK], dtype=np.uint64))
    for part in parts:
        state = _scramble(state ^ _scramble(np.atleast_1d(np.asarray(part)).astype(np.uint64)))
    return state


def uniform(sample_keys: Keys, draw: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """The `draw`-th uniform number in [0, 1) of every key.

    Args:
        sample_keys: of any shape.
        draw: which number; an array is broadcast against the keys.

    Returns:
        of the shape of `sample_keys`, or the one broadcast.
    """
    draws = np.atleast_1d(np.asarray(draw)).astype(np.uint64)
    mixed = _scramble(sample_keys ^ _scramble(draws))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Put the generators of Python, NumPy and PyTorch (CPU) back as they were on leaving.

    timm's and torchvision's augmentations draw from these generators and know no other.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def seed_global_generators(key: int) -> None:
    """Seed the CPU generators of Python, NumPy and PyTorch from one 64-bit key."""
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002
    # torch.manual_seed would reach for every accelerator as well.
    torch.default_generator.manual_seed(key >> 1)


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and PyTorch, on all devices, from a mixture of ``numbers``."""
    seed = int(keys(*numbers)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 libraries draw from the global state
    torch.manual_seed(seed >> 1)
