"""Correctness checks that a candidate must pass before it is timed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from castling.attention import QuadraticTaylor
from castling.attention.base import AttentionCore
from castling.ops.backends import attention_backend

#: Largest relative RMS error against the naive formula in float64: (output, gradients).
LIMITS = {
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (2.5e-3, 1e-2),
    torch.float16: (1e-3, 1e-2),
}
#: For code of others that ours is compared with: enough to show that it computes the same function.
FOREIGN_LIMITS = {
    torch.float32: (1e-4, 1e-3),
    torch.bfloat16: (5e-2, 1e-1),
    torch.float16: (5e-2, 1e-1),
}
#: Relative RMS error of a model's output against the naive backend, and of a runtime's output
#: against eager PyTorch.
MODEL_LIMIT = 1e-4
RUNTIME_LIMIT = 1e-3

#: Quadratic forms with more tokens are compared at ``_ROWS`` queries only (with all keys).
_MAX_TOKENS = 1024
_ROWS = 256


class CheckError(RuntimeError):
    """A candidate failed its check; it is not timed."""


def require_sane(name: str, outputs: Mapping[str, Tensor], batch: int) -> None:
    """Raise CheckError unless there are outputs, all finite and of ``batch`` rows."""
    if not outputs:
        raise CheckError(f"{name} gave no floating-point numbers")
    for output in outputs.values():
        if output.shape[:1] != (batch,):
            raise CheckError(f"{name} gave {tuple(output.shape)} for a batch of {batch} images")
        if not bool(torch.isfinite(output).all()):
            raise CheckError(f"{name} gave NaN or infinite values")


def worst_rms(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest :func:`relative_rms` of any output; infinite where one is missing."""
    if set(found) != set(expected):
        return float("inf")
    return max(relative_rms(found[name].cpu(), value.cpu()) for name, value in expected.items())


def relative_rms(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, in float64; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.detach().double(), expected.detach().double()
    size = float(expected.norm())
    return float((found - expected).norm()) / size if size else float(found.norm())


def require_close(what: str, error: float, limit: float) -> None:
    """Raise CheckError unless ``error`` is at most ``limit``; NaN fails too."""
    if not error <= limit:
        raise CheckError(f"{what} is wrong by {error:.1e} (relative RMS), allowed is {limit:.1e}")


def compared_rows(core: AttentionCore, tokens: int) -> Tensor | None:
    """Indices of the queries to compare: None for all, some of them for a long quadratic form."""
    exact = isinstance(core.config, QuadraticTaylor) and core.config.form == "exact"
    if tokens <= _MAX_TOKENS or core.dconv is not None or not (core.kernel.quadratic or exact):
        return None
    return torch.linspace(0, tokens - 1, _ROWS).round().long()


def exact_result(
    core: AttentionCore,
    packed: Tensor,
    grid: tuple[int, int],
    prefix: int,
    rows: Tensor | None,
    grad: Tensor | None = None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The naive backend in float64 on the CPU.

    Args:
        core: the attention.
        packed: (B, N, 3, H, d) in any precision.
        grid: (h, w) of the tokens behind the prefix.
        prefix: tokens in front of the grid.
        rows: queries to compute; None is all.
        grad: (B, N, H·d), gradient of the output, zero outside ``rows``; None for no gradients.

    Returns:
        the output (B, rows, H·d), and the gradients of ``packed`` and of every parameter.
    """
    core = copy.deepcopy(core).cpu().double()
    if rows is not None and isinstance(core.config, QuadraticTaylor):
        # With few queries the quadratic order is the cheaper one.
        core.kernel.config = dataclasses.replace(core.config, order="direct")  # type: ignore[assignment]
    packed = packed.detach().cpu().double().requires_grad_(grad is not None)
    with attention_backend("naive"), torch.set_grad_enabled(grad is not None):
        query, key, value = packed.unbind(2)
        if rows is not None:
            query = query[:, rows]
        out = core.attend(query, key, value, grid=grid, num_prefix_tokens=prefix).flatten(2)
    if grad is None:
        return out, ()
    grad = grad.cpu().double()
    leaves = [packed, *core.parameters()]
    return out, torch.autograd.grad(out, leaves, grad if rows is None else grad[:, rows])


@dataclass(frozen=True)
class Expected:
    """The naive backend in float64: what every candidate of one kernel is compared with.

    Attributes:
        out: (B, rows, H·d).
        gradients: of the packed projection and of every parameter; empty without ``grad``.
        rows: indices of the compared queries; None is all.
        grad: (B, N, H·d), gradient of the output behind ``gradients``; None for no gradients.
    """

    out: Tensor
    gradients: tuple[Tensor, ...]
    rows: Tensor | None
    grad: Tensor | None

    @classmethod
    def of(
        cls,
        core: AttentionCore,
        packed: Tensor,
        grid: tuple[int, int],
        prefix: int,
        grad: Tensor | None,
    ) -> Expected:
        """See :func:`exact_result`; ``grad`` is set to zero outside the compared rows."""
        rows = compared_rows(core, packed.shape[1])
        if grad is not None and rows is not None:
            some = torch.zeros_like(grad)
            some[:, rows] = grad[:, rows]
            grad = some
        out, gradients = exact_result(core, packed, grid, prefix, rows, grad)
        return cls(out, tuple(gradients), rows, grad)

    def error(self, out: Tensor, leaves: Sequence[Tensor], limits: tuple[float, float]) -> float:
        """Relative RMS error of a result: of the output, or of the worst gradient.

        Args:
            out: (B, N, H·d), with its graph where gradients are compared.
            leaves: the packed projection and every parameter.
            limits: largest error of the output, and of a gradient.

        Raises:
            CheckError: an error is above its limit.
        """
        error = relative_rms((out if self.rows is None else out[:, self.rows]).cpu(), self.out)
        require_close("the output", error, limits[0])
        if self.grad is None:
            return error
        found = torch.autograd.grad(out, leaves, self.grad, allow_unused=True)
        error = max(
            float("inf") if mine is None else relative_rms(mine.cpu(), theirs)
            for mine, theirs in zip(found, self.gradients, strict=True)
        )
        require_close("a gradient", error, limits[1])
        return error
