"""What the performance work aimed at, and what was missed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from performance_tables import compared, default_backend, host_megabytes

from castling.profiling.formatting import percent, ratio
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.profiling.op_results import OpMeasurement, OpsResult

#: Where it was measured, the value as text, and whether the aim was met.
Outcome = tuple[str, str, bool]

#: Tokens → times faster than PyTorch's softmax.
_AGAINST_SOFTMAX = {49: 1.5, 196: 2.0, 1024: 7.0, 4096: 25.0, 16384: 100.0}
_AGAINST_REFERENCE, _ROOFLINE_SHARE, _BOUND_SHARE, _FOLDED = 3.0, 0.4, 0.9, 1.3
_STEPS = ", ".join(f"{aim:g}× at {tokens}" for tokens, aim in _AGAINST_SOFTMAX.items())
_AIMS = {
    "softmax": f"Linear-angular kernels faster than softmax: {_STEPS} tokens.",
    "reference": f"Linear-angular kernels {_AGAINST_REFERENCE:g}× faster than the authors' code, "
    "up to 4096 tokens.",
    "roofline": f"Linear-angular kernels at {percent(_ROOFLINE_SHARE)} of the roofline, from 196 "
    "tokens on.",
    "bound": f"Castling-DeiT-T at {percent(_BOUND_SHARE)} of the speed of its attention-free "
    "bound, in eager.",
    "host": "Castling-DeiT-T no slower than its softmax host, in eager.",
    "memory": "Castling-DeiT-T with no more memory than its softmax host, in eager.",
    "folded": f"CAS-ViT {_FOLDED:g}× faster after folding, one image (2× would be better).",
}


def aims_section(ops: Mapping[str, OpsResult], models: Mapping[str, ModelsResult]) -> list[str]:
    """One sentence per aim, with every case that misses it; nothing without measurements."""
    found: dict[str, list[Outcome]] = {aim: [] for aim in _AIMS}
    for name in ("bench_ops", "bench_ops_long"):
        for row in default_backend(ops[name]) if name in ops else ():
            if row.kernel.startswith("linear_angular") and row.dim == 64:
                for aim, outcome in _of_kernel(row):
                    found[aim].append(outcome)
    for name in ("bench_models", "bench_models_batch8"):
        for model in compared(models[name]) if name in models else ():
            if model.variant == "eager":
                for aim, outcome in _of_model(models[name], model):
                    found[aim].append(outcome)
    if "bench_models_folded" in models:
        for model in compared(models["bench_models_folded"]):
            gain = model.against_eager
            if model.model.startswith("cas_vit") and model.variant == "folded" and gain is not None:
                found["folded"].append((f"`{model.model}`", ratio(gain), gain >= _FOLDED))
    lines = [_sentence(_AIMS[aim], outcomes) for aim, outcomes in found.items() if outcomes]
    if not lines:
        return []
    head = ["## Aims, met and missed\n", "On one CPU thread; the tables below have the values.\n"]
    return [*head, *lines, ""]


def _of_kernel(row: OpMeasurement) -> Iterator[tuple[str, Outcome]]:
    where = f"`{row.kernel}` at {row.tokens} tokens"
    least = _AGAINST_SOFTMAX.get(row.tokens)
    if row.against_sdpa is not None and least is not None:
        yield "softmax", (where, ratio(row.against_sdpa), row.against_sdpa >= least)
    if row.against_reference is not None and row.tokens <= 4096:
        met = row.against_reference >= _AGAINST_REFERENCE
        yield "reference", (where, ratio(row.against_reference), met)
    if row.roofline_share is not None and row.tokens >= 196:
        met = row.roofline_share >= _ROOFLINE_SHARE
        yield "roofline", (where, percent(row.roofline_share), met)


def _of_model(result: ModelsResult, row: ModelMeasurement) -> Iterator[tuple[str, Outcome]]:
    where = f"{row.height} px, batch {row.batch}"
    if row.bound_share is not None:
        yield "bound", (where, percent(row.bound_share), row.bound_share >= _BOUND_SHARE)
    if row.against_host is not None:
        yield "host", (where, ratio(row.against_host), row.against_host >= 1)
    host = host_megabytes(result, row)
    if row.peak_megabytes is not None and host is not None:
        said = f"{row.peak_megabytes:.1f} MB (host {host:.1f} MB)"
        yield "memory", (where, said, row.peak_megabytes <= host)


def _sentence(aim: str, outcomes: list[Outcome]) -> str:
    missed = [f"{where}: {value}" for where, value, met in outcomes if not met]
    if missed:
        return f"- {aim} **Missed** in {len(missed)} of {len(outcomes)}: {'; '.join(missed)}."
    return f"- {aim} Met in all {len(outcomes)}."
