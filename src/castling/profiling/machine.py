"""The machine a time was measured on: its name and versions, and its measured roofline."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from castling.ops import native
from castling.ops.backends import available_backends
from castling.utils.timing import Timer, time_alternately

_COPIED_BYTES = 1 << 27
_PRODUCT_SIDE = {"cpu": 1536, "cuda": 8192}


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Device, threads, versions, and the attention backends that work there."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").is_file():
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        models = [
            line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line
        ]
        name = models[0] if models else name
    facts: dict[str, Any] = {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backends": ", ".join(available_backends(device)),
    }
    if device.type == "cpu":
        facts["instructions"] = f"{torch.backends.cpu.get_cpu_capability()} in PyTorch"
        facts["native"] = native.describe()
    return facts


@dataclass(frozen=True)
class Roofline:
    """Measured peak speed and memory bandwidth of a machine (Williams et al., CACM 2009).

    Attributes:
        gflops: 10⁹ floating-point operations per second of a large matrix product or, on a CPU, of
            multiply-adds in registers, whichever is faster.
        gigabytes: 10⁹ bytes per second, read and written, of a large copy.
    """

    gflops: float
    gigabytes: float

    def milliseconds(self, operations: float, moved: float) -> float:
        """Lower bound on the time of this many operations and bytes: the longer of the two."""
        return max(operations / self.gflops, moved / self.gigabytes) / 1e6

    def __str__(self) -> str:
        return f"{self.gflops:.0f} GFLOP/s, {self.gigabytes:.1f} GB/s"


@torch.no_grad()
def measure_roofline(device: torch.device, dtype: torch.dtype, timer: Timer) -> Roofline:
    """Time a large matrix product, a large copy and, on a CPU, multiply-adds in registers.

    A matrix product alone would flatter our kernels where PyTorch's library leaves vector units
    idle, as it does AVX-512 on some CPUs. CPUs are measured in float32, in which all our CPU
    kernels compute.

    Args:
        device: where.
        dtype: of the product on a GPU.
        timer: the clock.
    """
    side = _PRODUCT_SIDE.get(device.type, 1536)
    kind = torch.float32 if device.type == "cpu" else dtype
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randn(_COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    times = time_alternately(
        {
            "product": lambda: torch.mm(left, right, out=product),
            "copy": lambda: target.copy_(source),
        },
        rounds=9,
        seconds=3.0,
        timer=timer,
    )
    # The lower quartile, because a roofline is peak speed, not average speed.
    gflops = 2 * side**3 / times["product"].low / 1e6
    return Roofline(
        gflops=max(gflops, _multiply_add_gflops()) if device.type == "cpu" else gflops,
        gigabytes=2 * _COPIED_BYTES / times["copy"].low / 1e6,
    )


def _multiply_add_gflops() -> float:
    """Peak of all threads from registers alone; 0 where the C++ operators are not built."""
    try:
        return torch.get_num_threads() * native.multiply_add_rate()
    except RuntimeError:
        return 0.0
