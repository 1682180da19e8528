"""The clock of every measurement.

Notable:
- candidates run in turns, so that a busy machine slows all of them alike;
- each round starts with another candidate, so that none always runs in the caches of the same one;
- slow candidates sit rounds out, evenly, so that a fast one has not to be judged by as few runs;
- a short call is timed in blocks of consecutive calls, the first of which do not count: in the
  caches of the candidate before they are up to twice as slow, which few repeats would not hide;
- a median stands between its quartiles.
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
#: Seconds that a call takes, repeated so many times.
Timer = Callable[[Call, int], float]
#: ``"cpu"`` stands still while other programs run: for busy machines, one thread, no GPU.
Clock = Literal["wall", "cpu"]
Key = TypeVar("Key", bound=Hashable)

#: A timed run lasts about this long at least, by repeating calls, so that neither the clock's grain
#: nor what the candidate before has left in the caches counts.
MIN_RUN_SECONDS = 0.01
#: So much of a run of repeated calls goes before it untimed.
_WARM_UP = 0.2
#: A call as slow as this (seconds) needs no third run to be warm.
_SLOW = 0.5
#: Fewer rounds have no quartiles.
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """How long a call takes.

    Attributes:
        milliseconds: the median.
        low: lower quartile, milliseconds.
        high: upper quartile, milliseconds.
        rounds: how many runs these are taken from.
    """

    milliseconds: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """The statistics of single runs."""
        median = statistics.median(seconds)
        low, _, high = (
            statistics.quantiles(seconds, n=4, method="inclusive")
            if len(seconds) > 1
            else (median, median, median)
        )
        return cls(median * 1e3, low * 1e3, high * 1e3, len(seconds))


def require_clock(clock: str, device: torch.device) -> None:
    """ValueError unless ``clock`` exists and tells the truth on ``device`` and its threads."""
    if clock not in get_args(Clock):
        raise ValueError(f"no clock {clock!r}; there are: {', '.join(get_args(Clock))}")
    if clock == "cpu" and (device.type != "cpu" or torch.get_num_threads() != 1):
        raise ValueError(
            'clock "cpu" adds up the time of all threads and knows no other device: take one '
            'thread on the CPU (threads=1, --threads 1), or clock "wall"'
        )


def timer_for(device: torch.device, clock: Clock = "wall") -> Timer:
    """Seconds by the wall, the device's queue emptied before and after; or by the processor.

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
    """Within, PyTorch computes on so many CPU threads; None leaves its number."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def specialised() -> Iterator[None]:
    """Within, ``torch.compile`` makes code for each size, as for a model that runs at one size.

    Left to itself it generalises what it meets in two sizes, and gives up after eight.
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
    """Time several calls against each other.

    Calls shorter than ``MIN_RUN_SECONDS`` are timed in blocks of consecutive ones that last as long,
    after a fifth of such a block that is not timed. So this says how fast they are when warm; what
    a cold call costs, whole models tell.

    Args:
        calls: what to call; each is called a few times before, to be warm.
        rounds: runs of each candidate at most.
        seconds: for all of them, shared out evenly; what fast candidates do not need goes to slow
            ones. Three runs are made however long they take.
        timer: the clock.

    Returns:
        the timing of one call of each.
    """
    repeats: dict[Key, int] = {}
    costs: dict[Key, float] = {}
    for key, call in calls.items():
        repeats[key], costs[key] = _repeats(call, timer)
    planned = _planned_runs(costs, rounds, seconds)
    most = max(planned.values(), default=0)
    runs: dict[Key, list[float]] = {key: [] for key in calls}
    order = list(calls)
    turns: Counter[tuple[Key, ...]] = Counter()
    for done in range(most):
        due = tuple(
            key for key in order if (done + 1) * planned[key] // most > done * planned[key] // most
        )
        # By the rounds of these candidates, lest sitting out and taking turns keep step.
        start = turns[due] % len(due)
        turns[due] += 1
        for key in due[start:] + due[:start]:
            if unused := _unused(repeats[key]):
                timer(calls[key], unused)
            runs[key].append(timer(calls[key], repeats[key]) / repeats[key])
    return {key: Timing.of(values) for key, values in runs.items()}


def _planned_runs(costs: Mapping[Key, float], rounds: int, seconds: float) -> dict[Key, int]:
    """How often each candidate runs, from the seconds that a run of it takes."""
    planned: dict[Key, int] = {}
    left = seconds
    for key in sorted(costs, key=lambda key: costs[key]):
        share = left / (len(costs) - len(planned))
        fitting = int(min(rounds, share / max(costs[key], 1e-9)))
        planned[key] = min(rounds, max(MIN_ROUNDS, fitting))
        left = max(0.0, left - planned[key] * costs[key])
    return planned


def _repeats(call: Call, timer: Timer) -> tuple[int, float]:
    """How many calls last as long as the shortest run, by calls that are warm; a run's seconds."""
    # The first call of all may have to build something.
    once = min(timer(call, 1) for _ in range(2))
    if once < _SLOW:
        # The shortest: what a candidate before has freed is still being given back meanwhile.
        once = min(timer(call, 1) for _ in range(3))
    if once < MIN_RUN_SECONDS:
        some = math.ceil(_WARM_UP * MIN_RUN_SECONDS / max(once, 1e-6))
        once = timer(call, some) / some
    repeats = max(1, round(MIN_RUN_SECONDS / max(once, 1e-6)))
    return repeats, (repeats + _unused(repeats)) * once


def _unused(repeats: int) -> int:
    """How many calls go untimed before a run of so many."""
    return math.ceil(_WARM_UP * repeats) if repeats > 1 else 0
