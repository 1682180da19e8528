"""Attention layers timed by hooks inside the running model.

Notable:
- inputs, caches and neighbouring layers are those of real use;
- models run in turns, and the whole model is timed without hooks, which would slow it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from castling.surgery import convertible
from castling.utils.timing import MIN_ROUNDS, Clock, Timer, require_clock


class Stopwatch:
    """Time stamps on a device.

    Args:
        device: on a GPU the stamps are events in its stream, so that nothing waits for them.
        clock: ``"wall"``, or ``"cpu"`` for one thread on a busy machine.

    Raises:
        ValueError: as :func:`castling.utils.timing.require_clock`.
    """

    def __init__(self, device: torch.device, clock: Clock = "wall") -> None:
        require_clock(clock, device)
        self.device = device
        self._now = time.perf_counter if clock == "wall" else time.process_time

    def mark(self) -> Any:
        """A time stamp of now."""
        if self.device.type != "cuda":
            return self._now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two time stamps."""
        if self.device.type != "cuda":
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    @property
    def timer(self) -> Timer:
        """The same clock for whole calls."""

        def seconds(call: Callable[[], Any], repeats: int) -> float:
            start = self.mark()
            for _ in range(repeats):
                call()
            return self.seconds(start, self.mark())

        return seconds


class TimedModel:
    """A model that times its attention layers while it runs.

    Args:
        model: in evaluation mode.
        stopwatch: the clock.
    """

    def __init__(self, model: nn.Module, stopwatch: Stopwatch) -> None:
        self.model, self.stopwatch = model, stopwatch
        self.layers = convertible(model)
        self.runs: list[float] = []
        self.by_layer: dict[str, list[float]] = {name: [] for name in self.layers}

    def run(self, images: Tensor) -> float:
        """Time one call without hooks and one with hooks; returns the seconds of both together."""
        whole = self.stopwatch.timer(lambda: self.model(images), 1)
        self.runs.append(whole)
        marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in self.layers}
        with self._hooked(marks):
            hooked = self.stopwatch.timer(lambda: self.model(images), 1)
        for name, pairs in marks.items():
            self.by_layer[name].append(sum(self.stopwatch.seconds(*pair) for pair in pairs))
        return whole + hooked

    def total(self) -> float:
        """Median milliseconds of a call."""
        return statistics.median(self.runs) * 1e3

    def layer(self, name: str) -> float:
        """Median milliseconds of a layer."""
        return statistics.median(self.by_layer[name]) * 1e3

    @contextmanager
    def _hooked(self, marks: Mapping[str, list[tuple[Any, Any]]]) -> Any:
        started: dict[str, Any] = {}

        def before(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                started[name] = self.stopwatch.mark()

            return hook

        def after(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                marks[name].append((started[name], self.stopwatch.mark()))

            return hook

        handles = []
        for name, layer in self.layers.items():
            handles.append(layer.register_forward_pre_hook(before(name)))
            handles.append(layer.register_forward_hook(after(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def run_in_turns(
    models: Mapping[str, TimedModel], images: Tensor, rounds: int, seconds: float
) -> None:
    """Run the models in turns.

    Args:
        models: name → model; each is called twice before, to be warm.
        images: (B, C, H, W).
        rounds: maximum number of rounds.
        seconds: no further round starts after this time, except for the first three.
    """
    for one in models.values():
        one.model(images)
        one.model(images)
    spent = 0.0
    for done in range(rounds):
        if done >= MIN_ROUNDS and spent > seconds:
            break
        order = list(models.values())
        for one in order if done % 2 == 0 else reversed(order):
            spent += one.run(images)
