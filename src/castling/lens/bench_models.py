"""Whole models: every runtime against the softmax host and against the cap of no attention at all.

Notable:
- a time stands only beside an output that agreed with the naive path, or with eager PyTorch;
- a model is compared with the fastest of its softmax hosts in the same runtime;
- a folded model is compared with the same model as it was, in the same run;
- the cap says how much there is to win: its projections stay, its attention core is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from castling.attention import auxiliaries
from castling.attention.base import AttentionCore
from castling.lens.gate import (
    MODEL_LIMIT,
    RUNTIME_LIMIT,
    GateError,
    relative_rms,
    require_close,
    require_sane,
)
from castling.lens.machine import machine_facts
from castling.lens.memory import peak_megabytes, resident_megabytes
from castling.lens.plots import Plot, speedups
from castling.lens.results import BenchResult, crossover, percent, ratio, short, spread
from castling.lens.runtimes import VARIANTS, Run, Runtimes, runtime_versions, runtimes
from castling.lens.subjects import Size, Subject, count_tokens
from castling.lens.timing import Clock, Timer, Timing, specialised, time_alternately, timer_for
from castling.ops.macs import CONVENTION, macs
from castling.ops.paths import attention_path

_FAILURES = (GateError, ValueError, RuntimeError, AssertionError, ImportError, MemoryError)


@dataclass(frozen=True)
class ModelMeasurement:
    """One model in one runtime at one size.

    Attributes:
        model: name of the subject.
        variant: ``"eager"``, ``"folded"``, ``"compiled"``, ``"onnxruntime"`` or ``"openvino"``.
        height: of the image, pixels.
        width: of the image, pixels.
        batch: images a call.
        tokens: most tokens that one attention inside meets; None where there is none.
        milliseconds: median time of a call; None where ``error`` says why.
        low: lower quartile, milliseconds.
        high: upper quartile, milliseconds.
        images_per_second: from the median.
        against_host: how many times faster than the fastest softmax host in the same runtime.
        against_eager: how many times faster than the same model in eager; None in eager itself and
            where that was not timed.
        cap_share: the cap's time divided by this one, in the same runtime: 1 where attention is
            free.
        peak_megabytes: tensors alive at one time beyond weights and input, 10⁶ bytes; eager and
            folded only.
        resident_megabytes: growth of the process in a call; None off Linux.
        macs: multiply-accumulates an image.
        parameters: their number.
        relative_rms: of the output, against the naive path (eager) or against eager (others).
        error: why there is no time; empty otherwise.
    """

    model: str
    variant: str
    height: int
    width: int
    batch: int
    tokens: int | None = None
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    images_per_second: float | None = None
    against_host: float | None = None
    against_eager: float | None = None
    cap_share: float | None = None
    peak_megabytes: float | None = None
    resident_megabytes: float | None = None
    macs: int | None = None
    parameters: int | None = None
    relative_rms: float | None = None
    error: str = ""

    @property
    def label(self) -> str:
        """Model and runtime."""
        return f"{self.model} ({self.variant})"

    @property
    def size(self) -> float:
        """Side of the image, or of the square with as many pixels."""
        return float((self.height * self.width) ** 0.5)

    @property
    def point(self) -> str:
        """Size and batch."""
        return f"{self.height}×{self.width}, batch {self.batch}"


@dataclass(frozen=True)
class ModelsResult(BenchResult[ModelMeasurement]):
    """What ``castling bench models`` found.

    Attributes:
        hosts: model → its softmax hosts.
        convention: what counts as a multiply-accumulate.
    """

    hosts: dict[str, tuple[str, ...]]
    convention: str = CONVENTION

    head: ClassVar[tuple[str, ...]] = (
        *("model", "runtime", "size", "batch", "tokens", "ms", "quartiles", "images/s"),
        *("×host", "×eager", "of cap", "peak MB", "RSS MB", "GMACs", "M params"),
    )
    axis: ClassVar[str] = "image side, pixels"
    legend: ClassVar[str] = (
        "ms: median of alternated runs; ×host: times faster than the fastest softmax host in the "
        "same runtime; ×eager: than the same model in eager; of cap: share of the speed of the "
        "same model with its attention deleted; peak MB: tensors alive at one time; RSS MB: growth "
        "of the process"
    )

    def cells(self, row: ModelMeasurement) -> tuple[str, ...]:
        """See :class:`BenchResult`."""
        return (
            *(row.model, row.variant, f"{row.height}×{row.width}", str(row.batch)),
            "-" if row.tokens is None else str(row.tokens),
            *(short(row.milliseconds), spread(row), short(row.images_per_second)),
            *(ratio(row.against_host), ratio(row.against_eager), percent(row.cap_share)),
            *(_shown(row.peak_megabytes, ".1f"), _shown(row.resident_megabytes, ".1f")),
            _shown(None if row.macs is None else row.macs / 1e9, ".4f"),
            _shown(None if row.parameters is None else row.parameters / 1e6, ".2f"),
        )

    def crossovers(self) -> dict[str, int | None]:
        """By label the fewest tokens from which on it beats its hosts, at the first batch measured.

        Where models have no tokens of one kind, pixels stand for them.
        """
        times: dict[tuple[str, str], dict[int, ModelMeasurement]] = {}
        first = self.measurements[0].batch if self.measurements else 1
        for row in self.measurements:
            if row.batch == first and row.milliseconds:
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

    def remarks(self) -> list[str]:
        """See :class:`BenchResult`."""
        return [
            f"{label}: faster than its softmax host "
            + (f"from {tokens} tokens on" if tokens else "at none of these sizes")
            for label, tokens in self.crossovers().items()
        ]

    def plot(self) -> Plot:
        """Times faster than the host against image size; a panel for each runtime and batch."""
        panels: dict[str, dict[str, dict[str, tuple[list[float], list[float]]]]] = {}
        for row in self.measurements:
            if row.against_host is None or row.model in self.hosts[row.model]:
                continue
            panel = panels.setdefault(f"{row.variant}, batch {row.batch}", {})
            ways = panel.setdefault(row.model, {})
            cap = None if row.cap_share is None else row.against_host / row.cap_share
            for way, value in (("measured", row.against_host), ("without attention", cap)):
                if value is not None:
                    xs, ys = ways.setdefault(way, ([], []))
                    xs.append(row.size)
                    ys.append(value)
        return speedups(panels, x=self.axis, y="times faster than softmax")


def bench_models(
    subjects: Sequence[Subject],
    sizes: Sequence[Size],
    *,
    batches: Sequence[int] = (1,),
    variants: Sequence[str] = ("eager",),
    rounds: int = 9,
    seconds: float = 10.0,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    clock: Clock = "wall",
    timer: Timer | None = None,
    report: Callable[[ModelMeasurement], None] | None = None,
) -> ModelsResult:
    """Measure every model in every runtime at every size and batch.

    Args:
        subjects: models; those that name hosts and a cap are compared with them.
        sizes: (height, width) in pixels.
        batches: images a call.
        variants: runtimes, of ``VARIANTS``.
        rounds: timed rounds at most; in each, every subject runs once in every runtime.
        seconds: time limit per size and batch; at least three rounds are made.
        device: where.
        threads: CPU threads; None leaves PyTorch's number.
        clock: ``"wall"``, or ``"cpu"`` for one thread on a busy machine.
        timer: a clock of another kind.
        report: called with each measurement as it is done.

    Returns:
        measurements by size, batch, subject, runtime. What cannot be built, exported or run, or
        fails its gate, has ``error`` set and no time.

    Raises:
        ValueError: nothing to measure, an unknown runtime, or a number that is not positive.
    """
    if not subjects or not sizes or not batches or not variants:
        raise ValueError("bench models needs at least one model, size, batch and runtime")
    if rounds < 1 or min(batches) < 1 or min(min(size) for size in sizes) < 1:
        raise ValueError("batches, rounds and sizes must be positive")
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise ValueError(f"no runtime {unknown[0]!r}; there are: {', '.join(VARIANTS)}")
    device = torch.device(device)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        timer = timer or timer_for(device, clock)
        found: list[ModelMeasurement] = []
        for size in sizes:
            for batch in batches:
                with specialised(), torch.no_grad():
                    run = _Comparison(subjects, size, batch, device)
                    rows = run.measure(variants, rounds, seconds, timer)
                for row in rows:
                    if report is not None:
                        report(row)
                found += rows
        facts = machine_facts(device) | runtime_versions(list(variants))
        facts["clock"] = clock
        hosts = {subject.name: subject.hosts for subject in subjects}
        return ModelsResult(tuple(found), facts, hosts)
    finally:
        torch.set_num_threads(before)


class _Comparison:
    """All subjects at one size and batch."""

    def __init__(
        self, subjects: Sequence[Subject], size: Size, batch: int, device: torch.device
    ) -> None:
        self.subjects, self.size, self.batch = subjects, size, batch
        self.device = device
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn((batch, 3, *size), generator=generator).to(device)

    def measure(
        self, variants: Sequence[str], rounds: int, seconds: float, timer: Timer
    ) -> list[ModelMeasurement]:
        """Gate all, then time what passed."""
        rows: dict[tuple[str, str], ModelMeasurement] = {}
        calls: dict[tuple[str, str], Run] = {}
        with ExitStack() as stack:
            for subject in self.subjects:
                blank = ModelMeasurement(subject.name, "", *self.size, self.batch)
                try:
                    model = self._built(subject)
                    tokens = count_tokens(model, self.images)
                    blank = replace(blank, tokens=tokens, **self._facts(model))
                    expected, error = self._gated(subject.name, model)
                except _FAILURES as failure:
                    for variant in variants:
                        row = replace(blank, variant=variant, error=_line(failure))
                        rows[subject.name, variant] = row
                    continue
                ways = stack.enter_context(runtimes(model, self.images))
                for variant in variants:
                    key = subject.name, variant
                    row = replace(blank, variant=variant, relative_rms=error)
                    try:
                        calls[key], rows[key] = self._ready(ways, row, expected)
                    except _FAILURES as failure:
                        rows[key] = replace(row, relative_rms=None, error=_line(failure))
            times = time_alternately(calls, rounds=rounds, seconds=seconds, timer=timer)
        return self._with_ratios(rows, times)

    def _built(self, subject: Subject) -> nn.Module:
        torch.manual_seed(0)
        return subject.build(self.size).eval().to(self.device)

    def _facts(self, model: nn.Module) -> dict[str, Any]:
        counted = macs(model, (3, *self.size))
        return {"macs": counted.total, "parameters": counted.parameters}

    def _gated(self, name: str, model: nn.Module) -> tuple[Tensor, float | None]:
        """Output, and its distance from the naive path where the model has attention of ours."""
        if auxiliaries(model):
            raise GateError(f"{name} still holds auxiliary branches: they are for training only")
        out = require_sane(name, model(self.images), self.batch)
        if not any(isinstance(module, AttentionCore) for module in model.modules()):
            return out, None
        with attention_path("naive"):
            error = relative_rms(out, model(self.images))
        require_close(f"{name}'s output", error, MODEL_LIMIT)
        return out, error

    def _ready(
        self, ways: Runtimes, row: ModelMeasurement, expected: Tensor
    ) -> tuple[Run, ModelMeasurement]:
        call = ways.prepare(row.variant)
        if row.variant != "eager":
            out = torch.as_tensor(call())
            error = relative_rms(out.cpu(), expected.cpu())
            require_close(f"{row.model}'s output in {row.variant}", error, RUNTIME_LIMIT)
            row = replace(row, relative_rms=error)
        if row.variant == "folded":
            row = replace(row, **self._facts(ways.folded))
        if row.variant in ("eager", "folded"):
            row = replace(row, peak_megabytes=peak_megabytes(call, self.device))
        if self.device.type == "cpu":
            row = replace(row, resident_megabytes=resident_megabytes(call))
        return call, row

    def _with_ratios(
        self, rows: dict[tuple[str, str], ModelMeasurement], times: dict[tuple[str, str], Timing]
    ) -> list[ModelMeasurement]:
        subjects = {subject.name: subject for subject in self.subjects}
        done = []
        for key, row in rows.items():
            if key not in times:
                done.append(row)
                continue
            name, variant = key
            timing, subject = times[key], subjects[name]
            mine = timing.milliseconds
            hosts = [times[h, variant].milliseconds for h in subject.hosts if (h, variant) in times]
            eager = None if variant == "eager" else times.get((name, "eager"))
            cap = times.get((subject.cap, variant))
            done.append(
                replace(
                    row,
                    milliseconds=mine,
                    low=timing.low,
                    high=timing.high,
                    images_per_second=self.batch / mine * 1e3,
                    against_host=min(hosts) / mine if hosts else None,
                    against_eager=None if eager is None else eager.milliseconds / mine,
                    cap_share=None if cap is None else cap.milliseconds / mine,
                )
            )
        return done


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
