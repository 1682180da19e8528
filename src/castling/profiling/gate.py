"""No speed without correctness: what a subject must pass before it is timed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
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
#: For what others wrote and we only compare with: enough to say that it computes the same thing.
FOREIGN_LIMITS = {
    torch.float32: (1e-4, 1e-3),
    torch.bfloat16: (5e-2, 1e-1),
    torch.float16: (5e-2, 1e-1),
}
#: A model's output against the same model on the naive path, or as another runtime computes it.
MODEL_LIMIT = 1e-4
RUNTIME_LIMIT = 1e-3

#: Of N×N forms longer than this only some rows are compared: all keys, these queries.
_MOST_TOKENS = 1024
_ROWS = 256


class GateError(RuntimeError):
    """A subject gave a wrong result; it is not timed."""


def require_sane(name: str, output: object, batch: int) -> Tensor:
    """``output``, if it is one finite tensor with ``batch`` rows; GateError otherwise."""
    if not isinstance(output, Tensor) or output.shape[0] != batch:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise GateError(f"{name} gave {shape} for a batch of {batch} images")
    if not bool(torch.isfinite(output).all()):
        raise GateError(f"{name} gave NaN or infinite values")
    return output


def relative_rms(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, in float64; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.detach().double(), expected.detach().double()
    size = float(expected.norm())
    return float((found - expected).norm()) / size if size else float(found.norm())


def require_close(what: str, error: float, limit: float) -> None:
    """GateError unless ``error`` is at most ``limit``; a NaN is refused as well."""
    if not error <= limit:
        raise GateError(f"{what} is wrong by {error:.1e} (relative RMS), allowed is {limit:.1e}")


def compared_rows(core: AttentionCore, tokens: int) -> Tensor | None:
    """The queries whose results are compared: all (None), or some of a long N×N form."""
    exact = isinstance(core.config, QuadraticTaylor) and core.config.form == "exact"
    if tokens <= _MOST_TOKENS or core.dconv is not None or not (core.kernel.quadratic or exact):
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
    """The naive formula in float64 on the CPU.

    Args:
        core: the attention.
        packed: (B, N, 3, H, d) in any precision.
        grid: (h, w) of the tokens behind the prefix.
        prefix: tokens in front of the grid.
        rows: queries to compute; None is all.
        grad: (B, N, H·d), gradient of the output, zero outside of ``rows``; None for no gradients.

    Returns:
        the output (B, rows, H·d), and the gradients of ``packed`` and of every parameter.
    """
    core = copy.deepcopy(core).cpu().double()
    if rows is not None and isinstance(core.config, QuadraticTaylor):
        # Few queries: the N×N order is the cheap one.
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
    """The naive formula in float64, which all ways to compute one kernel are compared with.

    Attributes:
        out: (B, rows, H·d).
        gradients: of the packed projection and of every parameter; empty without ``grad``.
        rows: the queries compared; None is all.
        grad: (B, N, H·d), the gradient of the output that gave ``gradients``; None for none.
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
        """See :func:`exact_result`; ``grad`` is taken at the compared rows only."""
        rows = compared_rows(core, packed.shape[1])
        if grad is not None and rows is not None:
            some = torch.zeros_like(grad)
            some[:, rows] = grad[:, rows]
            grad = some
        out, gradients = exact_result(core, packed, grid, prefix, rows, grad)
        return cls(out, tuple(gradients), rows, grad)

    def error(self, out: Tensor, leaves: Sequence[Tensor], limits: tuple[float, float]) -> float:
        """How wrong a result is: relative RMS of the output, or of the worst gradient.

        Args:
            out: (B, N, H·d), with its graph where gradients are compared.
            leaves: the packed projection and every parameter.
            limits: of the output and of gradients; GateError above.
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
