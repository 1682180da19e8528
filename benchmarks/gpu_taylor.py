"""Exact Taylor attention on a GPU: correctness, and the speed target G6.

A part of ``gpu.py``; ``gpu_kernels.py`` says how speeds are measured.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from castling.ops.backends import attention_backend
from castling.ops.exact_taylor import exact_taylor
from gpu_kernels import (
    DTYPES,
    SDPA,
    alternate,
    best_softmax,
    each,
    fast_backend,
    packed,
    poisoned_memory,
    relative,
    softmax,
)

# Speed-up over the best softmax that the target names, by tokens: (64, 6) heads, d = 64.
G6 = {1024: 1.0, 4096: 2.0, 16384: 7.0}


def taylor(projection: Tensor, backend: str | None, order: str, **options: Any) -> Tensor:
    with attention_backend(backend):
        return exact_taylor(*projection.unbind(2), order=order, **options)


def outcome(
    backend: str | None, projection: Tensor, gradient: Tensor, order: str, **more: Any
) -> Any:
    """Output and gradients of queries, keys and values."""
    leaf = projection.detach().requires_grad_()
    with poisoned_memory():
        out = taylor(leaf, backend, order, **more)
        (grads,) = torch.autograd.grad(out, leaf, gradient)
    return [out.detach(), *grads.unbind(2)]


def taylor_numerics(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Output and every gradient against float64, in both orders, by width, length and dtype."""
    backend, rows = fast_backend(device), []
    widths = [(64, 49)] if quick else [(d, 197) for d in (16, 32, 48, 64, 96, 128)]
    if not quick:
        widths += [(64, n) for n in (49, 63, 1000, 1025, 4096)]
    for dim, tokens in widths:
        for shift, qk_norm, masked in ((0.0, True, True), (2.0, True, False), (0.0, False, True)):
            exact = packed(2, tokens, 2, dim, torch.float64, device) + shift
            target = torch.randn(2, tokens, 2, dim, device=device, dtype=torch.float64)
            mask = torch.rand(2, tokens, device=device) > 0.3 if masked else None
            more = {"qk_norm": qk_norm, "key_mask": mask}
            for dtype in DTYPES:
                inputs, gradient = exact.to(dtype), target.to(dtype)
                wanted = outcome("naive", inputs.double(), gradient.double(), "direct", **more)
                plain = outcome("naive", inputs, gradient, "direct", **more)
                limits = [max(1e-4, 2 * relative(p, w)) for p, w in zip(plain, wanted, strict=True)]
                if dtype == torch.float32:
                    limits[0] = 1e-5
                if dtype == torch.bfloat16:
                    limits[0] = min(limits[0], 4e-3 if shift else 2.5e-3)
                for order in ("direct", "features"):
                    ours = outcome(backend, inputs, gradient, order, **more)
                    again = outcome(backend, inputs, gradient, order, **more)
                    errors = [relative(a, b) for a, b in zip(ours, wanted, strict=True)]
                    rows.append(
                        {"order": order, "d": dim, "tokens": tokens, "shift": shift}
                        | {"qk_norm": qk_norm, "masked": masked, "dtype": str(dtype)}
                        | {"errors": errors, "limits": limits}
                        | {"right": all(e <= b for e, b in zip(errors, limits, strict=True))}
                        | {"same bits twice": bool(torch.equal(ours[0], again[0]))}
                    )
    return rows


def taylor_speed(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """The target G6 and both orders beside each other, in bfloat16 (float32 on a CPU)."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    backend, rows = fast_backend(device), []
    sizes = [(2, 2, 196)] if quick else [(64, 6, n) for n in (196, 1024, 2048, 4096, 16384)]
    for batch, heads, tokens in sizes:
        one = packed(batch, tokens, heads, 64, dtype, device)
        row: dict[str, Any] = {"batch": batch, "heads": heads, "tokens": tokens}
        rows.append(row)
        orders = ["features"] if tokens > 4096 else ["direct", "features"]
        with torch.no_grad():
            expected = taylor(one[-1:].double(), "naive", orders[0])
            row["errors"] = {o: relative(taylor(one, backend, o)[-1:], expected) for o in orders}
        if max(row["errors"].values()) > (2.5e-3 if cuda else 1e-5):
            continue
        backends = {n: SDPA[n] for n in (("flash", "cudnn") if cuda else ("flash",))}
        turns = 3 if quick or tokens > 4096 else 15
        for train in (False, True):
            ours = {f"ours {o}": each(taylor, [one], backend, o, train=train) for o in orders}
            theirs = {
                f"sdpa {n}": each(softmax, [one], b, train=train) for n, b in backends.items()
            }
            times = alternate(ours | theirs, device, turns)
            row["forward and backward" if train else "forward"] = times
            best = min((times[n] for n in ours if isinstance(times[n], float)), default=math.nan)
            if not train:
                row["G6 over softmax"] = [best_softmax(times) / best, G6.get(tokens)]
    return rows


def taylor_kernels(device: torch.device, quick: bool) -> dict[str, Any]:
    """Correctness, then speed, of the exact Taylor attention."""
    torch.manual_seed(0)
    rows = taylor_numerics(device, quick)
    wrong = [row for row in rows if not (row["right"] and row["same bits twice"])]
    return {"wrong": wrong, "checked": rows, "speed": taylor_speed(device, quick)}
