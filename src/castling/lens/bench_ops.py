"""Attention kernels alone: every path against SDPA, the authors' block and the machine's limit.

Notable:
- a time stands only beside an error against float64 that passed its limit;
- the path that a call really took is said, not the one that was asked for;
- ratios are of medians from one alternated run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from castling.attention import Softmax
from castling.attention.config import AttentionConfig
from castling.lens.gate import (
    FOREIGN_LIMITS,
    LIMITS,
    GateError,
    compared_rows,
    exact_result,
    relative_rms,
    require_close,
)
from castling.lens.machine import MachineLimit, machine_facts, measure_limit
from castling.lens.memory import peak_megabytes, resident_megabytes
from castling.lens.op_subjects import (
    REFERENCE,
    SDPA,
    OpSubject,
    Setting,
    moved_bytes,
    op_subjects,
    operations,
    path_taken,
)
from castling.lens.plots import Plot, speedups
from castling.lens.results import (
    BenchResult,
    crossover,
    percent,
    ratio,
    short,
    spread,
)
from castling.lens.timing import (
    Call,
    Clock,
    Timer,
    Timing,
    specialised,
    time_alternately,
    timer_for,
)
from castling.ops.paths import available_paths

SOFTMAX = "softmax"
_FAILURES = (GateError, ValueError, RuntimeError, AssertionError, ImportError, MemoryError)


@dataclass(frozen=True)
class OpMeasurement:
    """One kernel on one path in one setting.

    Attributes:
        kernel: as it was asked for; ``"softmax"`` is PyTorch's fused kernel.
        path: that ran: ``"naive"``, ``"compiled"``, ``"native"``, ``"triton"``; ``"sdpa"``, or
            ``"reference"`` for the authors' block.
        tokens: N.
        batch: B.
        heads: H.
        dim: d.
        dtype: of inputs and output.
        backward: whether the gradients of q, k, v and weights were computed as well.
        milliseconds: median time of a call; None where ``error`` says why.
        low: lower quartile, milliseconds.
        high: upper quartile, milliseconds.
        against_sdpa: how many times faster than PyTorch's fused softmax.
        against_reference: how many times faster than the authors' block.
        limit_share: shortest time that the machine could do it in, divided by the time.
        relative_rms: error of the output against float64; of the worst gradient with ``backward``.
        peak_megabytes: tensors alive at one time beyond the input, 10⁶ bytes.
        resident_megabytes: growth of the process, scratch memory included; None off Linux.
        error: why there is no time; empty otherwise.
    """

    kernel: str
    path: str
    tokens: int
    batch: int
    heads: int
    dim: int
    dtype: str
    backward: bool
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    against_sdpa: float | None = None
    against_reference: float | None = None
    limit_share: float | None = None
    relative_rms: float | None = None
    peak_megabytes: float | None = None
    resident_megabytes: float | None = None
    error: str = ""

    @property
    def label(self) -> str:
        """Kernel and path."""
        return f"{self.kernel} ({self.path})"

    @property
    def size(self) -> float:
        """Tokens."""
        return self.tokens

    @property
    def point(self) -> str:
        """Size and shape."""
        return f"N={self.tokens} B={self.batch} H={self.heads} d={self.dim} {self.dtype}"


@dataclass(frozen=True)
class OpsResult(BenchResult[OpMeasurement]):
    """What ``castling bench ops`` found."""

    head: ClassVar[tuple[str, ...]] = (
        *("kernel", "path", "N", "B", "H", "d", "dtype", "ms", "quartiles"),
        *("×SDPA", "×ref", "of limit", "rel. RMS", "peak MB", "RSS MB"),
    )
    axis: ClassVar[str] = "tokens"
    legend: ClassVar[str] = (
        "ms: median of alternated runs; ×SDPA, ×ref: times faster than PyTorch's fused softmax and "
        "than the authors' block in eager PyTorch; of limit: share of the machine's speed, "
        "max(operations / peak, bytes / bandwidth); rel. RMS: error against float64; peak MB: "
        "tensors alive at one time; RSS MB: growth of the process"
    )

    def cells(self, row: OpMeasurement) -> tuple[str, ...]:
        """See :class:`BenchResult`."""
        return (
            *(row.kernel, row.path, str(row.tokens), str(row.batch), str(row.heads), str(row.dim)),
            *(row.dtype, short(row.milliseconds), spread(row)),
            *(ratio(row.against_sdpa), ratio(row.against_reference), percent(row.limit_share)),
            "-" if row.relative_rms is None else f"{row.relative_rms:.0e}",
            *(_megabytes(row.peak_megabytes), _megabytes(row.resident_megabytes)),
        )

    def crossovers(self) -> dict[str, int | None]:
        """By label the fewest tokens from which on it beats SDPA, in the first shape measured."""
        first = next(iter(self.measurements), None)
        times: dict[str, dict[int, float]] = {}
        for row in self.measurements:
            assert first is not None
            shape = (row.batch, row.heads, row.dim, row.dtype)
            if shape == (first.batch, first.heads, first.dim, first.dtype) and row.milliseconds:
                times.setdefault(row.label, {})[row.tokens] = row.milliseconds
        baseline = times.pop(f"{SOFTMAX} ({SDPA})", {})
        return {label: crossover(mine, baseline) for label, mine in times.items()}

    def remarks(self) -> list[str]:
        """See :class:`BenchResult`."""
        return [
            f"{label}: faster than SDPA "
            + (f"from {tokens} tokens on" if tokens else "at none of these sizes")
            for label, tokens in self.crossovers().items()
        ]

    def plot(self) -> Plot:
        """Times faster than SDPA against tokens in the first shape measured; a panel each path."""
        first = self.measurements[0]
        shape = (first.batch, first.heads, first.dim, first.dtype)
        panels: dict[str, dict[str, dict[str, tuple[list[float], list[float]]]]] = {}
        for row in self.measurements:
            if row.against_sdpa is None or row.path == SDPA:
                continue
            if (row.batch, row.heads, row.dim, row.dtype) != shape:
                continue
            panel = "authors' block" if row.path == REFERENCE else f"{row.path} path"
            kernels = panels.setdefault(panel, {})
            xs, ys = kernels.setdefault(row.kernel, {}).setdefault("", ([], []))
            xs.append(row.tokens)
            ys.append(row.against_sdpa)
        return speedups(
            panels,
            x=self.axis,
            y="times faster than PyTorch's fused softmax",
            title=f"{'forward and backward' if first.backward else 'forward'}, B={first.batch}, "
            f"H={first.heads}, d={first.dim}, {first.dtype}",
        )


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
        rounds: timed rounds at most; in each, every subject runs once.
        seconds: time limit per setting; at least three rounds are made.
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
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        timer = timer or timer_for(device, clock)
        limits: dict[torch.dtype, MachineLimit] = {}
        found: list[OpMeasurement] = []
        for setting in settings:
            if setting.dtype not in limits:
                limits[setting.dtype] = measure_limit(device, setting.dtype, timer)
            run = _Comparison(setting, device, backward, limits[setting.dtype])
            chosen = available_paths(device) if paths is None else paths
            with specialised():
                subjects = {SOFTMAX: Softmax()} | dict(kernels)
                rows = run.measure(subjects, chosen, rounds, seconds, timer)
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
    finally:
        torch.set_num_threads(before)


class _Comparison:
    """All subjects in one setting."""

    def __init__(
        self, setting: Setting, device: torch.device, backward: bool, limit: MachineLimit
    ) -> None:
        self.setting, self.device, self.backward, self.limit = setting, device, backward, limit
        self.packed = setting.packed(device).requires_grad_(backward)
        shape = (setting.batch, setting.tokens, setting.heads * setting.dim)
        self.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        self.grad = self.grad.to(device=device, dtype=setting.dtype)

    def measure(
        self,
        kernels: Mapping[str, AttentionConfig],
        paths: Sequence[str],
        rounds: int,
        seconds: float,
        timer: Timer,
    ) -> list[OpMeasurement]:
        """Gate all, then time what passed."""
        rows: list[OpMeasurement] = []
        calls: dict[int, Call] = {}
        floors: dict[int, float | None] = {}
        for kernel, config in kernels.items():
            expected: _Expected | None = None
            for subject in op_subjects(kernel, config, paths, self.setting, self.packed):
                if not isinstance(subject, OpSubject):
                    name, path, reason = subject
                    rows.append(self._row(name, path, error=reason))
                    continue
                try:
                    expected = expected or self._expected(subject)
                    row = self._gated(subject, expected)
                    calls[len(rows)] = self._call(subject)
                    floors[len(rows)] = self._floor(config)
                    rows.append(row)
                except _FAILURES as error:
                    text = str(error).strip() or type(error).__name__
                    rows.append(self._row(kernel, subject.path, error=text.splitlines()[0]))
        times = time_alternately(calls, rounds=rounds, seconds=seconds, timer=timer)
        return self._with_ratios(rows, times, floors)

    def _call(self, subject: OpSubject) -> Call:
        packed, grad = self.packed, self.grad
        leaves = [packed, *subject.core.parameters()]

        def forward() -> Tensor:
            with torch.no_grad():
                return subject.call(packed)

        def both() -> tuple[Tensor, ...]:
            out = subject.call(packed)
            return torch.autograd.grad(out, leaves, grad, allow_unused=True)

        return both if self.backward else forward

    def _expected(self, subject: OpSubject) -> _Expected:
        rows = compared_rows(subject.core, self.setting.tokens)
        grad = None
        if self.backward:
            grad = self.grad if rows is None else torch.zeros_like(self.grad)
            if rows is not None:
                grad[:, rows] = self.grad[:, rows]
        setting = self.setting
        out, gradients = exact_result(
            subject.core, self.packed, setting.grid, setting.prefix, rows, grad
        )
        return _Expected(out, tuple(gradients), rows, grad)

    def _gated(self, subject: OpSubject, expected: _Expected) -> OpMeasurement:
        """The subject's row without times; raises where it is wrong or did not run."""
        packed = self.packed
        with torch.set_grad_enabled(self.backward):
            out, path = path_taken(lambda: subject.call(packed), subject.path)
        rows = slice(None) if expected.rows is None else expected.rows
        error = relative_rms(out[:, rows].cpu(), expected.out)
        foreign = subject.path in (SDPA, REFERENCE)
        limits = (FOREIGN_LIMITS if foreign else LIMITS)[self.setting.dtype]
        require_close("the output", error, limits[0])
        if expected.grad is not None:
            leaves = [packed, *subject.core.parameters()]
            found = torch.autograd.grad(out, leaves, expected.grad, allow_unused=True)
            errors = [
                float("inf") if mine is None else relative_rms(mine.cpu(), theirs)
                for mine, theirs in zip(found, expected.gradients, strict=True)
            ]
            error = max(errors)
            require_close("a gradient", error, limits[1])
        del out
        call = self._call(subject)
        if not foreign and path != subject.path:
            raise GateError(f"this kernel has no {subject.path} form, it ran on the {path} path")
        call()  # warm: compiled without gradients too
        # Compiled code is not followed operator by operator.
        peak = None if path == "compiled" else peak_megabytes(call, self.device)
        resident = resident_megabytes(call) if self.device.type == "cpu" else None
        row = self._row(subject.kernel, subject.path)
        return replace(row, relative_rms=error, peak_megabytes=peak, resident_megabytes=resident)

    def _row(self, kernel: str, path: str, error: str = "") -> OpMeasurement:
        s = self.setting
        dtype = _name(s.dtype)
        return OpMeasurement(
            kernel, path, s.tokens, s.batch, s.heads, s.dim, dtype, self.backward, error=error
        )

    def _floor(self, config: AttentionConfig) -> float | None:
        """Milliseconds that the machine needs at least."""
        work = operations(config, self.setting)
        if work is None:
            return None
        # Backwards there are twice the products; q, k, v, grad in, three gradients out.
        factor, touches = (3.0, 11 / 4) if self.backward else (1.0, 1.0)
        return self.limit.milliseconds(factor * work, touches * moved_bytes(self.setting))

    def _with_ratios(
        self,
        rows: list[OpMeasurement],
        times: Mapping[int, Timing],
        floors: Mapping[int, float | None],
    ) -> list[OpMeasurement]:
        sdpa = next((times[i].milliseconds for i in times if rows[i].path == SDPA), None)
        blocks = {rows[i].kernel: times[i].milliseconds for i in times if rows[i].path == REFERENCE}
        done = []
        for index, row in enumerate(rows):
            if index not in times:
                done.append(row)
                continue
            timing, floor = times[index], floors[index]
            mine, block = timing.milliseconds, blocks.get(row.kernel)
            values: dict[str, Any] = {
                "milliseconds": mine,
                "low": timing.low,
                "high": timing.high,
                "against_sdpa": None if sdpa is None else sdpa / mine,
                "against_reference": None if block is None else block / mine,
                "limit_share": None if floor is None else floor / mine,
            }
            done.append(replace(row, **values))
        return done


@dataclass(frozen=True)
class _Expected:
    """The float64 result that subjects of one kernel are compared with."""

    out: Tensor
    gradients: tuple[Tensor, ...]
    rows: Tensor | None
    grad: Tensor | None


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


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
