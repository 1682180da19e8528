"""The matrix that an attention applies to its values, for any kernel.

Notable:
- a kernel that is linear in its values prints its own matrix when the values are the identity:
  A = kernel(q, k, I). No formula of any kernel is repeated here;
- the layer's own values are appended to the identity, in the columns of every chunk. Where a kernel
  divides its output rows by their norm (angular and cosine with L2), they tell the divisor, which
  depends on all columns, and A is the linearisation at the norm of the present output:
  A_i = M_i / ‖M_i V‖;
- nothing is believed: A·V must equal what the layer computed, or no matrix is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from castling.attention import AttentionCore, AttentionInputs
from castling.ops.backends import attention_backend
from castling.ops.common import mask_tokens
from castling.utils.text import first_line

#: Copies of a chunk that a kernel holds at a time, roughly.
_COPIES = 4


class NotLinearError(ValueError):
    """No matrix times the values gives the output of an attention."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedTokens:
    """What ``AttentionCore.attend`` was called with, and what it returned.

    Attributes:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        output: (B, N_q, H, d_v), local residual and auxiliary branch included.
        grid: (h, w) of the keys behind the prefix; None where the layer has no use for it.
        num_prefix_tokens: tokens in front of the grid.
        key_mask: (B, N_k) boolean, True where a key takes part.
        bias: of the scores, for softmax and auxiliary branches.
        to_queries: from the keys' positions to the queries', where these are others.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    grid: tuple[int, int] | None = None
    num_prefix_tokens: int = 0
    key_mask: Tensor | None = None
    bias: Tensor | None = None
    to_queries: Callable[[Tensor], Tensor] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implied:
    """The parts of an attention's output: kernel·V + auxiliary·V + local.

    Attributes:
        kernel: (B, H, N_q, N_k), the kernel's matrix.
        auxiliary: (B, H, N_q, N_k), the masked softmax's; None without a branch at work.
        kernel_output: (B, N_q, H, d_v), ``kernel`` times the values.
        auxiliary_output: (B, N_q, H, d_v); None without a branch at work.
        local_output: (B, N_q, H, d_v), the convolution of the values, another one in each channel;
            None without a local residual.
        exact: whether the kernel is linear in its values; else the matrices are those at the norms
            of the present output rows.
    """

    kernel: Tensor
    auxiliary: Tensor | None
    kernel_output: Tensor
    auxiliary_output: Tensor | None
    local_output: Tensor | None
    exact: bool


@torch.no_grad()
def implied_attention(
    layer: AttentionCore, call: ProjectedTokens, *, memory_limit_mb: float = 256.0
) -> Implied:
    """The matrices that ``layer`` applied to its values in one call.

    Args:
        layer: with its kernel and branches.
        call: the recorded call. Half precision is computed in float32.
        memory_limit_mb: the columns of the identity are fed in chunks that take about so many MiB;
            the matrices themselves come on top.

    Raises:
        NotLinearError: no such matrix exists, or it does not give the recorded output.
    """
    call = _at_least_float32(call)
    name = layer.kernel.name
    with attention_backend("naive"):
        parts = _Parts(layer, call)
        local = parts.local()
        target = parts.kernel(call.value, parts.auxiliary(call.value))
        try:
            kernel, auxiliary, exact = _matrices(parts, target, memory_limit_mb)
        except (RuntimeError, ValueError) as error:  # channels of values meet those of keys
            raise NotLinearError(
                f"{name} takes no values of another width, so no matrix of tokens alone describes "
                f"it ({first_line(error)})"
            ) from error
    outputs = [
        torch.einsum("bhqk,bkhc->bqhc", each, call.value)
        for each in (kernel, auxiliary)
        if each is not None
    ]
    together = sum(outputs, torch.zeros_like(target))
    _require_equal(together, target, f"{name} is not linear in its values")
    whole = target if local is None else target + local
    _require_equal(whole, call.output, f"the parts of {name} do not add up to its output")
    return Implied(
        kernel=kernel,
        auxiliary=auxiliary,
        kernel_output=outputs[0],
        auxiliary_output=outputs[1] if len(outputs) > 1 else None,
        local_output=local,
        exact=exact,
    )


class _Parts:
    """Kernel, auxiliary branch and local residual of one call, for any values."""

    def __init__(self, layer: AttentionCore, call: ProjectedTokens) -> None:
        self.layer, self.call = layer, call

    def kernel(self, value: Tensor, added: Tensor | None) -> Tensor:
        """(B, N_k, H, c) -> (B, N_q, H, c); ``added`` is the auxiliary branch's output."""
        call = self.call
        out: Tensor = self.layer.kernel(
            AttentionInputs(
                call.query,
                call.key,
                value,
                added,
                call.key_mask,
                call.bias,
                None if call.to_queries is None else call.to_queries(value),
                call.grid,
                call.num_prefix_tokens,
            )
        )
        return out

    def auxiliary(self, value: Tensor) -> Tensor | None:
        """(B, N_k, H, c) -> (B, N_q, H, c); None without a branch at work."""
        branch, call = self.layer.auxiliary, self.call
        if branch is None or branch.empty:
            return None
        out: Tensor = branch(call.query, call.key, value, key_mask=call.key_mask, bias=call.bias)
        return out

    def local(self) -> Tensor | None:
        """(B, N_q, H, d_v); None without a local residual."""
        convolution, call = self.layer.dconv, self.call
        if convolution is None:
            return None
        out: Tensor = convolution(
            mask_tokens(call.value, call.key_mask), call.grid, call.num_prefix_tokens
        )
        return out if call.to_queries is None else call.to_queries(out)


def _matrices(
    parts: _Parts, target: Tensor, memory_limit_mb: float
) -> tuple[Tensor, Tensor | None, bool]:
    """Kernel matrix, auxiliary matrix, and whether both are exact."""
    value = parts.call.value
    batch, keys, heads, width = value.shape
    queries = target.shape[1]
    kernel = value.new_empty(batch, heads, queries, keys)
    auxiliary: Tensor | None = None
    exact = True
    column = batch * heads * max(queries, keys) * value.element_size() * _COPIES
    step = max(1, int(memory_limit_mb * 2**20 / column))
    for first in range(0, keys, step):
        last = min(first + step, keys)
        unit = torch.zeros(keys, last - first, dtype=value.dtype, device=value.device)
        unit[first:last] = torch.eye(last - first, dtype=value.dtype, device=value.device)
        probe = torch.cat([value, unit[None, :, None].expand(batch, -1, heads, -1)], dim=-1)
        alone, added = parts.kernel(probe, None), parts.auxiliary(probe)
        of_kernel, of_branch, whole = _factors(target, alone, added, width)
        exact &= whole
        kernel[..., first:last] = (of_kernel * alone[..., width:]).transpose(1, 2)
        if added is not None:
            auxiliary = torch.empty_like(kernel) if auxiliary is None else auxiliary
            auxiliary[..., first:last] = (of_branch * added[..., width:]).transpose(1, 2)
    return kernel, auxiliary, exact


def _factors(
    target: Tensor, alone: Tensor, added: Tensor | None, width: int
) -> tuple[Tensor, Tensor, bool]:
    """Per row α and β with α·kernel + β·auxiliary = output on the values, and whether both are 1.

    Least squares in two unknowns, where the two outputs have the same direction with α = β.
    """
    one = torch.ones((), dtype=target.dtype, device=target.device)
    k = alone[..., :width]
    x = torch.zeros_like(k) if added is None else added[..., :width]
    if _relative_error(k + x, target) <= _tolerance(target):
        return one, one, True
    y, k, x = _wide(target), _wide(k), _wide(x)
    kk, kx, xx = ((a * b).sum(dim=-1, keepdim=True) for a, b in ((k, k), (k, x), (x, x)))
    ky, xy = ((a * y).sum(dim=-1, keepdim=True) for a in (k, x))
    determinant = kk * xx - kx * kx
    apart = determinant > torch.finfo(target.dtype).eps * kk * xx
    safe = determinant.where(apart, torch.ones_like(determinant))
    both = kk + 2 * kx + xx
    common = torch.where(both > 0, (ky + xy) / both, torch.zeros_like(both))
    alpha = torch.where(apart, (ky * xx - xy * kx) / safe, common)
    beta = torch.where(apart, (xy * kk - ky * kx) / safe, common)
    return alpha.to(target.dtype), beta.to(target.dtype), False


def _at_least_float32(call: ProjectedTokens) -> ProjectedTokens:
    def wide(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    tensors: dict[str, Any] = {
        name: wide(getattr(call, name)) for name in ("query", "key", "value", "bias")
    }
    return dataclasses.replace(call, **tensors)


def _tolerance(like: Tensor) -> float:
    """Relative, by the precision of a dtype: 1e-3 in float32, 4e-8 in float64, 0.09 in bfloat16."""
    return 3 * float(torch.finfo(like.dtype).eps) ** 0.5 if like.dtype.itemsize > 2 else 0.09


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    wanted = _wide(wanted)
    return float((_wide(found) - wanted).norm() / wanted.norm().clamp(min=1e-30))


def _wide(tensor: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def _require_equal(found: Tensor, wanted: Tensor, message: str) -> None:
    error = _relative_error(found, wanted)
    if not error <= max(_tolerance(found), _tolerance(wanted)):
        raise NotLinearError(f"{message}: off by {error:.1e} of the output")
