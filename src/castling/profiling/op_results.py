"""Result of ``castling bench ops``: table, files and plot."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from castling.profiling.formatting import percent, ratio, short, shown
from castling.profiling.op_candidates import REFERENCE, SDPA, SOFTMAX
from castling.profiling.plots import Panels, Plot, speedups
from castling.profiling.results import BenchResult, Measurement, crossover


@dataclass(frozen=True)
class OpMeasurement(Measurement):
    """One kernel on one backend in one setting.

    Attributes:
        kernel: its text, as given; ``"softmax"`` is PyTorch's fused kernel.
        backend: ``"naive"``, ``"compiled"``, ``"native"``, ``"triton"``; ``"sdpa"`` for
            PyTorch's fused softmax, ``"reference"`` for the authors' block.
        tokens: N.
        batch: B.
        heads: H.
        dim: d.
        dtype: of inputs and output.
        backward: whether the gradients of q, k, v and weights were computed as well.
        against_sdpa: how many times faster than PyTorch's fused softmax.
        against_reference: how many times faster than the authors' block.
        roofline_share: time at the roofline divided by the measured time.

    ``relative_rms`` is the error of the output against float64; of the worst gradient with
    ``backward``.
    """

    kernel: str
    backend: str
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
        """Kernel and backend."""
        return f"{self.kernel} ({self.backend})"

    @property
    def size(self) -> float:
        """Tokens."""
        return self.tokens

    @property
    def shape(self) -> tuple[int, int, int, str]:
        """(B, H, d, dtype): the setting without its tokens."""
        return self.batch, self.heads, self.dim, self.dtype

    @property
    def point(self) -> str:
        """Tokens and shape."""
        return f"N={self.tokens} B={self.batch} H={self.heads} d={self.dim} {self.dtype}"


@dataclass(frozen=True)
class OpsResult(BenchResult[OpMeasurement]):
    """Result of ``castling bench ops``."""

    row_class: ClassVar[type[Measurement]] = OpMeasurement
    head: ClassVar[tuple[str, ...]] = (
        *("kernel", "backend", "N", "B", "H", "d", "dtype", "ms", "quartiles"),
        *("×SDPA", "×ref", "of roofline", "rel. RMS", "peak MB", "RSS MB"),
    )
    axis: ClassVar[str] = "tokens"
    baseline: ClassVar[str] = "SDPA"
    legend: ClassVar[str] = (
        "ms: median of interleaved runs; ×SDPA, ×ref: times faster than PyTorch's fused softmax "
        "and than the authors' block in eager PyTorch; of roofline: share of the speed that peak "
        "FLOP/s and memory bandwidth of this machine allow, max(operations / peak, bytes / "
        "bandwidth); rel. RMS: error against float64; peak MB: peak memory of tensors; RSS MB: "
        "growth of the process"
    )

    def cells(self, row: OpMeasurement) -> tuple[str, ...]:
        """See :class:`BenchResult`."""
        return (
            *(
                row.kernel,
                row.backend,
                str(row.tokens),
                str(row.batch),
                str(row.heads),
                str(row.dim),
            ),
            *(row.dtype, short(row.milliseconds), row.quartiles),
            *(ratio(row.against_sdpa), ratio(row.against_reference), percent(row.roofline_share)),
            shown(row.relative_rms, ".0e"),
            *(shown(row.peak_megabytes, ".1f"), shown(row.resident_megabytes, ".1f")),
        )

    def crossovers(self) -> dict[str, int | None]:
        """Label → fewest tokens from which on it beats SDPA, in the first shape measured."""
        times: dict[str, dict[int, float]] = {}
        for row in self.measurements:
            if row.shape == self.measurements[0].shape and row.milliseconds:
                times.setdefault(row.label, {})[row.tokens] = row.milliseconds
        baseline = times.pop(f"{SOFTMAX} ({SDPA})", {})
        return {label: crossover(mine, baseline) for label, mine in times.items()}

    def plot(self) -> Plot:
        """Times faster than SDPA against tokens in the first shape measured; a panel per backend.

        The authors' blocks come last.
        """
        first = self.measurements[0]
        panels: Panels = {}
        for row in sorted(self.measurements, key=lambda row: row.backend == REFERENCE):
            if row.against_sdpa is None or row.backend == SDPA or row.shape != first.shape:
                continue
            panel = "authors' code" if row.backend == REFERENCE else f"{row.backend} backend"
            kernels = panels.setdefault(panel, {})
            xs, ys = kernels.setdefault(row.kernel, {}).setdefault("", ([], []))
            xs.append(row.tokens)
            ys.append(row.against_sdpa)
        return speedups(
            panels,
            x=self.axis,
            y="times faster than PyTorch's fused softmax",
            title=f"{'Forward and backward' if first.backward else 'Forward'}: B={first.batch}, "
            f"H={first.heads}, d={first.dim}, {first.dtype}",
        )
