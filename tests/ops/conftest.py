"""Fixtures of the operators' tests."""

import pytest
import torch


@pytest.fixture
def nan_memory():
    """Memory that an operator allocates and does not write holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)
