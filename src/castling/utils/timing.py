"""Interleaved timing of several candidates.

Notable:
- candidates run in turns, so that load from other programs slows all of them alike;
- the order rotates every round, so that none always inherits the caches of the same neighbour;
- slow candidates skip rounds evenly, so fast ones keep enough samples;
- short calls are timed in blocks after a few untimed warm-up calls: with the previous candidate's
  data in the caches the first calls are up to twice as slow;
- times are medians with quartiles.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
import torch._dynamo

Call = Callable[[], Any]
#: (call, repeats) -> seconds for that many consecutive calls.
Timer = Callable[[Call, int], float]
#: ``"cpu"`` is process time: for busy machines, one thread, no GPU.
Clock = Literal["wall", "cpu"]
Key = TypeVar("Key", bound=Hashable)

#: Short calls are repeated until a run lasts about this long, so that neither the resolution of the
#: clock nor the caches left by the previous candidate matter.
MIN_RUN_SECONDS = 0.01
#: Untimed calls before a run of repeated calls, as a share of it.
_WARM_UP = 0.2
#: A call of this many seconds is warm after two runs.
_SLOW = 0.5
#: Fewer rounds give no quartiles.
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """How long a call takes.

    Attributes:
        milliseconds: the median.
        low: lower quartile, milliseconds.
        high: upper quartile, milliseconds.
        rounds: number of runs.
    """

    milliseconds: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Median and quartiles of single runs."""
        median = statistics.median(seconds)
        low, _, high = (
            statistics.quantiles(seconds, n=4, method="inclusive")
            if len(seconds) > 1
            else (median, median, median)
        )
        return cls(median * 1e3, low * 1e3, high * 1e3, len(seconds))


def require_clock(clock: str, device: torch.device) -> None:
    """Raise ValueError unless ``clock`` exists and is valid for ``device`` and its threads."""
    if clock not in get_args(Clock):
        raise ValueError(f"no clock {clock!r}; there are: {', '.join(get_args(Clock))}")
    if clock == "cpu" and (device.type != "cpu" or torch.get_num_threads() != 1):
        raise ValueError(
            'clock "cpu" adds up the time of all threads and sees no other device: use one '
            'thread on the CPU (threads=1, --threads 1), or clock "wall"'
        )


def timer_for(device: torch.device, clock: Clock = "wall") -> Timer:
    """A timer by wall time, with the device synchronised before and after, or by process time.

    Raises:
        ValueError: as :func:`require_clock`.
    """
    require_clock(clock, device)
    now = time.perf_counter if clock == "wall" else time.process_time

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def seconds(call: Call, repeats: int) -> float:
        wait()
        started = now()
        for _ in range(repeats):
            call()
        wait()
        return now() - started

    return seconds


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Run PyTorch on this many CPU threads; None leaves its number."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def specialised() -> Iterator[None]:
    """Make ``torch.compile`` specialise on every size, as for a model that runs at one size.

    By default it switches to dynamic shapes at the second size and stops recompiling at the eighth.
    """
    torch._dynamo.reset()
    with torch._dynamo.config.patch(
        automatic_dynamic_shapes=False, specialize_float=True, recompile_limit=256
    ):
        yield
    torch._dynamo.reset()


def time_alternately(
    calls: Mapping[Key, Call], *, rounds: int, seconds: float, timer: Timer
) -> dict[Key, Timing]:
    """Time several calls against each other, in turns.

    Calls shorter than ``MIN_RUN_SECONDS`` are timed in blocks of consecutive calls that last that
    long, after an untimed warm-up of a fifth of a block. This measures warm calls; the cost of cold
    calls shows in whole models.

    Args:
        calls: what to time; each is called a few times before, to be warm.
        rounds: maximum number of runs per candidate.
        seconds: total time limit, shared evenly; time that fast candidates do not need goes to slow
            ones. At least three runs are made of each.
        timer: the clock.

    Returns:
        Timing of one call of each.
    """
    repeats: dict[Key, int] = {}
    costs: dict[Key, float] = {}
    for key, call in calls.items():
        repeats[key], costs[key] = _repeats(call, timer)
    planned = _planned_runs(costs, rounds, seconds)
    total = max(planned.values(), default=0)
    runs: dict[Key, list[float]] = {key: [] for key in calls}
    order = list(calls)
    turns: Counter[tuple[Key, ...]] = Counter()
    for done in range(total):
        due = tuple(
            key
            for key in order
            if (done + 1) * planned[key] // total > done * planned[key] // total
        )
        # Count the rounds of each such group apart, so that rotation and skipping do not alias.
        start = turns[due] % len(due)
        turns[due] += 1
        for key in due[start:] + due[:start]:
            if unused := _unused(repeats[key]):
                timer(calls[key], unused)
            runs[key].append(timer(calls[key], repeats[key]) / repeats[key])
    return {key: Timing.of(values) for key, values in runs.items()}


def _planned_runs(costs: Mapping[Key, float], rounds: int, seconds: float) -> dict[Key, int]:
    """Number of runs of each candidate, from the seconds of one run."""
    planned: dict[Key, int] = {}
    left = seconds
    for key in sorted(costs, key=lambda key: costs[key]):
        share = left / (len(costs) - len(planned))
        fitting = int(min(rounds, share / max(costs[key], 1e-9)))
        planned[key] = min(rounds, max(MIN_ROUNDS, fitting))
        left = max(0.0, left - planned[key] * costs[key])
    return planned


def _repeats(call: Call, timer: Timer) -> tuple[int, float]:
    """Number of warm calls in a run of ``MIN_RUN_SECONDS``, and the seconds of such a run."""
    # The very first call may compile or allocate.
    once = min(timer(call, 1) for _ in range(2))
    if once < _SLOW:
        # The minimum: memory freed by the previous candidate may still be on its way back.
        once = min(timer(call, 1) for _ in range(3))
    if once < MIN_RUN_SECONDS:
        some = math.ceil(_WARM_UP * MIN_RUN_SECONDS / max(once, 1e-6))
        once = timer(call, some) / some
    repeats = max(1, round(MIN_RUN_SECONDS / max(once, 1e-6)))
    return repeats, (repeats + _unused(repeats)) * once


def _unused(repeats: int) -> int:
    """Number of untimed warm-up calls before a run of ``repeats``."""
    return math.ceil(_WARM_UP * repeats) if repeats > 1 else 0
