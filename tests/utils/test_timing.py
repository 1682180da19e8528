"""Interleaved timing: order, quartiles, time limits."""

import time

import pytest
import torch

from castling.utils.timing import Timing, cpu_threads, time_alternately, timer_for

CPU = torch.device("cpu")


class FakeClock:
    """Fixed seconds per candidate; records the order of calls and runs nothing."""

    def __init__(self, **seconds):
        self.seconds, self.order = seconds, []

    def __call__(self, call, repeats):
        name = call()
        self.order.append(name)
        return self.seconds[name] * repeats


def calls(*names):
    return {name: (lambda name=name: name) for name in names}


def test_candidates_run_in_turns_and_each_starts_one_round():
    clock = FakeClock(a=1.0, b=2.0, c=3.0)
    times = time_alternately(calls("a", "b", "c"), rounds=3, seconds=0.0, timer=clock)
    assert "".join(clock.order) == "aabbcc" + "abc" + "bca" + "cab"
    assert times["b"] == Timing(2000.0, 2000.0, 2000.0, 3)


class ColdClock(FakeClock):
    """The first call after another candidate takes five times as long; records the repeats."""

    def __init__(self, **seconds):
        super().__init__(**seconds)
        self.repeats = []

    def __call__(self, call, repeats):
        before = self.order[-1:]
        seconds = super().__call__(call, repeats)
        self.repeats.append(repeats)
        name = self.order[-1]
        return seconds + (0.0 if before == [name] else 4 * self.seconds[name])


def test_repeats_of_short_calls_follow_from_warm_calls():
    clock = ColdClock(a=0.001)
    time_alternately(calls("a"), rounds=1, seconds=9.0, timer=clock)
    # Cold, four warm, two that choose the repeats; then the untimed warm-up and the block.
    assert clock.repeats == [1, 1, 1, 1, 1, 2, 2, 10]


def test_the_previous_candidate_does_not_inflate_the_estimate():
    class DisturbedClock(ColdClock):
        def __call__(self, call, repeats):
            return super().__call__(call, repeats) + (0.02 if len(self.order) <= 3 else 0.0)

    clock = DisturbedClock(a=0.001)
    time_alternately(calls("a"), rounds=1, seconds=9.0, timer=clock)
    assert clock.repeats[-1] == 10


def test_warm_up_calls_are_not_timed():
    clock = ColdClock(a=0.001, b=0.002, c=0.02)
    times = time_alternately(calls("a", "b", "c"), rounds=4, seconds=9.0, timer=clock)
    assert times["a"].high == pytest.approx(1.0)
    assert times["b"].high == pytest.approx(2.0)
    # Long calls have no warm-up.
    assert "".join(clock.order[-5:]) == "aabbc"
    assert times["c"].low == pytest.approx(100.0)


def test_warm_up_counts_towards_the_time_limit():
    # 12 ms a run: four of them fit into 50.
    clock = FakeClock(a=0.001)
    assert time_alternately(calls("a"), rounds=9, seconds=0.05, timer=clock)["a"].rounds == 4


def test_time_limit_ends_the_runs_after_three():
    clock = FakeClock(a=1.0)
    assert time_alternately(calls("a"), rounds=9, seconds=0.0, timer=clock)["a"].rounds == 3
    clock = FakeClock(a=1.0)
    assert time_alternately(calls("a"), rounds=9, seconds=5.5, timer=clock)["a"].rounds == 5


def test_slow_candidates_skip_rounds_evenly_and_fast_ones_run_every_round():
    clock = FakeClock(slow=5.0, b=0.02, c=0.03)
    times = time_alternately(calls("slow", "b", "c"), rounds=6, seconds=1.0, timer=clock)
    assert {name: timing.rounds for name, timing in times.items()} == {"slow": 3, "b": 6, "c": 6}
    last = "".join(name[0] for name in clock.order[-15:])
    assert last == "bc" + "sbc" + "cb" + "bcs" + "bc" + "csb"


def test_rotation_and_skipping_do_not_alias():
    clock = FakeClock(a=0.02, b=0.045)
    times = time_alternately(calls("a", "b"), rounds=40, seconds=1.7, timer=clock)
    assert (times["a"].rounds, times["b"].rounds) == (40, 20)
    # Each runs after the other as often as after itself.
    assert "".join(clock.order[-60:]) == ("a" + "ab" + "a" + "ba") * 10


def test_no_time_limit_and_a_first_call_that_compiles():
    times = time_alternately(calls("a"), rounds=9, seconds=float("inf"), timer=FakeClock(a=1.0))
    assert times["a"].rounds == 9

    class BuildingClock(FakeClock):
        def __call__(self, call, repeats):
            return super().__call__(call, repeats) + (30.0 if len(self.order) == 1 else 0.0)

    times = time_alternately(calls("a"), rounds=9, seconds=2.0, timer=BuildingClock(a=0.01))
    assert times["a"].rounds == 9


def test_time_that_fast_candidates_leave_goes_to_slow_ones():
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


def test_the_cpu_clock_does_not_count_sleep():
    timer = timer_for(CPU, "cpu")
    assert timer(lambda: time.sleep(0.05), 1) < 0.04


def test_invalid_clocks_are_refused():
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


def test_the_number_of_threads_is_restored():
    before = torch.get_num_threads()

    def fail():
        with cpu_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == before
