"""The roofline of a machine, and what it is."""

import pytest
import torch

from castling.ops import native
from castling.profiling.machine import Roofline, machine_facts, measure_roofline
from castling.utils.timing import cpu_threads

CPU = torch.device("cpu")


def test_the_roofline_is_the_longer_of_computing_and_moving():
    roofline = Roofline(gflops=10.0, gigabytes=2.0)
    assert str(roofline) == "10 GFLOP/s, 2.0 GB/s"
    assert roofline.milliseconds(2e7, 1e6) == pytest.approx(2.0)
    assert roofline.milliseconds(1e6, 2e7) == pytest.approx(10.0)


def _roofline(seconds):
    """The roofline when a product and a copy take so long."""
    return measure_roofline(CPU, torch.float32, lambda call, repeats: seconds * repeats)


def test_a_fast_product_sets_the_peak():
    assert _roofline(1e-6) == Roofline(
        pytest.approx(2 * 1536**3 / 1e3), pytest.approx(2 * 2**27 / 1e3)
    )


@pytest.mark.skipif(not native.available(), reason="needs the C++ operators")
@pytest.mark.parametrize("threads", [1, 2])
def test_multiply_adds_in_registers_set_the_peak_where_a_product_is_slow(threads):
    with cpu_threads(threads):
        found = _roofline(1e3).gflops / (threads * native.multiply_add_rate())
    assert 0.2 < found < 5  # two measurements on a machine that may be busy


def test_facts_of_this_machine():
    facts = machine_facts(CPU)
    assert facts["torch"] == torch.__version__
    assert "naive" in facts["backends"]
