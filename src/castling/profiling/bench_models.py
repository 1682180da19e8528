"""``castling bench models``: whole models against their softmax host and attention-free bound.

Notable:
- no time without outputs that agree with the naive backend, or with eager PyTorch;
- detectors are timed whole, decoding and suppression included;
- a model is compared with the fastest of its softmax hosts in the same runtime;
- a folded model is also compared with the unfolded model of the same run;
- the attention-free bound, projections kept, shows how much a faster attention could gain.
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
from castling.profiling.attention_free import count_tokens
from castling.profiling.candidates import Candidate, Size
from castling.profiling.checks import (
    MODEL_LIMIT,
    RUNTIME_LIMIT,
    CheckError,
    require_close,
    require_sane,
    worst_rms,
)
from castling.profiling.comparison import FAILURES, Comparison
from castling.profiling.machine import machine_facts
from castling.profiling.memory import peak_megabytes, resident_megabytes
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.profiling.runtimes import VARIANTS, Run, Runtimes, runtime_versions, runtimes
from castling.profiling.whole import compared, whole
from castling.utils.devices import read_device
from castling.utils.text import did_you_mean, first_line
from castling.utils.timing import Clock, Timer, cpu_threads, specialised, timer_for

#: Model and runtime.
_Key = tuple[str, str]


def bench_models(
    candidates: Sequence[Candidate],
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
        candidates: models; each is compared with the hosts and the bound that it names.
        sizes: (height, width) in pixels.
        batches: images per call.
        variants: runtimes, of ``VARIANTS``.
        rounds: maximum number of timed runs per candidate and runtime.
        seconds: time limit per size and batch, shared evenly; each runs at least three times.
        device: where to measure.
        threads: CPU threads; None leaves PyTorch's number.
        clock: ``"wall"``, or ``"cpu"`` for one thread on a busy machine.
        timer: replaces the clock.
        report: called with each measurement when it is done.

    Returns:
        Measurements by size, batch, candidate, runtime. Candidates that cannot be built, exported
        or run, or fail their check, have ``error`` set and no time.

    Raises:
        ValueError: nothing to measure, an unknown runtime, or a number is not positive.
    """
    if not candidates or not sizes or not batches or not variants:
        raise ValueError("bench models needs at least one model, size, batch and runtime")
    if rounds < 1 or min(batches) < 1 or min(min(size) for size in sizes) < 1:
        raise ValueError("batches, rounds and sizes must be positive")
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise ValueError(
            f"no runtime {unknown[0]!r}; there are: {', '.join(VARIANTS)}"
            f"{did_you_mean(unknown[0], VARIANTS)}"
        )
    device = read_device(device)
    with cpu_threads(threads):
        timer = timer or timer_for(device, clock)
        found: list[ModelMeasurement] = []
        for size in sizes:
            for batch in batches:
                bench = _Bench(candidates, size, batch, device)
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
        hosts = {candidate.name: candidate.hosts for candidate in candidates}
        return ModelsResult(tuple(found), facts, hosts)


class _Bench:
    """One size and batch: its images, and the checks and calls of its candidates."""

    def __init__(
        self, candidates: Sequence[Candidate], size: Size, batch: int, device: torch.device
    ) -> None:
        self.candidates = {candidate.name: candidate for candidate in candidates}
        self.size, self.batch, self.device = size, batch, device
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn((batch, 3, *size), generator=generator).to(device)

    def entered(
        self, variants: Sequence[str], stack: ExitStack
    ) -> Comparison[_Key, ModelMeasurement]:
        """All models in all runtimes, checked; ``stack`` closes the runtimes."""
        found: Comparison[_Key, ModelMeasurement] = Comparison()
        for name, candidate in self.candidates.items():
            blank = ModelMeasurement(name, "", *self.size, self.batch)
            try:
                model = self._built(candidate)
                tokens = count_tokens(model, self.images)
                blank = replace(blank, tokens=tokens, **self._counted(model))
                expected, error = self._checked(name, model)
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

    def _built(self, candidate: Candidate) -> nn.Module:
        torch.manual_seed(0)
        return whole(candidate.build(self.size).eval().to(self.device))

    def _counted(self, model: nn.Module) -> dict[str, Any]:
        counted = macs(model, (3, *self.size))
        return {"macs": counted.total, "parameters": counted.parameters}

    def _checked(self, name: str, model: nn.Module) -> tuple[dict[str, Tensor], float | None]:
        """Outputs, and their error against the naive backend for models with attention of ours."""
        if auxiliaries(model):
            raise CheckError(f"{name} still has auxiliary branches, which are for training only")
        out = compared(model(self.images))
        require_sane(name, out, self.batch)
        if not any(isinstance(module, AttentionCore) for module in model.modules()):
            return out, None
        with attention_backend("naive"):
            error = worst_rms(out, compared(model(self.images)))
        require_close(f"{name}'s output", error, MODEL_LIMIT)
        return out, error

    def _ready(
        self, ways: Runtimes, row: ModelMeasurement, expected: dict[str, Tensor]
    ) -> tuple[Run, ModelMeasurement]:
        call = ways.prepare(row.variant)
        if row.variant != "eager":
            error = worst_rms(compared(ways.named(row.variant, call())), expected)
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
        """One model's time against those it is compared with."""
        name, variant = key
        mine, candidate = times[key], self.candidates[name]
        hosts = [times[host, variant] for host in candidate.hosts if (host, variant) in times]
        eager = None if variant == "eager" else times.get((name, "eager"))
        bound = times.get((candidate.bound, variant))
        return {
            "images_per_second": self.batch / mine * 1e3,
            "against_host": min(hosts) / mine if hosts else None,
            "against_eager": None if eager is None else eager / mine,
            "bound_share": None if bound is None else bound / mine,
        }
