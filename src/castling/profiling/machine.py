"""What a speed depends on beside the code: the machine's name, and how fast it could be at best."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from castling.ops import native
from castling.ops.backends import available_backends
from castling.profiling.timing import Timer, time_alternately

_COPIED_BYTES = 1 << 27
_PRODUCT_SIDE = {"cpu": 1536, "cuda": 8192}


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Device, threads, versions, and the attention paths that work there."""
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
        "paths": ", ".join(available_backends(device)),
    }
    if device.type == "cpu":
        facts["instructions"] = f"{torch.backends.cpu.get_cpu_capability()} in PyTorch"
        facts["native"] = native.describe()
    return facts


@dataclass(frozen=True)
class MachineLimit:
    """The best that this machine does, measured.

    Attributes:
        gflops: 10⁹ floating-point operations a second, of a large matrix product or, on a CPU, of
            multiply-adds in registers, whichever is faster.
        gigabytes: 10⁹ bytes a second, read and written, of a large copy.
    """

    gflops: float
    gigabytes: float

    def milliseconds(self, operations: float, moved: float) -> float:
        """Shortest time for so many operations and so many bytes, whichever takes longer."""
        return max(operations / self.gflops, moved / self.gigabytes) / 1e6

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


@torch.no_grad()
def measure_limit(device: torch.device, dtype: torch.dtype, timer: Timer) -> MachineLimit:
    """Time a large product, on a CPU also a loop of multiply-adds in registers, and a large copy.

    A product alone would flatter us where PyTorch's library leaves vector units idle that ours
    uses, as it does AVX-512 on some CPUs. There all is in float32, in which every kernel computes
    whatever it stores.

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
    # The lower quartile: a limit is what the machine can do, not what it does on average.
    gflops = 2 * side**3 / times["product"].low / 1e6
    return MachineLimit(
        gflops=max(gflops, _multiply_add_gflops()) if device.type == "cpu" else gflops,
        gigabytes=2 * _COPIED_BYTES / times["copy"].low / 1e6,
    )


def _multiply_add_gflops() -> float:
    """Of all threads, from registers alone; 0 where the C++ operators are not built."""
    try:
        return torch.get_num_threads() * native.multiply_add_rate()
    except RuntimeError:
        return 0.0
