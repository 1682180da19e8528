"""Result of ``castling bench models``: table, files and plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Self

from castling.ops.macs import CONVENTION
from castling.profiling.formatting import percent, ratio, short, shown
from castling.profiling.plots import Panels, Plot, speedups
from castling.profiling.results import BenchResult, Measurement, crossover


@dataclass(frozen=True)
class ModelMeasurement(Measurement):
    """One model in one runtime at one size.

    Attributes:
        model: name of the candidate.
        variant: the runtime: ``"eager"``, ``"folded"``, ``"compiled"``, ``"onnxruntime"`` or
            ``"openvino"``.
        height: of the image, pixels.
        width: of the image, pixels.
        batch: images per call.
        tokens: largest number of tokens that one of its attentions gets; None without attention.
        images_per_second: from the median time.
        against_host: how many times faster than the fastest softmax host in the same runtime.
        against_eager: how many times faster than the same model in eager; None in eager itself and
            where that was not timed.
        bound_share: time of the attention-free bound divided by this one, in the same runtime: 1
            where attention costs nothing.
        macs: multiply-accumulates per image.
        parameters: number of parameters.

    ``relative_rms`` is the error of the output against the naive backend (eager) or against eager
    (other runtimes).
    """

    model: str
    variant: str
    height: int
    width: int
    batch: int
    tokens: int | None = None
    _: KW_ONLY
    images_per_second: float | None = None
    against_host: float | None = None
    against_eager: float | None = None
    bound_share: float | None = None
    macs: int | None = None
    parameters: int | None = None

    @property
    def label(self) -> str:
        """Model and runtime."""
        return f"{self.model} ({self.variant})"

    @property
    def size(self) -> float:
        """Side of a square of the image's area, pixels."""
        return float((self.height * self.width) ** 0.5)

    @property
    def point(self) -> str:
        """Size and batch."""
        return f"{self.height}×{self.width}, batch {self.batch}"


@dataclass(frozen=True)
class ModelsResult(BenchResult[ModelMeasurement]):
    """Result of ``castling bench models``.

    Attributes:
        hosts: model → its softmax hosts.
        convention: what counts as a multiply-accumulate.
    """

    hosts: dict[str, tuple[str, ...]]
    convention: str = CONVENTION

    row_class: ClassVar[type[Measurement]] = ModelMeasurement
    head: ClassVar[tuple[str, ...]] = (
        *("model", "runtime", "size", "batch", "tokens", "ms", "quartiles", "images/s"),
        *("×host", "×eager", "of bound", "peak MB", "RSS MB", "GMACs", "M params"),
    )
    axis: ClassVar[str] = "image side, pixels"
    baseline: ClassVar[str] = "its softmax host"
    legend: ClassVar[str] = (
        "ms: median of interleaved runs; ×host: times faster than the fastest softmax host in the "
        "same runtime; ×eager: than the same model in eager; of bound: share of the speed of the "
        "same model with its attention deleted; peak MB: peak memory of tensors; RSS MB: growth of "
        "the process"
    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """See :class:`BenchResult`."""
        hosts = {model: tuple(hosts) for model, hosts in values.get("hosts", {}).items()}
        return super().from_dict({**values, "hosts": hosts})

    def cells(self, row: ModelMeasurement) -> tuple[str, ...]:
        """See :class:`BenchResult`."""
        return (
            *(row.model, row.variant, f"{row.height}×{row.width}", str(row.batch)),
            "-" if row.tokens is None else str(row.tokens),
            *(short(row.milliseconds), row.quartiles, short(row.images_per_second)),
            *(ratio(row.against_host), ratio(row.against_eager), percent(row.bound_share)),
            *(shown(row.peak_megabytes, ".1f"), shown(row.resident_megabytes, ".1f")),
            shown(None if row.macs is None else row.macs / 1e9, ".4f"),
            shown(None if row.parameters is None else row.parameters / 1e6, ".2f"),
        )

    def crossovers(self) -> dict[str, int | None]:
        """Label → fewest tokens from which on it beats its hosts, at the first batch measured.

        Models without a token count are given in pixels.
        """
        times: dict[tuple[str, str], dict[int, ModelMeasurement]] = {}
        for row in self.measurements:
            if row.batch == self.measurements[0].batch and row.milliseconds:
                times.setdefault((row.model, row.variant), {})[row.height * row.width] = row
        result: dict[str, int | None] = {}
        for (model, variant), rows in times.items():
            baseline: dict[int, float] = {}
            for host in self.hosts.get(model, ()):
                for pixels, row in times.get((host, variant), {}).items():
                    assert row.milliseconds is not None
                    baseline[pixels] = min(row.milliseconds, baseline.get(pixels, float("inf")))
            if baseline:
                mine = {pixels: row.milliseconds or 0.0 for pixels, row in rows.items()}
                found = crossover(mine, baseline)
                result[f"{model} ({variant})"] = (
                    None if found is None else rows[found].tokens or found
                )
        return result

    def plot(self) -> Plot:
        """Times faster than the host against image size; a panel per runtime and batch."""
        panels: Panels = {}
        for row in self.measurements:
            if row.against_host is None or row.model in self.hosts[row.model]:
                continue
            panel = panels.setdefault(f"{row.variant}, batch {row.batch}", {})
            ways = panel.setdefault(row.model, {})
            bound = None if row.bound_share is None else row.against_host / row.bound_share
            for way, value in (("measured", row.against_host), ("without attention", bound)):
                if value is not None:
                    xs, ys = ways.setdefault(way, ([], []))
                    xs.append(row.size)
                    ys.append(value)
        return speedups(panels, x=self.axis, y="times faster than the softmax host")
