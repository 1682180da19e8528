"""What ``castling bench ops`` runs: kernels on every backend, PyTorch's softmax, authors' code."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from castling.attention import QuadraticTaylor, Softmax
from castling.attention.base import AttentionCore
from castling.attention.config import AttentionConfig
from castling.ops.backends import BACKENDS, attention_backend, select_backend
from castling.ops.taylor_features import taylor_feature_count
from castling.profiling.references import Packed, fused_softmax, reference_for

#: What the backends of a kernel are compared with.
SDPA, REFERENCE = "sdpa", "reference"
#: The kernel that is measured in every setting.
SOFTMAX = "softmax"


@dataclass(frozen=True)
class Setting:
    """The shape of one comparison.

    Attributes:
        batch: B.
        tokens: N.
        heads: H.
        dim: d, channels per head of queries, keys and values.
        dtype: of inputs and output.
    """

    batch: int
    tokens: int
    heads: int
    dim: int
    dtype: torch.dtype = torch.float32

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the tokens after the prefix, as square as possible."""
        tokens = self.tokens - self.prefix
        height = next(h for h in range(math.isqrt(tokens), 0, -1) if tokens % h == 0)
        return height, tokens // height

    @property
    def prefix(self) -> int:
        """1 for a prime number of tokens, such as 197 (196 and a class token); else 0."""
        prime = all(self.tokens % h for h in range(2, math.isqrt(self.tokens) + 1))
        return int(prime and self.tokens > 3)

    def packed(self, device: torch.device) -> Tensor:
        """Standard-normal q, k and v, (B, N, 3, H, d), in the layout of a packed projection."""
        generator = torch.Generator().manual_seed(self.tokens)
        shape = (self.batch, self.tokens, 3, self.heads, self.dim)
        return torch.randn(shape, generator=generator).to(device=device, dtype=self.dtype)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"N={self.tokens} B={self.batch} H={self.heads} d={self.dim} {dtype}"


@dataclass(frozen=True)
class OpCandidate:
    """A kernel on one backend, or the code it is compared with.

    Attributes:
        kernel: its text, as ``castling.profiling.candidates.read_attention`` takes it.
        backend: one of BACKENDS, ``"sdpa"`` or ``"reference"``.
        core: the attention.
        call: (B, N, 3, H, d) to (B, N, H·d).
    """

    kernel: str
    backend: str
    core: AttentionCore
    call: Packed


def core_for(config: AttentionConfig, setting: Setting, device: torch.device) -> AttentionCore:
    """The attention without projections and auxiliary branch, weights in float32 as in training."""
    torch.manual_seed(0)
    config = dataclasses.replace(config, auxiliary=None)
    return AttentionCore(config, setting.heads, setting.dim).to(device)


def op_candidates(
    kernel: str, config: AttentionConfig, backends: Sequence[str], setting: Setting, packed: Tensor
) -> list[OpCandidate | tuple[str, str, str]]:
    """The authors' code for a kernel, then the kernel on every backend.

    Returns:
        Candidates; (kernel, backend, reason) in place of one that cannot run.
    """
    core = core_for(config, setting, packed.device)
    if isinstance(config, Softmax):
        return [OpCandidate(kernel, SDPA, core, fused_softmax)]
    found: list[OpCandidate | tuple[str, str, str]] = []
    try:
        reference = reference_for(core, packed, setting.grid, setting.prefix)
        if reference is not None:
            found.append(OpCandidate(kernel, REFERENCE, core, reference))
    except ValueError as error:
        found.append((kernel, REFERENCE, str(error)))
    for backend in backends:
        # Forcing a backend costs microseconds: do not force the one that is chosen anyway.
        chosen = select_backend(packed) == backend
        call = _on_backend(core, None if chosen else backend, setting)
        found.append(OpCandidate(kernel, backend, core, call))
    return found


def _on_backend(core: AttentionCore, backend: str | None, setting: Setting) -> Packed:
    grid, prefix = setting.grid, setting.prefix

    def attend(packed: Tensor) -> Tensor:
        query, key, value = packed.unbind(2)
        return core.attend(query, key, value, grid=grid, num_prefix_tokens=prefix).flatten(2)

    def forced(packed: Tensor) -> Tensor:
        with attention_backend(backend):
            return attend(packed)

    return attend if backend is None else forced


def operations(config: AttentionConfig, setting: Setting) -> float | None:
    """Floating-point operations of a kernel's two products; None for quadratic kernels."""
    tokens, dim = setting.tokens, setting.dim
    heads = setting.batch * setting.heads
    if isinstance(config, QuadraticTaylor) and config.form in ("exact", "kronecker"):
        features = taylor_feature_count("exact", dim)
        return 4.0 * heads * tokens * dim * min(tokens, features)
    if config.name in ("softmax", "quadratic_angular"):
        return None
    if config.name == "mean":  # one sum
        return 1.0 * heads * tokens * dim
    return 4.0 * heads * tokens * dim * dim


def moved_bytes(setting: Setting) -> float:
    """Bytes of q, k, v and the output."""
    numbers = 4.0 * setting.batch * setting.tokens * setting.heads * setting.dim
    return numbers * setting.dtype.itemsize


class _Backends(TorchDispatchMode):
    """Records the backend argument of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "namespace", "") == "castling":
            words = {leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, str)}
            self.found |= words & set(BACKENDS)
        return func(*args, **(kwargs or {}))


def backend_taken(call: Callable[[], Tensor], asked: str) -> tuple[Tensor, str]:
    """The result of a call, and the backend that ran.

    Args:
        call: is called once; the first call with its shape and options.
        asked: the forced backend, which kernels without an operator of their own ignore.
    """
    if asked == "compiled":  # count compiled frames: nothing is compiled under a dispatch mode
        frames = torch._dynamo.utils.counters["frames"]
        before = frames["ok"]
        out = call()
        return out, "compiled" if frames["ok"] > before else "naive"
    with _Backends() as backends:
        out = call()
    return out, next(iter(backends.found), "naive")
