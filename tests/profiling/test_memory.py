"""Memory: what lives at one time, and what the process takes."""

import sys

import pytest
import torch

from castling.profiling.memory import peak_megabytes, resident_megabytes


def test_peak_memory_counts_what_lives_at_one_time():
    x = torch.randn(250, 1000)

    def chain():
        y = x + 1
        z = y * 2
        del y
        return (z - 1).view(-1).add_(1)

    assert peak_megabytes(chain, torch.device("cpu")) == pytest.approx(2.0)


def test_gradients_are_counted_where_they_are_asked_for():
    x = torch.randn(250, 1000, requires_grad=True)

    def step():
        torch.autograd.grad(x.exp().exp().sum(), x)

    assert peak_megabytes(step, torch.device("cpu")) >= 2.9


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_the_process_grows_by_what_no_operator_shows():
    def scratch():
        bytearray(64_000_000)

    assert peak_megabytes(scratch, torch.device("cpu")) == 0
    assert 60 < resident_megabytes(scratch) < 80
