"""Fused linear attention on a GPU: correctness, and the speed targets G1 to G5.

A part of ``gpu.py``. Speeds are ratios between candidates that alternate in one run, each captured
as a CUDA graph over inputs several times larger than the L2 cache, so that neither Python nor a
warm cache is measured; no speed is reported before the result at its size was checked.
On a CPU the same code runs the CPU's backends, without graphs, at small sizes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from castling.ops import triton as kernels
from castling.ops.backends import attention_backend
from castling.ops.linear_attention import linear_attention
from castling.ops.linear_inputs import LinearOptions, LinearTensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
ANGULAR: dict[str, Any] = {
    "features": "unit",
    "normalize": "l2",
    "identity": 0.5,
    "gamma": 1 / math.pi,
    "kv_scale": 1.0,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "angular": ANGULAR,
    "exact angular": {"features": "unit", "normalize": "rowsum", "gamma": 1 / math.pi}
    | {"alpha": 0.5},
    "relu": {"features": "relu", "normalize": "rowsum", "row_eps": 1e-5},
    "released": {"features": "squares", "normalize": "rowsum", "eps": 1e-9, "row_eps": 1e-9},
    "mean": {"features": "identity", "normalize": "none", "identity": 0.5, "alpha": 0.5},
}
# Speed-ups over the best softmax that performance targets name, by tokens: (64, 6) heads, d = 64.
G2 = {196: 1.0, 1024: 3.0, 4096: 10.0, 16384: 40.0}
G5 = {1024: 3.0, 4096: 12.0}
G1_SHARE, G1_ROWS, G3_RATIO, G4_RATIO = 0.7, 3.9e5, 2.0, 9.0


def fast_backend(device: torch.device) -> str | None:
    """``"triton"`` where the kernels run, else None, the device's default."""
    return "triton" if kernels.available(device) else None


def packed(
    batch: int, tokens: int, heads: int, dim: int, dtype: torch.dtype, device: Any
) -> Tensor:
    """A random projection (B, N, 3, H, d)."""
    return torch.randn(batch, tokens, 3, heads, dim, device=device).to(dtype)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory of ``torch.empty`` is NaN inside."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def run(
    backend: str | None, inputs: list[Tensor], gradient: Tensor, options: dict[str, Any]
) -> Any:
    """Output and gradients of projection, filter and scalar on one backend."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    projection, weight, scalar = leaves
    grid = options["grid"] or ()
    tensors = LinearTensors(
        *projection.unbind(2), local_weight=weight if grid else None, scalar=scalar
    )
    prefix = projection.shape[1] - grid[0] * grid[1] if grid else 0
    numbers = LinearOptions(**options | {"grid": grid}, prefix=prefix)
    with attention_backend(backend), poisoned_memory():
        out = linear_attention(tensors, numbers)
        # What an option does not use has a gradient of zero.
        unused = sum(leaf.float().sum() for leaf in (weight, scalar)) * 0
        grads = torch.autograd.grad((out + unused.to(out.dtype)), leaves, gradient)
    return out.detach(), grads


def limits(dtype: torch.dtype, shift: float, plain: list[float]) -> list[float]:
    """Largest relative error of the output and of every gradient.

    ``plain`` are those of PyTorch in the same dtype; twice that is allowed to gradients (that of
    the scalar, a sum of cancelling terms, exceeds 1e-4 in float32 on any backend).
    """
    gradients = [max(1e-4, 2 * error) for error in plain[1:]]
    if dtype == torch.float32:
        return [1e-5, *gradients]
    first = {torch.bfloat16: 4e-3 if shift else 2.5e-3, torch.float16: 2 * plain[0]}[dtype]
    return [min(first, 2 * plain[0]), *gradients]


def kernel_numerics(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Output and every gradient against float64 by feature map, width, length, dtype and shift."""
    backend, rows = fast_backend(device), []
    lengths = [(64, 49), (32, 197)] if quick else [(64, 197), (64, 1025)]
    every = [(d, 197) for d in (16, 32, 48, 96, 128)]
    every += [(64, n) for n in (1, 49, 63, 197, 1000, 1025, 4096, 16384)]
    for name, options in OPTIONS.items():
        # Every width and length once; each new one is compiled, which takes most of the time.
        for dim, tokens in every if name == "angular" and not quick else lengths:
            for shift in (0.0, 2.0):
                side = math.isqrt(tokens)
                chosen = options | {"grid": (side, side) if side > 1 else None}
                exact = packed(2, tokens, 4, dim, torch.float64, device) + shift
                weight = torch.randn(4 * dim, 1, 3, 3, device=device, dtype=torch.float64)
                scalar = torch.tensor(0.7, device=device, dtype=torch.float64)
                target = torch.randn(2, tokens, 4, dim, device=device, dtype=torch.float64)
                for dtype in DTYPES if dim == 64 or quick else DTYPES[:2]:
                    inputs = [exact.to(dtype), weight.float(), scalar.float()]
                    gradient = target.to(dtype)
                    wide = [tensor.double() for tensor in inputs]
                    expected, wanted = run("naive", wide, gradient.double(), chosen)
                    used = [expected, *wanted]
                    plain, ours, again = (
                        run(p, inputs, gradient, chosen) for p in ("naive", backend, backend)
                    )
                    # Output, projection and filter; the scalar where it is the mechanism's own.
                    count = 4 if name == "released" else 3
                    pairs = list(zip([ours[0], *ours[1]], used, strict=True))[:count]
                    simple = list(zip([plain[0], *plain[1]], used, strict=True))[:count]
                    pairs = [p for p in pairs if p[1].norm() > 0]
                    errors = [relative(*pair) for pair in pairs]
                    bounds = limits(dtype, shift, [relative(*p) for p in simple if p[1].norm() > 0])
                    right = all(e <= b for e, b in zip(errors, bounds, strict=True))
                    rows.append(
                        {"options": name, "d": dim, "tokens": tokens, "shift": shift}
                        | {
                            "dtype": str(dtype),
                            "backend": backend,
                            "errors": errors,
                            "limits": bounds,
                        }
                        | {"same bits twice": bool(torch.equal(ours[0], again[0]))}
                        | {"right": right}
                    )
    return rows


def far_offsets(device: torch.device) -> dict[str, Any]:
    """Is the last sample right where it lies more than 2³¹ numbers behind the first?"""
    options = LinearOptions(**ANGULAR)
    projection = packed(116, 16384, 6, 64, torch.bfloat16, "meta")
    projection = torch.empty(projection.shape, dtype=torch.bfloat16, device=device).normal_()
    with torch.no_grad(), attention_backend(fast_backend(device)):
        found = linear_attention(LinearTensors(*projection.unbind(2)), options)[-1:]
    with torch.no_grad(), attention_backend("naive"):
        last = LinearTensors(*projection[-1:].double().unbind(2))
        expected = linear_attention(last, options)
    return {"numbers": projection.numel(), "error": relative(found, expected)}


Candidate = Callable[[], object]


def captured(candidate: Candidate, device: torch.device) -> Candidate:
    """``candidate`` as a CUDA graph; itself on a CPU."""
    if device.type != "cuda":
        return candidate
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            candidate()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        candidate()
    return graph.replay


def seconds(candidate: Candidate, device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        candidate()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    candidate()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def alternate(candidates: dict[str, Candidate], device: torch.device, turns: int) -> dict[str, Any]:
    """Median seconds of each candidate, all taking turns; a text where one cannot run."""
    ready: dict[str, Candidate] = {}
    found: dict[str, Any] = {}
    for name, candidate in candidates.items():
        try:
            ready[name] = captured(candidate, device)
            ready[name]()
        except Exception as error:  # a backend that does not serve this input says so here
            found[name] = f"{type(error).__name__}: {str(error)[:200]}"
            ready.pop(name, None)
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(turns):
        for name, candidate in ready.items():
            times[name].append(seconds(candidate, device))
    return found | {name: statistics.median(values) for name, values in times.items()}


def softmax(projection: Tensor, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        query, key, value = (t.transpose(1, 2) for t in projection.unbind(2))
        return F.scaled_dot_product_attention(query, key, value)


def attention_on(
    projection: Tensor, backend: str | None, weight: Tensor | None = None, side: int = 0
) -> Tensor:
    """Linear-angular attention, with a convolution on a square grid if there is a filter."""
    tensors = LinearTensors(*projection.unbind(2), local_weight=weight)
    options = LinearOptions(**ANGULAR, grid=() if weight is None else (side, side))
    with attention_backend(backend):
        return linear_attention(tensors, options)


def each(
    function: Callable[..., Tensor], inputs: list[Tensor], *arguments: Any, train: bool = False
) -> Candidate:
    """``function`` on every input in turn, with the gradient of the projection if ``train``."""

    def candidate() -> None:
        for projection in inputs:
            if not train:
                with torch.no_grad():
                    function(projection, *arguments)
                continue
            leaf = projection.detach().requires_grad_()
            out = function(leaf, *arguments)
            torch.autograd.grad(out, leaf, torch.ones_like(out))

    return candidate


def kernel_speed(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """The targets G1 to G5, in bfloat16 (float32 on a CPU)."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    cache = torch.cuda.get_device_properties(device).L2_cache_size if cuda else 0
    backend = fast_backend(device)
    sizes = [(64, 6, 196), (64, 6, 1024), (64, 6, 4096), (64, 6, 16384), (1, 12, 4096)]
    if quick:
        sizes = [(2, 2, 196), (1, 2, 1024)]
    rows = []
    for batch, heads, tokens in sizes:
        one = packed(batch, tokens, heads, 64, dtype, device)
        bytes_of_one = one.numel() * one.element_size()
        copies = max(1, min(64, math.ceil(4 * cache / bytes_of_one)))
        inputs = [one, *(torch.randn_like(one) for _ in range(copies - 1))]
        row: dict[str, Any] = {"batch": batch, "heads": heads, "tokens": tokens, "inputs": copies}
        with torch.no_grad():
            expected = attention_on(one[-1:].double(), "naive")
            row["error"] = relative(attention_on(one, backend)[-1:], expected)
        row["right"] = row["error"] < (2.5e-3 if cuda else 1e-5)
        rows.append(row)
        if not row["right"]:
            continue
        side = math.isqrt(tokens)
        weight = torch.randn(heads * 64, 1, 3, 3, device=device)
        target = torch.empty_like(one)
        backends = SDPA if cuda and tokens <= 4096 else {"flash": SDPA["flash"]}
        if cuda and tokens > 4096:
            backends = {name: SDPA[name] for name in ("flash", "cudnn")}
        forward = {"ours": each(attention_on, inputs, backend)}
        forward["ours with convolution"] = each(attention_on, inputs, backend, weight, side)
        forward["copy"] = each(target.copy_, inputs)
        forward["compiled"] = each(attention_on, inputs, "compiled")
        softmaxes = {f"sdpa {n}": each(softmax, inputs, b) for n, b in backends.items()}
        turns = 3 if quick or tokens > 4096 else 15
        row["forward"] = alternate(forward | softmaxes, device, turns)
        if tokens in G5 or quick:
            both = {"ours": each(attention_on, inputs, backend, train=True)}
            both["ours with convolution"] = each(
                attention_on, inputs, backend, weight, side, train=True
            )
            both |= {f"sdpa {n}": each(softmax, inputs, b, train=True) for n, b in backends.items()}
            row["forward and backward"] = alternate(both, device, turns)
        row |= verdicts(row, bytes_of_one)
    return rows


def best_softmax(times: dict[str, Any]) -> float:
    found = [t for name, t in times.items() if name.startswith("sdpa") and isinstance(t, float)]
    return min(found, default=math.nan)


def verdicts(row: dict[str, Any], bytes_of_one: int) -> dict[str, Any]:
    """The ratios that the targets name, each with its target."""
    times, tokens = row["forward"], row["tokens"]
    ours = times["ours"]
    if not isinstance(ours, float):
        return {}
    found: dict[str, Any] = {}
    # Two kernels read keys and values, then queries and values, and write once: five tensors. A
    # copy reads and writes the three of the projection: six.
    share = (5 / 6) * times["copy"] / ours
    if row["batch"] * row["heads"] * tokens >= G1_ROWS:
        found["G1 share of copy bandwidth"] = [share, G1_SHARE]
    ratio = best_softmax(times) / ours
    if row["batch"] == 1 and tokens == 4096:
        found["G4 over softmax, batch 1"] = [ratio, G4_RATIO]
    elif tokens in G2:
        found["G2 over softmax"] = [ratio, G2[tokens]]
    if isinstance(times["compiled"], float):
        found["G3 over torch.compile"] = [times["compiled"] / ours, G3_RATIO]
    both = row.get("forward and backward")
    if both and row["batch"] > 1 and tokens in G5 and isinstance(both["ours"], float):
        found["G5 over softmax, with backward"] = [best_softmax(both) / both["ours"], G5[tokens]]
    found["seconds of one input"] = ours / row["inputs"]
    found["gigabytes of one input"] = bytes_of_one / 1e9
    return found


def linear_kernels(device: torch.device, quick: bool) -> dict[str, Any]:
    """Correctness, then speed, of the fused linear attention."""
    torch.manual_seed(0)
    found: dict[str, Any] = {"triton": kernels.describe(), "why not": kernels.why_not(device)}
    rows = kernel_numerics(device, quick)
    found["wrong"] = [row for row in rows if not (row["right"] and row["same bits twice"])]
    found["checked"] = rows
    if device.type == "cuda" and not quick:
        found["far offsets"] = far_offsets(device)
    found["speed"] = kernel_speed(device, quick)
    return found
