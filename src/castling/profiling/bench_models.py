"""Whole models: every runtime against the softmax host and against the cap of no attention at all.

Notable:
- a time stands only beside an output that agreed with the naive path, or with eager PyTorch;
- a model is compared with the fastest of its softmax hosts in the same runtime;
- a folded model is compared with the same model as it was, in the same run;
- the cap says how much there is to win: its projections stay, its attention core is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from castling.attention import auxiliaries
from castling.attention.base import AttentionCore
from castling.ops.backends import attention_backend
from castling.ops.macs import macs
from castling.profiling.comparison import FAILURES, Comparison
from castling.profiling.gate import (
    MODEL_LIMIT,
    RUNTIME_LIMIT,
    GateError,
    relative_rms,
    require_close,
    require_sane,
)
from castling.profiling.machine import machine_facts
from castling.profiling.memory import peak_megabytes, resident_megabytes
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.profiling.runtimes import VARIANTS, Run, Runtimes, runtime_versions, runtimes
from castling.profiling.subjects import Size, Subject, count_tokens
from castling.profiling.timing import Clock, Timer, cpu_threads, specialised, timer_for
from castling.utils.text import first_line

#: Model and runtime.
_Key = tuple[str, str]


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
        rounds: timed runs of each subject in each runtime at most.
        seconds: time limit per size and batch, shared out evenly; each runs at least three times.
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
    with cpu_threads(threads):
        timer = timer or timer_for(device, clock)
        found: list[ModelMeasurement] = []
        for size in sizes:
            for batch in batches:
                bench = _Bench(subjects, size, batch, device)
                with specialised(), torch.no_grad(), ExitStack() as stack:
                    entered = bench.entered(variants, stack)
                    rows = entered.measure(
                        bench.ratios, rounds=rounds, seconds=seconds, timer=timer
                    )
                for row in rows:
                    if report is not None:
                        report(row)
                found += rows
        facts = machine_facts(device) | runtime_versions(list(variants)) | {"clock": clock}
        hosts = {subject.name: subject.hosts for subject in subjects}
        return ModelsResult(tuple(found), facts, hosts)


class _Bench:
    """One size and batch: its images, and what is done with every model there."""

    def __init__(
        self, subjects: Sequence[Subject], size: Size, batch: int, device: torch.device
    ) -> None:
        self.subjects = {subject.name: subject for subject in subjects}
        self.size, self.batch, self.device = size, batch, device
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn((batch, 3, *size), generator=generator).to(device)

    def entered(
        self, variants: Sequence[str], stack: ExitStack
    ) -> Comparison[_Key, ModelMeasurement]:
        """All models in all runtimes, gated; ``stack`` closes what they run in."""
        found: Comparison[_Key, ModelMeasurement] = Comparison()
        for name, subject in self.subjects.items():
            blank = ModelMeasurement(name, "", *self.size, self.batch)
            try:
                model = self._built(subject)
                tokens = count_tokens(model, self.images)
                blank = replace(blank, tokens=tokens, **self._counted(model))
                expected, error = self._gated(name, model)
            except FAILURES as failure:
                for variant in variants:
                    row = replace(blank, variant=variant)
                    found.refuse((name, variant), row, first_line(failure))
                continue
            ways = stack.enter_context(runtimes(model, self.images))
            for variant in variants:
                key, row = (name, variant), replace(blank, variant=variant)
                with found.trying(key, row):
                    row = replace(row, relative_rms=error)
                    found.enter(key, *self._ready(ways, row, expected))
        return found

    def _built(self, subject: Subject) -> nn.Module:
        torch.manual_seed(0)
        return subject.build(self.size).eval().to(self.device)

    def _counted(self, model: nn.Module) -> dict[str, Any]:
        counted = macs(model, (3, *self.size))
        return {"macs": counted.total, "parameters": counted.parameters}

    def _gated(self, name: str, model: nn.Module) -> tuple[Tensor, float | None]:
        """Output, and its distance from the naive path where the model has attention of ours."""
        if auxiliaries(model):
            raise GateError(f"{name} still holds auxiliary branches: they are for training only")
        out = require_sane(name, model(self.images), self.batch)
        if not any(isinstance(module, AttentionCore) for module in model.modules()):
            return out, None
        with attention_backend("naive"):
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
            row = replace(row, **self._counted(ways.folded))
        if row.variant in ("eager", "folded"):
            row = replace(row, peak_megabytes=peak_megabytes(call, self.device))
        if self.device.type == "cpu":
            row = replace(row, resident_megabytes=resident_megabytes(call))
        return call, row

    def ratios(self, key: _Key, times: Mapping[_Key, float]) -> dict[str, Any]:
        """Of one model's time to those that it is compared with."""
        name, variant = key
        mine, subject = times[key], self.subjects[name]
        hosts = [times[host, variant] for host in subject.hosts if (host, variant) in times]
        eager = None if variant == "eager" else times.get((name, "eager"))
        cap = times.get((subject.cap, variant))
        return {
            "images_per_second": self.batch / mine * 1e3,
            "against_host": min(hosts) / mine if hosts else None,
            "against_eager": None if eager is None else eager / mine,
            "cap_share": None if cap is None else cap / mine,
        }
