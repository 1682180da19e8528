"""Compile every Triton kernel for a Hopper GPU, on any machine, and report its resources.

``python benchmarks/compile_kernels.py`` prints registers, shared memory and spilled bytes of each
kernel × head width × dtype, writes ``benchmarks/results/compile_kernels.json`` and fails if one
does not compile or a main configuration spills. No GPU is needed: the package's own functions are
called on meta tensors, their launches recorded, and each is compiled as the launch would.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.taylor_inputs import TaylorOptions, TaylorTensors
from castling.ops.triton import (
    linear_attention_backward,
    linear_attention_forward,
    taylor_attention_backward,
    taylor_attention_forward,
)
from castling.ops.triton.common import Argument, Launch, recorded_launches
from castling.utils.files import write_json

CAPABILITY = 90
# Triton warns that the default, multiply and add in one instruction, will change; this keeps it.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
# A program may use this much shared memory on compute capability 9.0.
SHARED_LIMIT = 227 * 1024
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}
WIDTHS = (16, 32, 48, 64, 96, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# One call of the package: (name of the configuration, whether it must not spill, call).
Call = tuple[str, bool, Callable[[], object]]


def packed(batch: int, tokens: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Query, key and value as views of one packed projection."""
    return torch.empty(batch, tokens, 3, heads, dim, dtype=dtype, device="meta").unbind(2)


def linear_attention_call(
    dim: int,
    dtype: torch.dtype,
    tokens: int,
    features: str = "unit",
    normalize: str = "l2",
    local: str = "grid2d",
    masked: bool = False,
) -> None:
    """Forward and backward of one configuration."""
    side = math.isqrt(tokens)
    query, key, value = packed(64, tokens, 12, dim, dtype)
    shapes = {"grid2d": (12 * dim, 1, 3, 3), "token1d": (12, 1, 9, 1)}
    weight = None if local == "none" else torch.empty(shapes[local], device="meta")
    mask = torch.empty(64, tokens, dtype=torch.bool, device="meta") if masked else None
    scalar = torch.empty((), device="meta") if features == "squares" else None
    identity = 0.5 if features == "unit" else 0.0
    grid = (side, side) if local == "grid2d" else ()
    tensors = LinearTensors(query, key, value, None, weight, mask, scalar)
    options = LinearOptions(features, normalize, identity, row_eps=1e-6, grid=grid)
    out, state = linear_attention_forward(tensors, options, True)
    linear_attention_backward(out, tensors, (state,), options)


def linear_attention_calls() -> Iterator[Call]:
    """Every width and dtype as published, and every feature map and option at one width.

    Float32 is supported for its accuracy; its products run on the scalar units and may spill.
    """
    for dim, dtype, tokens in itertools.product(WIDTHS, DTYPES, (196, 4096)):
        name = f"d={dim} {TYPES[dtype]} n={tokens} unit l2 grid2d"
        half = dtype != torch.float32
        yield name, half, lambda d=dim, t=dtype, n=tokens: linear_attention_call(d, t, n)
    options: list[dict[str, Any]] = [
        {"features": "relu", "normalize": "rowsum", "local": "none"},
        {"features": "squares", "normalize": "rowsum", "local": "none"},
        {"features": "identity", "normalize": "none", "local": "none"},
        {"local": "token1d"},
        {"local": "none"},
        {"masked": True},
    ]
    for option, dtype, tokens in itertools.product(options, DTYPES, (196, 4096)):
        name = f"d=64 {TYPES[dtype]} n={tokens} " + " ".join(
            f"{key}={value}" for key, value in option.items()
        )
        arguments = {"dim": 64, "dtype": dtype, "tokens": tokens, **option}
        yield name, dtype != torch.float32, lambda a=arguments: linear_attention_call(**a)


def taylor_call(
    dim: int,
    dtype: torch.dtype,
    tokens: int,
    order: str,
    qk_norm: bool = True,
    masked: bool = False,
) -> None:
    """Forward and backward of the exact Taylor attention in one order."""
    query, key, value = packed(64, tokens, 12, dim, dtype)
    mask = torch.empty(64, tokens, dtype=torch.bool, device="meta") if masked else None
    tensors, options = TaylorTensors(query, key, value, mask), TaylorOptions(qk_norm, order=order)
    out, state = taylor_attention_forward(tensors, options, True)
    taylor_attention_backward(out, tensors, (out, state), options)


def taylor_calls() -> Iterator[Call]:
    """Every width and dtype in both orders, and every option at one width."""
    orders = (("direct", 196), ("features", 4096))
    for dim, dtype, (order, tokens) in itertools.product(WIDTHS, DTYPES, orders):
        name = f"d={dim} {TYPES[dtype]} n={tokens} {order}"
        # Full-precision products keep their operands in registers: wider heads do not fit.
        main = dim <= 64 and (dtype != torch.float32 or dim <= 16)
        yield name, main, lambda d=dim, t=dtype, n=tokens, o=order: taylor_call(d, t, n, o)
    options: list[dict[str, Any]] = [{"masked": True}, {"qk_norm": False}]
    for option, dtype, (order, tokens) in itertools.product(options, DTYPES, orders):
        name = f"d=64 {TYPES[dtype]} n={tokens} {order} {next(iter(option))}"
        arguments = {"dim": 64, "dtype": dtype, "tokens": tokens, "order": order, **option}
        yield name, dtype != torch.float32, lambda a=arguments: taylor_call(**a)


FAMILIES: dict[str, Callable[[], Iterator[Call]]] = {
    "linear_attention": linear_attention_calls,
    "taylor": taylor_calls,
}


def described(argument: Argument) -> tuple[str, Any, bool]:
    """Type of an argument, its value if that is compiled in, and whether 16 divides it."""
    if argument is None:
        return "constexpr", None, False
    if isinstance(argument, Tensor):
        aligned = argument.storage_offset() * argument.element_size() % 16 == 0
        return "*" + TYPES[argument.dtype], None, aligned
    if isinstance(argument, float):
        return "fp32", None, False
    if argument == 1:
        return "constexpr", 1, False
    return ("i32" if -(2**31) <= argument < 2**31 else "i64"), None, argument % 16 == 0


def compile_launch(call: Launch) -> dict[str, Any]:
    """Compile what ``call`` would launch; its resources by ``cuobjdump``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, dict(call.constants), {}
    for index, name in enumerate(call.kernel.arg_names):
        if name in call.constants:
            signature[name] = "constexpr"
            continue
        signature[name], value, divisible = described(call.arguments[name])
        if signature[name] == "constexpr":
            constants[name] = value
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(call.kernel, signature, constants, attributes)
    started = time.perf_counter()
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", CAPABILITY, 32),
        options={"num_warps": call.num_warps, "num_stages": call.num_stages},
    )
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return {
        "registers": usage["REG"],
        "shared_bytes": compiled.metadata.shared,
        # Registers are spilled to the stack of each thread.
        "spilled_bytes": usage["STACK"] + usage["LOCAL"],
        "warps": call.num_warps,
        "stages": call.num_stages,
        "seconds": round(time.perf_counter() - started, 1),
    }


def calls(families: list[str], only: str) -> list[tuple[str, str, bool, Callable[[], object]]]:
    """Family, name, whether it is a main one, and function of each configuration asked for."""
    found = [(f, *call) for f in families for call in FAMILIES[f]()]
    return [call for call in found if re.search(only, call[1])]


def compile_calls(families: list[str], only: str, kernels: str, part: slice) -> list[Any]:
    """Rows of the configurations in ``part``; a kernel that does not compile has an ``error``."""
    rows = []
    for family, name, main, function in calls(families, only)[part]:
        with recorded_launches() as launches:
            function()
        for call in launches:
            kernel = call.kernel.fn.__name__
            if not re.search(kernels, kernel):
                continue
            row: dict[str, Any] = {"family": family, "kernel": kernel, "configuration": name}
            row["main"] = main
            try:
                row |= compile_launch(call)
            except Exception as error:  # any failure of the compiler is a result
                row["error"] = f"{type(error).__name__}: {str(error)[-2000:]}"
            rows.append(row)
    return rows


def verdict(row: dict[str, Any]) -> str:
    """The fault of a row, or an empty string."""
    if "error" in row:
        return "DOES NOT COMPILE"
    if row["shared_bytes"] > SHARED_LIMIT:
        return "TOO MUCH SHARED MEMORY"
    return "SPILLS" if row["spilled_bytes"] and row["main"] else ""


def main() -> int:
    """Compile, print and write; 1 if something does not compile or a main configuration spills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--only", default="", help="regular expression on configurations")
    parser.add_argument("--kernels", default="", help="regular expression on kernels")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile")
    default = Path(__file__).parent / "results/compile_kernels.json"
    parser.add_argument("--output", type=Path, default=default)
    options = parser.parse_args()
    count = len(calls(options.families, options.only))
    arguments = (options.families, options.only, options.kernels)
    with ProcessPoolExecutor(options.jobs) as pool:
        parts = [
            pool.submit(compile_calls, *arguments, slice(index, index + 1))
            for index in range(count)
        ]
        rows: list[dict[str, Any]] = []
        for part in parts:
            for row in part.result():
                rows.append(row)
                told = row.get("error", "").splitlines()[-1:] or (
                    f"{row['registers']:4d} registers {row['shared_bytes'] / 1024:6.1f} KB "
                    f"{row['spilled_bytes']:5d} B spilled, {row['warps']} warps"
                )
                name = f"{row['kernel']:40s} {row['configuration']:45s}"
                print(name, told, verdict(row), flush=True)
    bad = [row for row in rows if verdict(row)]
    report = {"capability": CAPABILITY, "kernels": len(rows), "bad": len(bad), "rows": rows}
    write_json(options.output, report)
    print(f"{len(rows)} kernels, {len(bad)} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
