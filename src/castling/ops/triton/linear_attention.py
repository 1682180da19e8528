"""Linear attention on a GPU: the ``triton`` backend of the fused operator, forward and backward.

Formula: :mod:`castling.ops.linear_attention`. Every sum has a fixed order: the same inputs give the
same bits on the same device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.triton.common import (
    Argument,
    Launch,
    launch,
    mask_strides,
    strides,
    sum_parts,
)
from castling.ops.triton.linear_attention_backward_keys import linear_attention_bwd_kernel_keys
from castling.ops.triton.linear_attention_backward_queries import (
    linear_attention_bwd_kernel_queries,
)
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
from castling.ops.triton.linear_attention_problem import Problem

_NUMBERS_OF_KEYS = ("all_keys", "kv_scale", "gamma", "alpha", "eps")


def linear_attention_forward(
    tensors: LinearTensors, options: LinearOptions, save_state: bool
) -> tuple[Tensor, Tensor]:
    """Output (B, N_q, H, d_v) and state (B, H, d·d_v + d + d_v), or (0,) unless ``save_state``.

    Raises:
        ValueError: shapes or dtypes disagree or are not supported.
    """
    problem = Problem(tensors, options)
    query, key = tensors.query, tensors.key
    out = query.new_empty(problem.out_shape)
    nothing = query.new_empty((0,), dtype=torch.float32)
    if max(query.shape[1], key.shape[1]) <= SINGLE_LAUNCH_TOKENS:
        shape = (query.shape[0], query.shape[2], problem.numbers)
        state = query.new_empty(shape, dtype=torch.float32) if save_state else nothing
        _single(problem, out, state, save_state=save_state)
        return out, state
    state = _state(problem)
    _output(problem, state, out)
    return out, state if save_state else nothing


def linear_attention_backward(
    grad_out: Tensor,
    tensors: LinearTensors,
    saved: tuple[Tensor, ...],
    options: LinearOptions,
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value, residual, local_weight and scalar, each like its input.

    Raises:
        ValueError: as the forward pass; or it did not save the state.
    """
    problem = Problem(tensors, options)
    query, residual, (state,) = tensors.query, tensors.residual, saved
    expected = (query.shape[0], query.shape[2], problem.numbers)
    if tuple(state.shape) != expected:
        raise ValueError(
            f"state must be {expected}, got {tuple(state.shape)}: run the forward with save_state"
        )
    if tuple(grad_out.shape) != problem.out_shape:
        raise ValueError(f"grad_out must be {problem.out_shape}, got {tuple(grad_out.shape)}")
    d_query, d_identity, d_state, shift, d_scalar = _past_queries(problem, grad_out, state)
    share, d_residual = d_identity, None
    if residual is not None:
        share = None
        d_residual = torch.zeros_like(residual) if d_identity is None else d_identity
    d_key, d_value, d_weight = _past_keys(problem, grad_out, d_state, shift, share)
    return d_query, d_key, d_value, d_residual, d_weight, d_scalar


def _row_arguments(problem: Problem, out: Tensor, state: Tensor) -> dict[str, Argument]:
    """Arguments of every kernel that writes rows of the output."""
    tensors = problem.tensors
    _, queries, heads, _ = tensors.query.shape
    return {
        "query": tensors.query,
        "value": tensors.value,
        "residual": tensors.residual,
        "weight": problem.weight,
        "mask": problem.mask,
        "counts": problem.counts,
        "scalar": tensors.scalar,
        "out": out,
        "state": state,
        "queries": queries,
        "heads": heads,
        "groups": problem.groups,
        **strides("query", tensors.query),
        **strides("value", tensors.value),
        **strides("residual", tensors.residual),
        **mask_strides(problem.mask),
        **problem.numbers_of_rows(),
        **problem.numbers_of_grid(),
    }


def _single(problem: Problem, out: Tensor, state: Tensor, *, save_state: bool) -> None:
    key = problem.tensors.key
    tile = problem.tile("single")
    arguments = _row_arguments(problem, out, state)
    arguments |= {"key": key, "keys": key.shape[1], **strides("key", key)}
    constants = (
        problem.row_constants()
        | problem.local_constants()
        | {"SAVE_STATE": save_state, "ROWS": tile.rows}
    )
    grid = (key.shape[0] * problem.groups,)
    kernel = linear_attention_fwd_kernel_single
    launch(Launch(kernel, grid, arguments, constants, tile.num_warps, tile.num_stages))


def _state(problem: Problem) -> Tensor:
    key, value = problem.tensors.key, problem.tensors.value
    batch, keys, heads, _ = key.shape
    tile = problem.tile("state")
    splits, length = parts_of(keys, batch * problem.groups, tile.rows)
    parts = key.new_empty((splits, batch, heads, problem.numbers), dtype=torch.float32)
    arguments: dict[str, Argument] = {
        "key": key,
        "value": value,
        "mask": problem.mask,
        "state": parts,
        "batches": batch,
        "keys": keys,
        "heads": heads,
        "groups": problem.groups,
        "splits": splits,
        "split_keys": length,
        **strides("key", key),
        **strides("value", value),
        **mask_strides(problem.mask),
        "eps": float(problem.options.eps),
    }
    constants = problem.state_constants() | {
        "NEED_KEY_SUM": problem.options.normalize == "rowsum",
        "NEED_VALUE_SUM": problem.has_constant,
        "ROWS": tile.rows,
    }
    grid = (batch * splits * problem.groups,)
    kernel = linear_attention_fwd_kernel_state
    launch(Launch(kernel, grid, arguments, constants, tile.num_warps, tile.num_stages))
    return sum_parts(parts)


def _output(problem: Problem, state: Tensor, out: Tensor) -> None:
    batch, queries, _, _ = problem.tensors.query.shape
    tile = problem.tile("output")
    blocks, length = parts_of(queries, batch * problem.groups, tile.rows, BLOCK_TOKENS)
    arguments = _row_arguments(problem, out, state)
    arguments |= {"blocks": blocks, "block_queries": length}
    constants = problem.row_constants() | problem.local_constants() | {"ROWS": tile.rows}
    grid = (batch * blocks * problem.groups,)
    kernel = linear_attention_fwd_kernel_output
    launch(Launch(kernel, grid, arguments, constants, tile.num_warps, tile.num_stages))


def _past_queries(
    problem: Problem, grad_out: Tensor, state: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Gradients of queries, identity term and state; the values' shift; the scalar's gradient."""
    query, value, residual = problem.tensors.query, problem.tensors.value, problem.tensors.residual
    batch, queries, heads, _ = query.shape
    groups = problem.groups
    tile = problem.tile("queries")
    parts, length = parts_of(queries, batch * groups, tile.rows)

    def partial(*shape: int) -> Tensor:
        return query.new_empty((parts, batch, *shape), dtype=torch.float32)

    d_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    has_identity = problem.identity_from != "none"
    d_identity = query.new_empty(problem.out_shape) if has_identity else None
    state_parts = partial(heads, problem.numbers)
    scalar_parts = None if problem.tensors.scalar is None else partial(groups)
    shift = None
    if problem.options.normalize == "rowsum":
        shift = query.new_empty((batch, heads, problem.value_dim), dtype=torch.float32)
    arguments: dict[str, Argument] = {
        "grad_out": grad_out,
        "query": query,
        "value": value,
        "residual": residual,
        "mask": problem.mask,
        "counts": problem.counts,
        "scalar": problem.tensors.scalar,
        "state": state,
        "d_query": d_query,
        "d_identity": d_identity,
        "state_parts": state_parts,
        "scalar_parts": scalar_parts,
        "value_shifts": shift,
        "batches": batch,
        "queries": queries,
        "heads": heads,
        "groups": groups,
        "parts": parts,
        "part_queries": length,
        **strides("grad_out", grad_out),
        **strides("query", query),
        **strides("value", value),
        **strides("residual", residual),
        **mask_strides(problem.mask),
        **problem.numbers_of_rows(),
    }
    constants = problem.row_constants() | {"ROWS": tile.rows}
    grid = (batch * parts * groups,)
    kernel = linear_attention_bwd_kernel_queries
    launch(Launch(kernel, grid, arguments, constants, tile.num_warps, tile.num_stages))
    d_scalar = None
    if scalar_parts is not None and problem.tensors.scalar is not None:
        d_scalar = (2 * problem.tensors.scalar.float() * scalar_parts.sum()).to(
            problem.tensors.scalar.dtype
        )
    return d_query, d_identity, sum_parts(state_parts), shift, d_scalar


def _filter_gradient(problem: Problem, parts: Tensor) -> Tensor:
    """(batch, blocks, groups, taps, group · width) -> the gradient of the local weight."""
    assert problem.tensors.local_weight is not None
    weight, group = problem.tensors.local_weight, problem.group
    total = parts.sum(dim=(0, 1)).unflatten(-1, (group, -1))[..., : problem.value_dim]
    total = total.permute(0, 2, 3, 1)
    if not problem.options.grid:
        total = total.sum(dim=2)
    return total.reshape(weight.shape).to(weight.dtype).contiguous()


def _past_keys(
    problem: Problem,
    grad_out: Tensor,
    d_state: Tensor,
    shift: Tensor | None,
    share: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of keys, values and local weight."""
    key, value = problem.tensors.key, problem.tensors.value
    batch, keys, heads, _ = key.shape
    tile = problem.tile("keys")
    blocks, length = parts_of(keys, batch * problem.groups, tile.rows, BLOCK_TOKENS)
    d_key = torch.empty(key.shape, dtype=key.dtype, device=key.device)
    d_value = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    filter_parts = None
    if problem.weight is not None:
        columns = problem.group * problem.state_constants()["VALUE_WIDTH"]
        shape = (batch, blocks, problem.groups, problem.taps, columns)
        filter_parts = key.new_empty(shape, dtype=torch.float32)
    arguments: dict[str, Argument] = {
        "grad_out": grad_out,
        "key": key,
        "value": value,
        "weight": problem.weight,
        "mask": problem.mask,
        "counts": problem.counts,
        "scalar": problem.tensors.scalar,
        "value_share": share,
        "d_state": d_state,
        "value_shifts": shift,
        "d_key": d_key,
        "d_value": d_value,
        "filter_parts": filter_parts,
        "keys": keys,
        "heads": heads,
        "groups": problem.groups,
        "blocks": blocks,
        "block_keys": length,
        **strides("grad_out", grad_out),
        **strides("key", key),
        **strides("value", value),
        **mask_strides(problem.mask),
        **{name: problem.numbers_of_rows()[name] for name in _NUMBERS_OF_KEYS},
        **problem.numbers_of_grid(),
    }
    constants = problem.state_constants() | {
        "NORMALIZE": problem.options.normalize,
        "HAS_SHARE": share is not None,
        "HAS_CONSTANT": problem.has_constant,
        "HAS_SCALAR": problem.tensors.scalar is not None,
        **problem.local_constants(),
        "PADDED_TAPS": 1 << (problem.taps - 1).bit_length(),
        "ROWS": tile.rows,
    }
    grid = (batch * blocks * problem.groups,)
    kernel = linear_attention_bwd_kernel_keys
    launch(Launch(kernel, grid, arguments, constants, tile.num_warps, tile.num_stages))
    d_weight = None if filter_parts is None else _filter_gradient(problem, filter_parts)
    return d_key, d_value, d_weight
