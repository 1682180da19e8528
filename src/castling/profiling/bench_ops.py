"""Attention kernels alone: every path against SDPA, the authors' block and the machine's limit.

Notable:
- a time stands only beside an error against float64 that passed its limit;
- the path that a call really took is said, not the one that was asked for;
- ratios are of medians from one alternated run.
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
from castling.profiling.comparison import Comparison
from castling.profiling.gate import FOREIGN_LIMITS, LIMITS, Expected, GateError
from castling.profiling.machine import MachineLimit, machine_facts, measure_limit
from castling.profiling.memory import peak_megabytes, resident_megabytes
from castling.profiling.op_results import OpMeasurement, OpsResult
from castling.profiling.op_subjects import (
    REFERENCE,
    SDPA,
    SOFTMAX,
    OpSubject,
    Setting,
    moved_bytes,
    op_subjects,
    operations,
    path_taken,
)
from castling.profiling.timing import Call, Clock, Timer, cpu_threads, specialised, timer_for

#: Kernel and path.
_Key = tuple[str, str]


def bench_ops(
    kernels: Mapping[str, AttentionConfig],
    settings: Sequence[Setting],
    *,
    paths: Sequence[str] | None = None,
    backward: bool = False,
    rounds: int = 15,
    seconds: float = 5.0,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    clock: Clock = "wall",
    timer: Timer | None = None,
    report: Callable[[OpMeasurement], None] | None = None,
) -> OpsResult:
    """Measure kernels alone.

    Args:
        kernels: text → configuration. PyTorch's fused softmax is always measured too.
        settings: shapes, one comparison each.
        paths: to force; None is all that work on the device.
        backward: time output and gradients instead of the output alone.
        rounds: timed runs of each subject at most.
        seconds: time limit per setting, shared out evenly; each subject runs at least three times.
        device: where.
        threads: CPU threads; None leaves PyTorch's number.
        clock: ``"wall"``, or ``"cpu"`` for one thread on a busy machine.
        timer: a clock of another kind.
        report: called with each measurement as it is done.

    Returns:
        measurements by setting, softmax first, then by kernel: its block, then its paths. What
        cannot run, or fails its gate, has ``error`` set and no time.

    Raises:
        ValueError: nothing to measure, or a number that is not positive.
    """
    if not kernels or not settings:
        raise ValueError("bench ops needs at least one kernel and one number of tokens")
    if rounds < 1 or min(min(s.batch, s.tokens, s.heads, s.dim) for s in settings) < 1:
        raise ValueError("tokens, heads, channels, batch and rounds must be positive")
    device = torch.device(device)
    everything = {SOFTMAX: Softmax()} | dict(kernels)
    with cpu_threads(threads):
        timer = timer or timer_for(device, clock)
        chosen = available_backends(device) if paths is None else paths
        limits: dict[torch.dtype, MachineLimit] = {}
        found: list[OpMeasurement] = []
        for setting in settings:
            if setting.dtype not in limits:
                limits[setting.dtype] = measure_limit(device, setting.dtype, timer)
            bench = _Bench(setting, device, backward, limits[setting.dtype])
            with specialised():
                entered = bench.entered(everything, chosen)
                rows = entered.measure(bench.ratios, rounds=rounds, seconds=seconds, timer=timer)
            for row in rows:
                if report is not None:
                    report(row)
            found += rows
        facts = machine_facts(device) | {"clock": clock}
        for dtype, limit in limits.items():
            facts[f"limit ({_name(dtype)})"] = (
                f"{limit.gflops:.0f} GFLOP/s, {limit.gigabytes:.1f} GB/s"
            )
        return OpsResult(tuple(found), facts)


class _Bench:
    """One setting: its tensors, and what is done with every subject there."""

    def __init__(
        self, setting: Setting, device: torch.device, backward: bool, limit: MachineLimit
    ) -> None:
        self.setting, self.device, self.backward, self.limit = setting, device, backward, limit
        self.packed = setting.packed(device).requires_grad_(backward)
        shape = (setting.batch, setting.tokens, setting.heads * setting.dim)
        self.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        self.grad = self.grad.to(device=device, dtype=setting.dtype)
        #: Kernel → milliseconds that the machine needs at least.
        self.floors: dict[str, float | None] = {}

    def entered(
        self, kernels: Mapping[str, AttentionConfig], paths: Sequence[str]
    ) -> Comparison[_Key, OpMeasurement]:
        """All kernels on all paths, gated."""
        found: Comparison[_Key, OpMeasurement] = Comparison()
        for kernel, config in kernels.items():
            self.floors[kernel] = self._floor(config)
            expected: Expected | None = None
            for subject in op_subjects(kernel, config, paths, self.setting, self.packed):
                if not isinstance(subject, OpSubject):
                    _, path, reason = subject
                    found.refuse((kernel, path), self._row(kernel, path), reason)
                    continue
                key = kernel, subject.path
                with found.trying(key, self._row(*key)):
                    expected = expected or self._expected(subject)
                    found.enter(key, *self._ready(subject, expected))
        return found

    def _expected(self, subject: OpSubject) -> Expected:
        grad = self.grad if self.backward else None
        return Expected.of(subject.core, self.packed, self.setting.grid, self.setting.prefix, grad)

    def _ready(self, subject: OpSubject, expected: Expected) -> tuple[Call, OpMeasurement]:
        """The call to time and the row without times; raises where it is wrong or did not run."""
        with torch.set_grad_enabled(self.backward):
            out, path = path_taken(lambda: subject.call(self.packed), subject.path)
        foreign = subject.path in (SDPA, REFERENCE)
        limits = (FOREIGN_LIMITS if foreign else LIMITS)[self.setting.dtype]
        error = expected.error(out, self._leaves(subject), limits)
        del out
        if not foreign and path != subject.path:
            raise GateError(f"this kernel has no {subject.path} form, it ran on the {path} path")
        call = self._call(subject)
        call()  # warm: compiled without gradients too
        # Compiled code is not followed operator by operator.
        peak = None if path == "compiled" else peak_megabytes(call, self.device)
        resident = resident_megabytes(call) if self.device.type == "cpu" else None
        row = self._row(subject.kernel, subject.path)
        row = replace(row, relative_rms=error, peak_megabytes=peak, resident_megabytes=resident)
        return call, row

    def _leaves(self, subject: OpSubject) -> list[Tensor]:
        return [self.packed, *subject.core.parameters()]

    def _call(self, subject: OpSubject) -> Call:
        packed, grad, leaves = self.packed, self.grad, self._leaves(subject)

        def forward() -> Tensor:
            with torch.no_grad():
                return subject.call(packed)

        def both() -> tuple[Tensor, ...]:
            out = subject.call(packed)
            return torch.autograd.grad(out, leaves, grad, allow_unused=True)

        return both if self.backward else forward

    def _row(self, kernel: str, path: str) -> OpMeasurement:
        s = self.setting
        return OpMeasurement(
            kernel, path, s.tokens, s.batch, s.heads, s.dim, _name(s.dtype), self.backward
        )

    def _floor(self, config: AttentionConfig) -> float | None:
        """Milliseconds that the machine needs at least."""
        work = operations(config, self.setting)
        if work is None:
            return None
        # Backwards there are twice the products; q, k, v, grad in, three gradients out.
        factor, touches = (3.0, 11 / 4) if self.backward else (1.0, 1.0)
        return self.limit.milliseconds(factor * work, touches * moved_bytes(self.setting))

    def ratios(self, key: _Key, times: Mapping[_Key, float]) -> dict[str, Any]:
        """Of one subject's time to those that it is compared with."""
        kernel, _ = key
        mine, floor = times[key], self.floors[kernel]
        softmax, block = times.get((SOFTMAX, SDPA)), times.get((kernel, REFERENCE))
        return {
            "against_sdpa": None if softmax is None else softmax / mine,
            "against_reference": None if block is None else block / mine,
            "limit_share": None if floor is None else floor / mine,
        }


def settings_of(
    tokens: Sequence[int],
    *,
    batches: Sequence[int] = (1,),
    heads: Sequence[int] = (6,),
    dims: Sequence[int] = (64,),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
) -> list[Setting]:
    """Every combination, tokens varying fastest."""
    shapes = itertools.product(dtypes, batches, heads, dims, tokens)
    return [Setting(b, n, h, d, dtype) for dtype, b, h, d, n in shapes]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
