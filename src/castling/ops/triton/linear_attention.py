"""Linear attention on a GPU: the ``triton`` backend of the fused operator, forward and backward.

Contract, formula and arguments: ``castling.ops.fused``. Every sum is made in a fixed order, so the
same inputs give the same bits on the same device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from castling.ops.triton.common import Argument, Launch, launch
from castling.ops.triton.linear_attention_configs import (
    BLOCK_TOKENS,
    SINGLE_LAUNCH_TOKENS,
    parts_of,
)
from castling.ops.triton.linear_attention_forward_kernels import (
    linear_attention_fwd_kernel_output,
    linear_attention_fwd_kernel_single,
    linear_attention_fwd_kernel_state,
)
from castling.ops.triton.linear_attention_problem import Problem, mask_strides, strides
from castling.ops.triton.tiles import sum_parts_kernel


def _mask_bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.view(torch.uint8)


def _counts(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.sum(dim=1).to(torch.float32)


def _sum_parts(parts: Tensor) -> Tensor:
    """Sum over the first axis, in a fixed order."""
    if parts.shape[0] == 1:
        return parts[0]
    out = torch.empty_like(parts[0])
    rows = min(32, 1 << (parts.shape[0] - 1).bit_length())
    block = 128
    arguments: dict[str, Argument] = {
        "parts": parts,
        "out": out,
        "count": parts.shape[0],
        "numbers": out.numel(),
    }
    constants = {"ROWS": rows, "BLOCK": block}
    launch(Launch(sum_parts_kernel, (-(-out.numel() // block),), arguments, constants))
    return out


def _single(problem: Problem, out: Tensor, state: Tensor, *, save_state: bool) -> None:
    query, key, value, residual = problem.query, problem.key, problem.value, problem.residual
    weight = None if problem.local_weight is None else problem.local_weight.contiguous()
    tile = problem.tile("single")
    arguments: dict[str, Argument] = {
        "query": query,
        "key": key,
        "value": value,
        "residual": residual,
        "weight": weight,
        "mask": _mask_bytes(problem.key_mask),
        "counts": _counts(problem.key_mask),
        "scalar": problem.scalar,
        "out": out,
        "state": state,
        "queries": query.shape[1],
        "keys": key.shape[1],
        "heads": query.shape[2],
        "groups": problem.groups,
        **strides("query", query),
        **strides("key", key),
        **strides("value", value),
        **strides("residual", residual),
        **mask_strides(problem.key_mask),
        **problem.numbers_of_outputs(),
    }
    constants = problem.output_constants() | {"SAVE_STATE": save_state, "ROWS": tile.rows}
    grid = (query.shape[0] * problem.groups,)
    kernel = linear_attention_fwd_kernel_single
    launch(Launch(kernel, grid, arguments, constants, tile.num_warps, tile.num_stages))


def _state(problem: Problem) -> Tensor:
    key, value = problem.key, problem.value
    batch, keys, heads, _ = key.shape
    tile = problem.tile("state")
    splits, length = parts_of(keys, batch * problem.groups, tile.rows)
    parts = key.new_empty((splits, batch, heads, problem.numbers), dtype=torch.float32)
    arguments: dict[str, Argument] = {
        "key": key,
        "value": value,
        "mask": _mask_bytes(problem.key_mask),
        "state": parts,
        "batches": batch,
        "keys": keys,
        "heads": heads,
        "groups": problem.groups,
        "splits": splits,
        "split_keys": length,
        **strides("key", key),
        **strides("value", value),
        **mask_strides(problem.key_mask),
        "eps": float(problem.eps),
    }
    constants = problem.state_constants() | {
        "NEED_KEY_SUM": problem.normalize == "rowsum",
        "NEED_VALUE_SUM": problem.output_constants()["HAS_CONSTANT"],
        "ROWS": tile.rows,
    }
    grid = (batch * splits * problem.groups,)
    kernel = linear_attention_fwd_kernel_state
    launch(Launch(kernel, grid, arguments, constants, tile.num_warps, tile.num_stages))
    return _sum_parts(parts)


def _output(problem: Problem, state: Tensor, out: Tensor) -> None:
    query, value, residual = problem.query, problem.value, problem.residual
    weight = None if problem.local_weight is None else problem.local_weight.contiguous()
    batch, queries, heads, _ = query.shape
    tile = problem.tile("output")
    blocks, length = parts_of(queries, batch * problem.groups, tile.rows, BLOCK_TOKENS)
    arguments: dict[str, Argument] = {
        "query": query,
        "value": value,
        "residual": residual,
        "weight": weight,
        "mask": _mask_bytes(problem.key_mask),
        "counts": _counts(problem.key_mask),
        "scalar": problem.scalar,
        "out": out,
        "state": state,
        "queries": queries,
        "heads": heads,
        "groups": problem.groups,
        "blocks": blocks,
        "block_queries": length,
        **strides("query", query),
        **strides("value", value),
        **strides("residual", residual),
        **mask_strides(problem.key_mask),
        **problem.numbers_of_outputs(),
    }
    constants = problem.output_constants() | {"ROWS": tile.rows}
    grid = (batch * blocks * problem.groups,)
    kernel = linear_attention_fwd_kernel_output
    launch(Launch(kernel, grid, arguments, constants, tile.num_warps, tile.num_stages))


def linear_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residual: Tensor | None,
    local_weight: Tensor | None,
    key_mask: Tensor | None,
    scalar: Tensor | None,
    features: str,
    normalize: str,
    identity: float,
    gamma: float,
    alpha: float,
    kv_scale: float,
    eps: float,
    row_eps: float,
    grid: tuple[int, ...],
    prefix: int,
    save_state: bool,
) -> tuple[Tensor, Tensor]:
    """Output (B, N_q, H, d_v) and state (B, H, d·d_v + d + d_v), or (0,) unless ``save_state``."""
    problem = Problem(
        query, key, value, residual, local_weight, key_mask, scalar, features, normalize,
        identity, gamma, alpha, kv_scale, eps, row_eps, tuple(grid), prefix,
    )  # fmt: skip
    out = query.new_empty(problem.out_shape)
    batch, queries, heads, _ = query.shape
    shape = (batch, heads, problem.numbers) if save_state else (0,)
    state = query.new_empty(shape, dtype=torch.float32)
    if query.numel() == 0 or key.numel() == 0 or out.numel() == 0:
        raise ValueError(f"empty input: query {tuple(query.shape)}, key {tuple(key.shape)}")
    if max(queries, key.shape[1]) <= SINGLE_LAUNCH_TOKENS:
        _single(problem, out, state, save_state=save_state)
        return out, state
    state_now = _state(problem)
    _output(problem, state_now, out)
    return out, state_now if save_state else state
