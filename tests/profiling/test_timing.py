"""The clock: turns, quartiles, time limits; and what one machine can do at best."""

import time

import pytest
import torch

from castling.ops import native
from castling.profiling.machine import Roofline, machine_facts, measure_roofline
from castling.profiling.timing import Timing, cpu_threads, time_alternately, timer_for

CPU = torch.device("cpu")


class FakeClock:
    """Seconds by candidate; notes the order of calls, and runs nothing."""

    def __init__(self, **seconds):
        self.seconds, self.order = seconds, []

    def __call__(self, call, repeats):
        name = call()
        self.order.append(name)
        return self.seconds[name] * repeats


def calls(*names):
    return {name: (lambda name=name: name) for name in names}


def test_subjects_run_in_turns_and_each_begins_once():
    clock = FakeClock(a=1.0, b=2.0, c=3.0)
    times = time_alternately(calls("a", "b", "c"), rounds=3, seconds=0.0, timer=clock)
    assert "".join(clock.order) == "aabbcc" + "abc" + "bca" + "cab"
    assert times["b"] == Timing(2000.0, 2000.0, 2000.0, 3)


class ColdClock(FakeClock):
    """The first call after another candidate takes five times as long; notes the repeats."""

    def __init__(self, **seconds):
        super().__init__(**seconds)
        self.repeats = []

    def __call__(self, call, repeats):
        before = self.order[-1:]
        seconds = super().__call__(call, repeats)
        self.repeats.append(repeats)
        name = self.order[-1]
        return seconds + (0.0 if before == [name] else 4 * self.seconds[name])


def test_short_calls_are_repeated_by_what_they_take_when_warm():
    clock = ColdClock(a=0.001)
    time_alternately(calls("a"), rounds=1, seconds=9.0, timer=clock)
    # Cold, warmer, some for the number of repeats; then those that do not count, and the block.
    assert clock.repeats == [1, 1, 1, 1, 1, 2, 2, 10]


def test_what_the_subject_before_left_to_do_does_not_make_a_call_long():
    class DisturbedClock(ColdClock):
        def __call__(self, call, repeats):
            return super().__call__(call, repeats) + (0.02 if len(self.order) <= 3 else 0.0)

    clock = DisturbedClock(a=0.001)
    time_alternately(calls("a"), rounds=1, seconds=9.0, timer=clock)
    assert clock.repeats[-1] == 10


def test_the_first_calls_after_another_subject_do_not_count():
    clock = ColdClock(a=0.001, b=0.002, c=0.02)
    times = time_alternately(calls("a", "b", "c"), rounds=4, seconds=9.0, timer=clock)
    assert times["a"].high == pytest.approx(1.0)
    assert times["b"].high == pytest.approx(2.0)
    # Nothing is gained by running long calls once more for nothing.
    assert "".join(clock.order[-5:]) == "aabbc"
    assert times["c"].low == pytest.approx(100.0)


def test_calls_that_do_not_count_take_their_time_all_the_same():
    # 12 ms a run: four of them fit into 50.
    clock = FakeClock(a=0.001)
    assert time_alternately(calls("a"), rounds=9, seconds=0.05, timer=clock)["a"].rounds == 4


def test_time_limit_ends_the_runs_after_three():
    clock = FakeClock(a=1.0)
    assert time_alternately(calls("a"), rounds=9, seconds=0.0, timer=clock)["a"].rounds == 3
    clock = FakeClock(a=1.0)
    assert time_alternately(calls("a"), rounds=9, seconds=5.5, timer=clock)["a"].rounds == 5


def test_slow_subjects_sit_out_evenly_and_fast_ones_run_as_often_as_wanted():
    clock = FakeClock(slow=5.0, b=0.02, c=0.03)
    times = time_alternately(calls("slow", "b", "c"), rounds=6, seconds=1.0, timer=clock)
    assert {name: timing.rounds for name, timing in times.items()} == {"slow": 3, "b": 6, "c": 6}
    last = "".join(name[0] for name in clock.order[-15:])
    assert last == "bc" + "sbc" + "cb" + "bcs" + "bc" + "csb"


def test_taking_turns_does_not_keep_step_with_sitting_out():
    clock = FakeClock(a=0.02, b=0.045)
    times = time_alternately(calls("a", "b"), rounds=40, seconds=1.7, timer=clock)
    assert (times["a"].rounds, times["b"].rounds) == (40, 20)
    # Each behind the other as often as behind itself or its own.
    assert "".join(clock.order[-60:]) == ("a" + "ab" + "a" + "ba") * 10


def test_there_may_be_no_time_limit_and_a_first_call_that_builds_does_not_count():
    times = time_alternately(calls("a"), rounds=9, seconds=float("inf"), timer=FakeClock(a=1.0))
    assert times["a"].rounds == 9

    class BuildingClock(FakeClock):
        def __call__(self, call, repeats):
            return super().__call__(call, repeats) + (30.0 if len(self.order) == 1 else 0.0)

    times = time_alternately(calls("a"), rounds=9, seconds=2.0, timer=BuildingClock(a=0.01))
    assert times["a"].rounds == 9


def test_time_that_fast_subjects_leave_goes_to_slow_ones():
    clock = FakeClock(a=0.02, b=1.0)
    times = time_alternately(calls("a", "b"), rounds=8, seconds=6.2, timer=clock)
    assert {name: timing.rounds for name, timing in times.items()} == {"a": 8, "b": 6}


def test_quartiles():
    timing = Timing.of([0.004, 0.001, 0.002, 0.003, 0.005])
    assert (timing.low, timing.milliseconds, timing.high) == pytest.approx((2.0, 3.0, 4.0))
    assert Timing.of([0.5]) == Timing(500.0, 500.0, 500.0, 1)


def test_the_real_clock_counts_repeats():
    count = []
    assert timer_for(CPU)(lambda: count.append(1), 7) > 0
    assert len(count) == 7


def test_the_processor_clock_stands_still_while_nothing_runs():
    timer = timer_for(CPU, "cpu")
    assert timer(lambda: time.sleep(0.05), 1) < 0.04


def test_clocks_that_would_lie_are_refused():
    with pytest.raises(ValueError, match="no clock 'moon'; there are: wall, cpu"):
        timer_for(CPU, "moon")
    with pytest.raises(ValueError, match="one thread on the CPU"):
        timer_for(torch.device("cuda"), "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="one thread on the CPU"):
            timer_for(CPU, "cpu")
    finally:
        torch.set_num_threads(threads)


def test_machine_limit_is_the_slower_of_computing_and_moving():
    limit = Roofline(gflops=10.0, gigabytes=2.0)
    assert limit.milliseconds(2e7, 1e6) == pytest.approx(2.0)
    assert limit.milliseconds(1e6, 2e7) == pytest.approx(10.0)


def _limit():
    """With a clock by which a product and a copy take 0.1 s each: 72 GFLOP/s."""
    return measure_roofline(CPU, torch.float32, lambda call, repeats: 0.1 * repeats)


def test_the_limit_is_the_faster_of_a_product_and_multiply_adds(monkeypatch):
    product = pytest.approx(2 * 1536**3 / 1e8)
    monkeypatch.setattr(native, "multiply_add_rate", lambda: 1.0)
    assert _limit() == Roofline(product, pytest.approx(2 * 2**27 / 1e8))
    monkeypatch.setattr(native, "multiply_add_rate", lambda: 200.0)
    assert _limit().gflops == 200.0
    with cpu_threads(2):
        assert _limit().gflops == 400.0

    def missing():
        raise RuntimeError("the library was not built")

    monkeypatch.setattr(native, "multiply_add_rate", missing)
    assert _limit().gflops == product


@pytest.mark.skipif(not native.available(), reason="needs the C++ operators")
def test_the_limit_asks_the_library(monkeypatch):
    real = native.multiply_add_rate
    found = []
    monkeypatch.setattr(native, "multiply_add_rate", lambda: found.append(real()) or found[0])
    limit = measure_roofline(CPU, torch.float32, lambda call, repeats: 1e3 * repeats)
    assert limit.gflops == torch.get_num_threads() * found[0] > 0


def test_threads_are_put_back():
    before = torch.get_num_threads()

    def fail():
        with cpu_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == before


def test_facts_of_this_machine():
    facts = machine_facts(CPU)
    assert facts["torch"] == torch.__version__
    assert "naive" in facts["paths"]
