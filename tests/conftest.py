"""Fixtures shared by all tests."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _threads():
    # Workers of pytest-xdist would otherwise each start as many threads as there are cores.
    torch.set_num_threads(int(os.environ.get("CASTLING_TEST_THREADS", "1")))
