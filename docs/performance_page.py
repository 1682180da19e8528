"""The page of measured speeds, from the files that ``benchmarks/performance.sh`` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from performance_aims import targets, verdict
from performance_sections import (
    compiled_section,
    gpu_section,
    models_section,
    ops_section,
    plans_section,
)

INTRODUCTION = """# Performance

Linear attention needs fewer operations than softmax attention from a few dozen tokens on; whether
it is *faster* is another question, and the answer depends on the device, the tokens and the
implementation. This page says what was measured, where linear attention wins and **where softmax
does**. How to read it:

- Softmax is PyTorch's fused kernel (`scaled_dot_product_attention`), never scores written out.
- *Block* is the formula as its authors' code writes it, in eager PyTorch: norms, permutes,
  products, divisions, `Conv2d`.
- *Limit* is what this machine could do at best: the operations of the two products at the faster of
  a large matrix product and a loop of multiply-adds in registers, or q, k, v and the output touched
  once at the speed of a copy, whichever takes longer; all measured in the same run.
- *Cap* is the same model with its attention core deleted, projections kept: with free attention it
  would be as fast as that. (Folded CAS-ViT may pass its cap: it runs in fused blocks, which its cap
  does not have.)
- *Folded* is a model after `castling.fold_`, its BatchNorms in the layers beside them; *× eager* is
  how many times faster it, or another runtime, is than the same model as it was.
- Candidates ran in turns, slow ones in fewer of them, at least in three; times are medians; a result
  that was wrong has no time, but its error.
  Calls shorter than 10 ms ran in blocks of consecutive ones, after a few that do not count: kernels
  alone are timed warm, and what they cost among other layers, whole models and plans tell.
- Paths: `naive` is basic PyTorch, `compiled` the same through `torch.compile`, `native` our C++
  operators, `triton` our GPU kernels. Left alone, castling takes the first that a machine has.

All of it again: `make bench`, then `make docs`. One comparison of your own: `castling bench ops
--help`, `castling bench models --help`; and for your model on your device, `castling plan`.
"""

OPS = {
    "bench_ops": "Kernels alone, forward",
    "bench_ops_batch8": "Kernels alone, batch 8",
    "bench_ops_long": "Kernels alone, long inputs",
    "bench_ops_shapes": "Kernels alone, other head widths",
    "bench_ops_bfloat16": "Kernels alone, bfloat16",
    "bench_ops_backward": "Kernels alone, forward and backward",
    "bench_ops_avx2": "Kernels alone, everything held to AVX2",
}
MODELS = {
    "bench_models": "Whole models in every runtime",
    "bench_models_batch8": "Whole models, batch 8",
    "bench_models_others": "The other models, eager",
    "bench_models_folded": "Folded models against the same unfolded",
}


def performance_page(results: Path) -> str:
    """The whole page.

    Args:
        results: folder of the measured files; what is missing there is said to be missing.
    """
    found = {path.stem: _read(path) for path in sorted(results.glob("*.json"))}
    ops = {name: found[name] for name in OPS if name in found}
    models = {name: found[name] for name in MODELS if "hosts" in found.get(name, {})}
    plans = {name: plan for name, plan in found.items() if name.startswith("plan_")}
    gpu = {name: value for name, value in found.items() if name.startswith("gpu_kernels")}
    lines = [INTRODUCTION]
    lines += verdict(ops, models, OPS)
    lines += targets(ops, models)
    for name, result in ops.items():
        lines += ops_section(name, OPS[name], result)
    for name, result in models.items():
        lines += models_section(name, MODELS[name], result)
    lines += plans_section(plans)
    lines += gpu_section(gpu)
    lines += compiled_section(found.get("compile_kernels"))
    missing = [name for name in (*OPS, *MODELS) if name not in ops and name not in models]
    if missing:
        lines += ["## Not measured yet\n", *(f"- {name}.json" for name in missing)]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
