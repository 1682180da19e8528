"""The sections of the page of measured speeds; each is empty without its measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from performance_tables import (
    captions,
    compared,
    default_backend,
    host_megabytes,
    read,
    table,
    threads_of,
)

from castling.profiling.formatting import percent, ratio, short
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.profiling.op_candidates import REFERENCE, SDPA
from castling.profiling.op_results import OpMeasurement, OpsResult
from castling.profiling.results import Measurement

#: The kernel whose cost per token grows with d³; ranges of the linear kernels leave it out.
EXACT = "quadratic_taylor:form=exact"
#: File → what is special about its kernels.
SHAPES = {
    "bench_ops_batch8": "batch 8",
    "bench_ops_shapes": "other head widths",
    "bench_ops_bfloat16": "bfloat16",
    "bench_ops_avx2": "AVX2 only",
}
_RUNTIMES = ("eager", "folded", "compiled", "onnxruntime", "openvino")


def speedup_range(rows: Iterable[OpMeasurement], tokens: int) -> str:
    """``1.6–1.9×``: slowest and fastest kernel against softmax."""
    values = [row.against_sdpa for row in rows if row.tokens == tokens and row.against_sdpa]
    if not values:
        return "–"
    low, high = (f"{v:.2g}" if v < 10 else f"{v:.0f}" for v in (min(values), max(values)))
    said = f"{low}×" if low == high else f"{low}–{high}×"
    return _bold_if_slower(said, min(values))


def kernels_section(title: str, results: Mapping[str, OpsResult]) -> list[str]:
    """Milliseconds and speedup of every kernel by tokens, from one or several files."""
    if not results:
        return []
    cells: dict[str, dict[int, str]] = {}
    for result in results.values():
        for row in [r for r in result.measurements if r.backend == SDPA]:
            cells.setdefault(row.kernel, {})[row.tokens] = f"{short(row.milliseconds)} ms"
        for row in default_backend(result):
            said = f"{short(row.milliseconds)} ms, {ratio(row.against_sdpa)}"
            cells.setdefault(row.kernel, {})[row.tokens] = _bold_if_slower(said, row.against_sdpa)
    name, first = next(iter(results.items()))
    row = first.measurements[0]
    return [
        f"## {title}\n",
        f"Time of one call, and times faster than softmax; batch {row.batch}, {row.heads} heads of "
        f"{row.dim} channels, {row.dtype}.\n",
        *_by_tokens(["kernel"], {(f"`{kernel}`",): mine for kernel, mine in cells.items()}),
        *captions(results),
        *_failures(row for result in results.values() for row in result.measurements),
        f"![Times faster than softmax against tokens](images/{name}.png)\n",
    ]


def models_section(models: Mapping[str, ModelsResult]) -> list[str]:
    """One row per model, size and batch, one column per runtime."""
    if not models:
        return []
    cells: dict[tuple[str, int, int], dict[str, str]] = {}
    for result in models.values():
        for row in compared(result):
            mine = cells.setdefault((row.model, row.height, row.batch), {})
            said = f"{short(row.milliseconds)} ms, {ratio(row.against_host)}"
            mine.setdefault(row.variant, _bold_if_slower(said, row.against_host))
            if row.variant == "eager":
                mine.setdefault("bound", percent(row.bound_share))
                mine.setdefault("memory", _megabytes(result, row))
    order = list(dict.fromkeys(model for model, _, _ in cells))
    rows = sorted(cells.items(), key=lambda cell: (order.index(cell[0][0]), *cell[0][1:]))
    columns = (*_RUNTIMES, "bound", "memory")
    picture = "![Times faster than the softmax host against size](images/bench_models.png)\n"
    return [
        "## Whole models, by size and runtime\n",
        "Time of one call, and times faster than the fastest softmax host in the same runtime. *Of "
        "bound* is the share of the attention-free bound's speed, *memory* the peak of tensors "
        "(host in brackets), both in eager.\n",
        *table(
            ["model", "pixels", "batch", *_RUNTIMES, "of bound", "memory, MB"],
            (
                [f"`{model}`", str(side), str(batch), *(mine.get(key, "–") for key in columns)]
                for (model, side, batch), mine in rows
            ),
        ),
        *captions(models),
        *_failures(row for result in models.values() for row in result.measurements),
        *([picture] if "bench_models" in models else []),
    ]


def _megabytes(result: ModelsResult, row: ModelMeasurement) -> str:
    host = host_megabytes(result, row)
    mine = "–" if row.peak_megabytes is None else f"{row.peak_megabytes:.1f}"
    return mine if host is None else f"{mine} ({host:.1f})"


def shapes_section(results: Mapping[str, OpsResult]) -> list[str]:
    """Ranges of the speedup in other shapes."""
    if not results:
        return []
    groups: dict[tuple[str, ...], list[OpMeasurement]] = {}
    for name, result in results.items():
        for row in default_backend(result):
            shape = f"batch {row.batch}, {row.heads}×{row.dim} channels, {row.dtype}"
            shape += ", AVX2 only" if name == "bench_ops_avx2" else ""
            kernels = f"`{EXACT}`" if row.kernel == EXACT else "linear kernels"
            groups.setdefault((shape, kernels), []).append(row)
    cells = {
        key: {tokens: speedup_range(rows, tokens) for tokens in {row.tokens for row in rows}}
        for key, rows in groups.items()
    }
    return [
        "## Other shapes\n",
        "Times faster than softmax, forward: from the slowest to the fastest kernel.\n",
        *_by_tokens(["shape", "kernels"], cells),
        *captions(results),
    ]


def _by_tokens(head: list[str], cells: Mapping[tuple[str, ...], Mapping[int, str]]) -> list[str]:
    sizes = sorted({tokens for by_size in cells.values() for tokens in by_size})
    return table(
        [*head, *(f"{tokens} tokens" for tokens in sizes)],
        ([*key, *(by_size.get(n, "–") for n in sizes)] for key, by_size in cells.items()),
    )


def memory_section(results: Mapping[str, OpsResult]) -> list[str]:
    """Peak memory of the kernels, as one paragraph."""
    rows = [row for result in results.values() for row in result.measurements if not row.error]
    if not rows:
        return []
    tokens = max(row.tokens for row in rows)
    default = [row for result in results.values() for row in default_backend(result)]
    groups = {
        "softmax": [row for row in rows if row.backend == SDPA],
        "castling": default,
        "the authors' code": [row for row in rows if row.backend == REFERENCE],
    }
    peaks = {
        what: max((r.peak_megabytes or 0.0 for r in mine if r.tokens == tokens), default=0.0)
        for what, mine in groups.items()
    }
    said = ", ".join(f"{what} {short(peak)} MB" for what, peak in peaks.items() if peak)
    return [
        "## Memory of the kernels\n",
        f"Peak memory of tensors in a forward call at {tokens} tokens, maximum over all kernels: "
        f"{said}.\n",
    ]


def plans_section(results: Path) -> list[str]:
    """One line per plan."""
    plans = {path.stem: read(path) for path in sorted(results.glob("plan_*.json"))}
    if not plans:
        return []
    lines = [
        "## Plans\n",
        "`castling plan MODEL --image_size SIZE --threads 1 --output FILE` measures every "
        "attention layer with softmax and with linear attention inside the running model, and "
        "keeps the faster one.\n",
    ]
    for name, plan in plans.items():
        predicted, verified = plan["predicted"], plan["verified"]
        linear = [layer for layer in plan["layers"] if layer["choice"] == "linear"]
        said = f"predicted {short(predicted['planned'])} ms"
        if verified:
            off = predicted["planned"] / verified["planned"] - 1
            said = (
                f"all softmax {short(verified['softmax'])} ms, all linear "
                f"{short(verified['linear'])} ms, planned {short(verified['planned'])} ms "
                f"({said}, off by {100 * off:+.1f} %)"
            )
        lines.append(
            f"- [`{plan['model']}`](../benchmarks/results/{name}.json), "
            f"{'×'.join(map(str, plan['image_size']))} pixels: {len(linear)} of "
            f"{len(plan['layers'])} layers linear; {said}."
        )
    first = next(iter(plans.values()))
    return [*lines, "", f"{first['device']}, {threads_of(first)}, PyTorch {first['torch']}.", ""]


def gpu_section(lists: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Links to GPU measurements, and what the Triton compiler reports of our kernels."""
    lines = []
    for name, rows in lists.items():
        link = f"[{name}.csv](../benchmarks/results/{name}.csv)"
        if name != "compile_kernels":
            lines.append(f"- {link}: {len(rows)} rows.")
            continue
        main = [row for row in rows if row["main"]]
        lines.append(
            f"- `python benchmarks/compile_kernels.py` compiles all Triton kernels ahead of time, "
            f"without a GPU: {len(rows)} kernels, of which {len(main)} in main configurations; "
            f"{sum(row['spilled_bytes'] > 0 for row in main)} of these spill registers, and they "
            f"use at most {max(row['registers'] for row in main)} ({link})."
        )
    return ["## GPU kernels\n", *lines, ""] if lines else []


def _failures(rows: Iterable[Measurement]) -> list[str]:
    said = [f"{row.label}, {row.point}: {row.error}" for row in rows if row.error]
    return [f"Without a time: {'; '.join(said)}.\n"] if said else []


def _bold_if_slower(text: str, speedup: float | None) -> str:
    return f"**{text}**" if speedup is not None and speedup < 1 else text
