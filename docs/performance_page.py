"""The page of measured speeds, from the files that ``benchmarks/performance.sh`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from performance_aims import aims_section
from performance_sections import (
    EXACT,
    SHAPES,
    gpu_section,
    kernels_section,
    memory_section,
    models_section,
    plans_section,
    shapes_section,
    speedup_range,
)
from performance_tables import compared, default_backend, read_models, read_ops, row_lists

from castling.profiling.formatting import ratio
from castling.profiling.model_results import ModelsResult
from castling.profiling.op_results import OpsResult

INTRODUCTION = """# Performance

Linear attention needs fewer operations than softmax attention from a few dozen tokens on. Whether
it is *faster* depends on the device, the number of tokens and the implementation. This page shows
where it is, and **in bold where softmax is faster**.

- *Softmax* is PyTorch's fused kernel (`scaled_dot_product_attention`). *Authors' code* is a
  formula as published: norms, permutes, products and `Conv2d` in eager PyTorch.
- Kernels run on the backend that castling chooses: `native` (C++) on CPUs, `triton` on GPUs. The
  plots also show `naive` (plain PyTorch) and `compiled` (`torch.compile`).
- The *roofline* is the time of the two matrix products at peak speed, or of moving q, k, v and the
  output at the bandwidth of a copy, whichever is longer; both are measured in the same run.
- The *attention-free bound* is the same model without its attention core, projections kept: no
  attention can make it faster. (Folded CAS-ViT can beat it: it uses fused blocks, the bound does
  not.) *Folded* is the model after `castling.fold_`.
- Times are medians of interleaved runs, and every result was checked before it was timed. Kernels
  shorter than 10 ms are timed warm, in blocks of calls; whole models show the cost of cold calls.
- Every other row (all backends, quartiles, errors, memory) is in the CSV and JSON files.

To measure again: `make bench`, then `make docs`. For your own kernels, models and device:
`castling bench ops`, `castling bench models`, `castling plan`.
"""

EXPECTED = (
    *("bench_ops", "bench_ops_long", "bench_ops_backward", *SHAPES),
    *("bench_models", "bench_models_batch8", "bench_models_others", "bench_models_folded"),
)


def performance_page(results: Path) -> str:
    """The whole page.

    Args:
        results: folder of the JSON files; the page lists those that are missing.
    """
    ops, models = read_ops(results), read_models(results)
    forward = {name: ops[name] for name in ("bench_ops", "bench_ops_long") if name in ops}
    training = {name: ops[name] for name in ("bench_ops_backward",) if name in ops}
    lines = [
        INTRODUCTION,
        *summary(ops, models),
        *aims_section(ops, models),
        *kernels_section("Kernels against softmax, by tokens", forward),
        *kernels_section("Training step of the kernels: forward and backward", training),
        *models_section(models),
        *shapes_section({name: ops[name] for name in SHAPES if name in ops}),
        *memory_section(forward),
        *plans_section(results),
        *gpu_section(row_lists(results)),
    ]
    missing = [f"{name}.json" for name in EXPECTED if name not in ops and name not in models]
    if missing:
        lines += ["## Not measured yet\n", ", ".join(missing), ""]
    return "\n".join(lines).rstrip() + "\n"


def summary(ops: Mapping[str, OpsResult], models: Mapping[str, ModelsResult]) -> list[str]:
    """Speedups in a sentence each, and every case in which softmax is faster."""
    lines = ["## In short\n"]
    forward = (ops[name] for name in ("bench_ops", "bench_ops_long") if name in ops)
    rows = [row for result in forward for row in default_backend(result)]
    for what, mine in (
        ("Linear kernels", [row for row in rows if row.kernel != EXACT]),
        ("The exact Taylor kernel", [row for row in rows if row.kernel == EXACT]),
    ):
        if mine:
            said = (f"{speedup_range(mine, n)} at {n}" for n in sorted({r.tokens for r in mine}))
            lines.append(f"- {what} against softmax: {', '.join(said)} tokens.")
    eager = {
        f"`{row.model}`, {row.height} px": row.against_host or 0.0
        for result in models.values()
        for row in compared(result)
        if row.variant == "eager" and row.batch == 1
    }
    if eager:
        low, high = min(eager, key=eager.__getitem__), max(eager, key=eager.__getitem__)
        lines.append(
            f"- Whole models in eager against their softmax host: {ratio(eager[low])} ({low}) to "
            f"{ratio(eager[high])} ({high})."
        )
    slower = [
        f"`{row.kernel}` at {row.tokens} tokens, {SHAPES.get(name, 'forward')} "
        f"({ratio(row.against_sdpa)})"
        for name, result in ops.items()
        for row in default_backend(result)
        if row.against_sdpa is not None and row.against_sdpa < 1
    ] + [
        f"`{row.model}` in {row.variant} at {row.height} px, batch {row.batch} "
        f"({ratio(row.against_host)})"
        for result in models.values()
        for row in compared(result)
        if row.against_host is not None and row.against_host < 1
    ]
    if slower:
        lines.append(f"- **Softmax is faster** than {'; '.join(slower)}.")
    elif rows or eager:
        lines.append("- Softmax is faster in no case measured here.")
    return [*lines, ""]
