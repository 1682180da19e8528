"""Exact Taylor attention on one CPU thread: which implementation is fastest at which size?

    python benchmarks/exact_taylor.py            measure, write results/exact_taylor.json
    python benchmarks/exact_taylor.py --table    print the tables of docs/exact_taylor.md

Each implementation is checked against float64 before it is timed. Times are processor time, so
that other programs on the machine count little; implementations alternate.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from castling import attention_backend
from castling.ops.exact_taylor import exact_taylor
from castling.profiling.machine import machine_facts
from castling.profiling.memory import peak_megabytes, resident_megabytes
from castling.utils.files import write_json
from castling.utils.timing import cpu_threads, time_alternately, timer_for

RESULTS = Path(__file__).parent / "results" / "exact_taylor.json"
TOKENS = (49, 196, 784, 3136, 16384)
DIMS = (16, 32, 64)
HEADS = 2
SOFTMAX = "softmax (SDPA)"
#: Naive implementations write N×N tensors; ones above this many bytes are not run.
SCORES_LIMIT = 1e9
#: Relative RMS error against float64 allowed for the output and for gradients.
LIMITS = (1e-5, 1e-4)
#: Long inputs are checked at this many queries.
CHECKED_QUERIES = 128
CPU = torch.device("cpu")

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def taylor(backend: str, order: Any) -> Attention:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with attention_backend(backend):
            return exact_taylor(query, key, value, order=order)

    return attend


def softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    rows = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*rows).transpose(1, 2)


IMPLEMENTATIONS: dict[str, Attention] = {
    "native direct": taylor("native", "direct"),
    "native features": taylor("native", "features"),
    "naive direct": taylor("naive", "direct"),
    "naive features": taylor("naive", "features"),
    SOFTMAX: softmax,
}


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative RMS error."""
    return float((found.double() - expected).norm() / expected.norm())


def check(
    attend: Attention, reference: Attention, qkv: Tensor, grad: Tensor
) -> tuple[float, float]:
    """Errors of the output and of the worst gradient, at evenly spaced queries.

    Args:
        attend: the implementation, run on all queries.
        reference: run in float64 on the checked queries only.
        qkv: (B, N, 3, H, d).
        grad: (B, N, H, d), the gradient of the output.
    """
    tokens = qkv.shape[1]
    rows = torch.linspace(0, tokens - 1, min(tokens, CHECKED_QUERIES)).round().long().unique()
    some = torch.zeros_like(grad)
    some[:, rows] = grad[:, rows]
    leaf = qkv.clone().requires_grad_()
    out = attend(*leaf.unbind(2))
    (found,) = torch.autograd.grad(out, leaf, some)
    exact = qkv.double().requires_grad_()
    query, key, value = exact.unbind(2)
    expected = reference(query[:, rows], key, value)
    (wanted,) = torch.autograd.grad(expected, exact, grad[:, rows].double())
    pairs = zip(found.unbind(2), wanted.unbind(2), strict=True)
    return (
        relative(out.detach()[:, rows], expected.detach()),
        max(relative(mine, theirs) for mine, theirs in pairs),
    )


def measure(tokens: int, dim: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Every implementation at one size: errors, milliseconds and megabytes."""
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(1, tokens, 3, HEADS, dim, generator=generator)
    grad = torch.randn(1, tokens, HEADS, dim, generator=generator)
    leaf = qkv.clone().requires_grad_()
    rows: dict[str, dict[str, Any]] = {}
    forward: dict[str, Callable[[], Any]] = {}
    training: dict[str, Callable[[], Any]] = {}
    for name, attend in IMPLEMENTATIONS.items():
        row = rows[name] = {"tokens": tokens, "dim": dim, "heads": HEADS, "implementation": name}
        scores = 4.0 * HEADS * tokens**2
        if name == "naive direct" and scores > SCORES_LIMIT:
            row["skipped"] = f"every N×N tensor would take {scores / 1e9:.1f} GB"
            continue
        reference = softmax if name == SOFTMAX else IMPLEMENTATIONS["naive direct"]
        errors = row["errors"] = check(attend, reference, qkv, grad)
        if not all(error <= limit for error, limit in zip(errors, LIMITS, strict=True)):
            row["skipped"] = f"wrong: errors {errors}, allowed are {LIMITS}"
            continue
        forward[name] = lambda attend=attend: attend(*qkv.unbind(2))
        training[name] = lambda attend=attend: torch.autograd.grad(
            attend(*leaf.unbind(2)), leaf, grad
        )
    timer = timer_for(CPU, "cpu")
    for what, calls in (("forward", forward), ("training", training)):
        with torch.set_grad_enabled(what == "training"):
            for name, call in calls.items():
                rows[name][f"{what}_tensors_mb"] = round(peak_megabytes(call, CPU), 3)
                if (resident := resident_megabytes(call)) is not None:
                    rows[name][f"{what}_resident_mb"] = round(resident, 3)
            times = time_alternately(calls, rounds=rounds, seconds=seconds, timer=timer)
        for name, timing in times.items():
            numbers = (timing.milliseconds, timing.low, timing.high)
            rows[name][f"{what}_ms"] = [float(f"{number:.4g}") for number in numbers]
    return list(rows.values())


def tables(result: dict[str, Any]) -> str:
    """Milliseconds, the gain over the better naive order, and memory, in Markdown."""
    names = list(IMPLEMENTATIONS)
    parts = []
    for what in ("forward", "training"):
        head = ["tokens", "d", *names, "gain over naive", "naive MB / native MB"]
        lines = [head, ["---:"] * len(head)]
        for tokens, dim in ((tokens, dim) for dim in DIMS for tokens in TOKENS):
            rows = {
                row["implementation"]: row
                for row in result["rows"]
                if (row["tokens"], row["dim"]) == (tokens, dim)
            }
            if not rows:
                continue
            times = {name: rows[name].get(f"{what}_ms", [math.inf])[0] for name in names}
            best = {
                side: min((name for name in names if name.startswith(side)), key=times.__getitem__)
                for side in ("native", "naive")
            }
            memory = {
                side: rows[name].get(f"{what}_resident_mb", math.nan) for side, name in best.items()
            }
            fastest = min(names[:4], key=times.__getitem__)
            cells = [
                "–" if math.isinf(times[name])
                else f"**{times[name]:.3g}**" if name == fastest else f"{times[name]:.3g}"
                for name in names
            ]  # fmt: skip
            gain = times[best["naive"]] / times[best["native"]]
            megabytes = f"{memory['naive']:.3g} / {memory['native']:.3g}"
            lines.append([str(tokens), str(dim), *cells, f"{gain:.1f}×", megabytes])
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print tables of the stored result")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=6.0, help="per size and direction")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.table:
        print(tables(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    rows: list[dict[str, Any]] = []
    with cpu_threads(1):
        for dim in options.dims:
            for tokens in options.tokens:
                found = measure(tokens, dim, options.rounds, options.seconds)
                rows += found
                for row in found:
                    print(json.dumps(row), flush=True)
        machine = machine_facts(CPU) | {"clock": "processor time", "threads": 1}
    result = {"machine": machine, "rows": rows}
    write_json(options.output, result)


if __name__ == "__main__":
    main()
