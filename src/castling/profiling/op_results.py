"""What ``castling bench ops`` found, as table, files and picture."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from castling.profiling.op_candidates import REFERENCE, SDPA, SOFTMAX
from castling.profiling.plots import Plot, speedups
from castling.profiling.results import (
    BenchResult,
    Measurement,
    crossover,
    percent,
    ratio,
    short,
    shown,
    spread,
)


@dataclass(frozen=True)
class OpMeasurement(Measurement):
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
        against_sdpa: how many times faster than PyTorch's fused softmax.
        against_reference: how many times faster than the authors' block.
        roofline_share: shortest time that the machine could do it in, divided by the time.

    The error ``relative_rms`` is of the output against float64; of the worst gradient with
    ``backward``.
    """

    kernel: str
    path: str
    tokens: int
    batch: int
    heads: int
    dim: int
    dtype: str
    backward: bool
    _: KW_ONLY
    against_sdpa: float | None = None
    against_reference: float | None = None
    roofline_share: float | None = None

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
    baseline: ClassVar[str] = "SDPA"
    legend: ClassVar[str] = (
        "ms: median of alternated runs; ×SDPA, ×ref: times faster than PyTorch's fused softmax and "
        "than the authors' block in eager PyTorch; of limit: share of the machine's speed, "
        "max(operations / peak, bytes / bandwidth), the peak that of a large product or of "
        "multiply-adds in registers; rel. RMS: error against float64; peak MB: "
        "tensors alive at one time; RSS MB: growth of the process"
    )

    def cells(self, row: OpMeasurement) -> tuple[str, ...]:
        """See :class:`BenchResult`."""
        return (
            *(row.kernel, row.path, str(row.tokens), str(row.batch), str(row.heads), str(row.dim)),
            *(row.dtype, short(row.milliseconds), spread(row)),
            *(ratio(row.against_sdpa), ratio(row.against_reference), percent(row.roofline_share)),
            shown(row.relative_rms, ".0e"),
            *(shown(row.peak_megabytes, ".1f"), shown(row.resident_megabytes, ".1f")),
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
