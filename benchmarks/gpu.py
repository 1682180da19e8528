"""All GPU checks: correctness first, then speed, written to one JSON file.

``python benchmarks/gpu.py --output benchmarks/results/gpu.json`` takes a few minutes on one GPU.
Every part is written as soon as it is done, so an interrupted run keeps its results.
``--device cpu --quick`` tests the script itself on any machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

from castling.attention import (
    AttentionInputs,
    attention_config,
    kernel_class,
    list_kernels,
    set_progress,
)
from castling.profiling.bench_models import bench_models
from castling.profiling.bench_ops import bench_ops, settings_of
from castling.profiling.candidates import choose_candidates, read_attention
from castling.profiling.machine import machine_facts
from castling.utils.files import write_json
from gpu_kernels import linear_kernels
from gpu_taylor import taylor_kernels

ATTENTIONS = [n for n in list_kernels() if not kernel_class(attention_config(n)).needs_grid]
MODELS = ["castling_deit_pico", "castling_levit_pico", "castling_mvitv2_pico", "qt_vit_pico"]
MODELS += ["cas_vit_pico"]


@torch.no_grad()
def numerics(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Relative RMS error of every kernel against float64 on the CPU, by precision and length."""
    rows = []
    for name in ATTENTIONS:
        config = attention_config(name)
        kernel = kernel_class(config)
        lengths = [49, 197] if quick else [49, 197, 1025, 16384]
        for tokens in lengths if not kernel.quadratic else lengths[:3]:
            for shift in (0.0, 2.0):
                exact = [torch.randn(1, tokens, 2, 64, dtype=torch.float64) + shift for _ in "qkv"]
                module = kernel(config, 2, 64, 64)
                for dtype in (torch.float32, torch.bfloat16, torch.float16):
                    rounded = [tensor.to(dtype) for tensor in exact]
                    expected = module.double().cpu()(
                        AttentionInputs(*(t.double() for t in rounded))
                    )
                    result = module.float().to(device)(
                        AttentionInputs(*(t.to(device) for t in rounded))
                    )
                    error = (result.double().cpu() - expected).norm() / expected.norm()
                    rows.append(
                        {
                            "attention": name,
                            "tokens": tokens,
                            "shift": shift,
                            "dtype": str(dtype),
                            "relative_rms": float(error),
                        }
                    )
    return rows


def models(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """One training step in autocast, and compilation without graph breaks, of each family."""
    rows = []
    for name in MODELS[:1] if quick else MODELS:
        row: dict[str, Any] = {"model": name}
        model = timm.create_model(name, num_classes=10).to(device)
        images = torch.randn(8, 3, 64, 64, device=device)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast(device.type, dtype=dtype):
                loss = model(images).float().square().mean()
            loss.backward()
            finite = all(
                torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None
            )
            row[f"{dtype} step is finite"] = bool(finite and torch.isfinite(loss))
            model.zero_grad()
        model.eval()
        set_progress(model, 1.0)
        backend = "eager" if quick else "inductor"
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        with torch.no_grad():
            row[f"compiled ({backend}) max difference"] = float(
                (compiled(images) - model(images)).abs().max()
            )
        rows.append(row)
    return rows


def speed(device: torch.device, quick: bool) -> dict[str, Any]:
    """Kernels alone and models end to end against softmax, by the package's own benchmark."""
    tokens = [49, 196] if quick else [49, 196, 1024, 4096, 16384]
    kernels = [n for n in ATTENTIONS if n not in ("softmax", "quadratic_angular")]
    alone = bench_ops(
        {name: read_attention(name) for name in kernels},
        settings_of(tokens, batches=[1 if quick else 16]),
        device=device,
    )
    names = ["castling_deit_pico"]
    pixels = [(32, 32)] if quick else [(224, 224), (448, 448), (896, 896)]
    if not quick:
        names = ["castling_deit_tiny_patch16_224", "qt_vit_1", "cas_vit_s"]
    whole = bench_models(
        choose_candidates(names), pixels, batches=[1 if quick else 8], device=device
    )
    return {"kernels": alone.to_dict(), "models": whole.to_dict()}


PARTS: dict[str, Callable[[torch.device, bool], Any]] = {
    "linear_kernels": linear_kernels,
    "taylor_kernels": taylor_kernels,
    "numerics": numerics,
    "models": models,
    "speed": speed,
}


def main() -> None:
    """Run the parts in order, writing after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    found: dict[str, Any] = {"machine": machine_facts(device), "quick": options.quick}
    for part in options.parts:
        started = time.perf_counter()
        found[part] = PARTS[part](device, options.quick)
        found[f"{part}_seconds"] = round(time.perf_counter() - started, 1)
        write_json(options.output, found)
        print(f"{part}: {found[f'{part}_seconds']} s", flush=True)


if __name__ == "__main__":
    main()
