"""``castling bench ops``: kernels on every backend against SDPA, authors' code and the roofline.

Notable:
- no time without a passed check of the error against float64;
- the backend that really ran is recorded, not the one that was asked for;
- ratios are of medians from one interleaved run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from castling.attention import Softmax
from castling.attention.config import AttentionConfig
from castling.ops.backends import available_backends
from castling.profiling.checks import FOREIGN_LIMITS, LIMITS, CheckError, Expected
from castling.profiling.comparison import Comparison
from castling.profiling.machine import Roofline, machine_facts, measure_roofline
from castling.profiling.memory import peak_megabytes, resident_megabytes
from castling.profiling.op_candidates import (
    REFERENCE,
    SDPA,
    SOFTMAX,
    OpCandidate,
    Setting,
    backend_taken,
    moved_bytes,
    op_candidates,
    operations,
)
from castling.profiling.op_results import OpMeasurement, OpsResult
from castling.utils.devices import read_device
from castling.utils.timing import Call, Clock, Timer, cpu_threads, specialised, timer_for

#: Kernel and backend.
_Key = tuple[str, str]


def bench_ops(
    kernels: Mapping[str, AttentionConfig],
    settings: Sequence[Setting],
    *,
    backends: Sequence[str] | None = None,
    backward: bool = False,
    rounds: int = 15,
    seconds: float = 5.0,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    clock: Clock = "wall",
    timer: Timer | None = None,
    roofline: Roofline | None = None,
    report: Callable[[OpMeasurement], None] | None = None,
) -> OpsResult:
    """Measure attention kernels without the model around them.

    Args:
        kernels: text → configuration. PyTorch's fused softmax is always measured too.
        settings: shapes, one comparison each.
        backends: to force; None is all that work on the device.
        backward: time output and gradients instead of the output alone.
        rounds: maximum number of timed runs per candidate.
        seconds: time limit per setting, shared evenly; each candidate runs at least three times.
        device: where to measure.
        threads: CPU threads; None leaves PyTorch's number.
        clock: ``"wall"``, or ``"cpu"`` for one thread on a busy machine.
        timer: replaces the clock.
        roofline: of this machine; None measures it for every dtype.
        report: called with each measurement when it is done.

    Returns:
        Measurements by setting, softmax first, then by kernel: the authors' code, then the
        backends. Candidates that cannot run or fail their check have ``error`` set and no time.

    Raises:
        ValueError: nothing to measure, or a number is not positive.
    """
    if not kernels or not settings:
        raise ValueError("bench ops needs at least one kernel and one number of tokens")
    if rounds < 1 or min(min(s.batch, s.tokens, s.heads, s.dim) for s in settings) < 1:
        raise ValueError("tokens, heads, channels, batch and rounds must be positive")
    device = read_device(device)
    everything = {SOFTMAX: Softmax()} | dict(kernels)
    with cpu_threads(threads):
        timer = timer or timer_for(device, clock)
        chosen = available_backends(device) if backends is None else backends
        rooflines: dict[torch.dtype, Roofline] = {}
        found: list[OpMeasurement] = []
        for setting in settings:
            if setting.dtype not in rooflines:
                measured = roofline or measure_roofline(device, setting.dtype, timer)
                rooflines[setting.dtype] = measured
            bench = _Bench(setting, device, backward, rooflines[setting.dtype])
            with specialised():
                entered = bench.entered(everything, chosen)
                rows = entered.measure(bench.ratios, rounds=rounds, seconds=seconds, timer=timer)
            for row in rows:
                if report is not None:
                    report(row)
            found += rows
        facts = machine_facts(device) | {"clock": clock}
        for dtype, measured in rooflines.items():
            facts[f"roofline ({_name(dtype)})"] = str(measured)
        return OpsResult(tuple(found), facts)


class _Bench:
    """One setting: its tensors, and the checks and calls of its candidates."""

    def __init__(
        self, setting: Setting, device: torch.device, backward: bool, roofline: Roofline
    ) -> None:
        self.setting, self.device, self.backward = setting, device, backward
        self.roofline = roofline
        self.packed = setting.packed(device).requires_grad_(backward)
        shape = (setting.batch, setting.tokens, setting.heads * setting.dim)
        self.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        self.grad = self.grad.to(device=device, dtype=setting.dtype)
        #: Kernel → milliseconds at the roofline.
        self.bounds: dict[str, float | None] = {}

    def entered(
        self, kernels: Mapping[str, AttentionConfig], backends: Sequence[str]
    ) -> Comparison[_Key, OpMeasurement]:
        """All kernels on all backends, checked."""
        found: Comparison[_Key, OpMeasurement] = Comparison()
        for kernel, config in kernels.items():
            self.bounds[kernel] = self._bound(config)
            expected: Expected | None = None
            for candidate in op_candidates(kernel, config, backends, self.setting, self.packed):
                if not isinstance(candidate, OpCandidate):
                    _, backend, reason = candidate
                    found.refuse((kernel, backend), self._row(kernel, backend), reason)
                    continue
                key = kernel, candidate.backend
                with found.trying(key, self._row(*key)):
                    expected = expected or self._expected(candidate)
                    found.enter(key, *self._ready(candidate, expected))
        return found

    def _expected(self, candidate: OpCandidate) -> Expected:
        grad = self.grad if self.backward else None
        return Expected.of(
            candidate.core, self.packed, self.setting.grid, self.setting.prefix, grad
        )

    def _ready(self, candidate: OpCandidate, expected: Expected) -> tuple[Call, OpMeasurement]:
        """The call to time and the row without times.

        Raises:
            CheckError: the result is wrong, or another backend ran.
        """
        with torch.set_grad_enabled(self.backward):
            out, backend = backend_taken(lambda: candidate.call(self.packed), candidate.backend)
        foreign = candidate.backend in (SDPA, REFERENCE)
        limits = (FOREIGN_LIMITS if foreign else LIMITS)[self.setting.dtype]
        error = expected.error(out, self._leaves(candidate), limits)
        del out
        if not foreign and backend != candidate.backend:
            raise CheckError(
                f"this kernel has no {candidate.backend} backend, it ran on the {backend} one"
            )
        call = self._call(candidate)
        call()  # warm-up: compile without gradients too
        # Operators inside compiled code cannot be traced.
        peak = None if backend == "compiled" else peak_megabytes(call, self.device)
        resident = resident_megabytes(call) if self.device.type == "cpu" else None
        row = self._row(candidate.kernel, candidate.backend)
        row = replace(row, relative_rms=error, peak_megabytes=peak, resident_megabytes=resident)
        return call, row

    def _leaves(self, candidate: OpCandidate) -> list[Tensor]:
        return [self.packed, *candidate.core.parameters()]

    def _call(self, candidate: OpCandidate) -> Call:
        packed, grad, leaves = self.packed, self.grad, self._leaves(candidate)

        def forward() -> Tensor:
            with torch.no_grad():
                return candidate.call(packed)

        def both() -> tuple[Tensor, ...]:
            out = candidate.call(packed)
            return torch.autograd.grad(out, leaves, grad, allow_unused=True)

        return both if self.backward else forward

    def _row(self, kernel: str, backend: str) -> OpMeasurement:
        s = self.setting
        return OpMeasurement(
            kernel, backend, s.tokens, s.batch, s.heads, s.dim, _name(s.dtype), self.backward
        )

    def _bound(self, config: AttentionConfig) -> float | None:
        """Milliseconds at the roofline; None where the operations are not known."""
        work = operations(config, self.setting)
        if work is None:
            return None
        # Backward has twice the products; it reads q, k, v and grad and writes three gradients.
        factor, touches = (3.0, 11 / 4) if self.backward else (1.0, 1.0)
        return self.roofline.milliseconds(factor * work, touches * moved_bytes(self.setting))

    def ratios(self, key: _Key, times: Mapping[_Key, float]) -> dict[str, Any]:
        """One candidate's time against those it is compared with."""
        kernel, _ = key
        mine, bound = times[key], self.bounds[kernel]
        softmax, block = times.get((SOFTMAX, SDPA)), times.get((kernel, REFERENCE))
        return {
            "against_sdpa": None if softmax is None else softmax / mine,
            "against_reference": None if block is None else block / mine,
            "roofline_share": None if bound is None else bound / mine,
        }


def settings_of(
    tokens: Sequence[int],
    *,
    batches: Sequence[int] = (1,),
    heads: Sequence[int] = (6,),
    dims: Sequence[int] = (64,),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
) -> list[Setting]:
    """Every combination of the arguments, tokens varying fastest."""
    shapes = itertools.product(dtypes, batches, heads, dims, tokens)
    return [Setting(b, n, h, d, dtype) for dtype, b, h, d, n in shapes]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
