"""Exact second-order Taylor attention on a GPU: the ``triton`` backend of the fused operator.

- "direct" computes tiles of the N×N similarity, "features" sums of products of two channels that
  never reach memory; "auto" takes the one with fewer multiplications. Both have their own backward
  pass, which needs the inputs and the output only.
- Formula: :func:`castling.ops.exact_taylor.exact_taylor`. Every sum has a fixed order.
"""

from __future__ import annotations

from torch import Tensor

from castling.ops.taylor_inputs import TaylorOptions, TaylorTensors
from castling.ops.triton.common import Argument, Launch, launch, padded_width, strides
from castling.ops.triton.taylor_configs import chosen_order, taylor_state_shape
from castling.ops.triton.taylor_direct import (
    taylor_direct_forward_kernel,
    taylor_direct_key_gradient_kernel,
    taylor_direct_query_gradient_kernel,
)
from castling.ops.triton.taylor_features import taylor_gradient_kernel, taylor_output_kernel
from castling.ops.triton.taylor_problem import Problem, Tokens, mask_arguments


def taylor_attention_forward(
    tensors: TaylorTensors, options: TaylorOptions, save_state: bool
) -> tuple[Tensor, Tensor]:
    """Σ_j p_ij v_j / (Σ_j p_ij + N·eps), p = 1 + z + z²/2: (B, N_q, H, d_v) and an empty state.

    Raises:
        ValueError: the order is unknown; dtypes differ or are unsupported; d or d_v exceeds 128.
    """
    problem = Problem(*tensors, options.qk_norm, options.eps)
    query, key, value, key_mask = tensors
    state = problem.empty(*taylor_state_shape(tensors, options, save_state))
    out = problem.empty(*query.shape[:3], value.shape[-1], dtype=value.dtype)
    order = chosen_order(tensors, options)
    if out.numel() == 0:
        return out, state
    key_tokens = Tokens(key, value, key_mask)
    key_scale, value_sums = problem.token_rows(key_tokens)
    if order == "direct":
        _direct_output(problem, key_scale, value_sums, out)
    else:
        sums = _feature_sums(problem, key_tokens, key_scale)
        # The queries' scales; the sums are not used.
        query_scale, _ = problem.token_rows(Tokens(query, query, None))
        _feature_output(problem, query, None, query_scale, sums, out, normalise=True)
    return out, state


def taylor_attention_backward(
    grad_out: Tensor, tensors: TaylorTensors, saved: tuple[Tensor, ...], options: TaylorOptions
) -> tuple[Tensor, ...]:
    """Gradients of query, key and value, contiguous and in their dtype.

    Args:
        grad_out: (B, N_q, H, d_v), any strides.
        tensors: as in the forward pass.
        saved: its output, and its empty state.
        options: as in the forward pass.

    Raises:
        ValueError: as the forward pass.
    """
    problem = Problem(*tensors, options.qk_norm, options.eps, backward=True)
    query, key, value, _ = tensors
    out, _ = saved
    d_query, d_key, d_value = (
        problem.empty(*tensor.shape, dtype=tensor.dtype) for tensor in (query, key, value)
    )
    if min(out.numel(), key.numel()) == 0:
        return d_query.zero_(), d_key.zero_(), d_value.zero_()
    grad_out = grad_out.to(value.dtype)
    direct = chosen_order(tensors, options) == "direct"
    backward = _direct_gradients if direct else _feature_gradients
    backward(problem, grad_out, out.contiguous(), d_query, d_key, d_value)
    return d_query, d_key, d_value


def _widths(problem: Problem) -> dict[str, int]:
    dim, value_dim = problem.query.shape[-1], problem.value.shape[-1]
    return {
        **{"DIM": dim, "VALUE_DIM": value_dim},
        **{"WIDTH": padded_width(dim), "VALUE_WIDTH": padded_width(value_dim)},
    }


def _direct_arguments(problem: Problem) -> dict[str, Argument]:
    return {
        **{
            "query": problem.query,
            "key": problem.key,
            "value": problem.value,
        },
        **strides("query", problem.query),
        **strides("key", problem.key),
        **strides("value", problem.value),
        **mask_arguments(problem.key_mask),
        **{"heads": problem.query.shape[2], "queries": problem.query.shape[1]},
        **{"keys": problem.key.shape[1], "eps": problem.eps},
    }


def _direct_output(problem: Problem, key_scale: Tensor, value_sums: Tensor, out: Tensor) -> None:
    tile = problem.tile("forward")
    tiles = -(-out.shape[1] // tile.block)
    arguments: dict[str, Argument] = {
        **_direct_arguments(problem),
        **{"key_scale": key_scale, "value_sums": value_sums, "counts": problem.counts()},
        **{"out": out, "tiles": tiles},
    }
    constants = {
        **_widths(problem),
        **{"QUERY_BLOCK": tile.block, "KEY_BLOCK": tile.step, "QK_NORM": problem.qk_norm},
        **{"MASKED": problem.key_mask is not None, "OPERAND": problem.operand},
    }
    launch(
        Launch(
            *(taylor_direct_forward_kernel, (tiles * problem.rows,), arguments, constants),
            *(tile.warps, tile.stages),
        )
    )


def _direct_gradients(
    problem: Problem, gradient: Tensor, out: Tensor, d_query: Tensor, d_key: Tensor, d_value: Tensor
) -> None:
    queries, keys = problem.query.shape[1], problem.key.shape[1]
    key_tokens = Tokens(problem.key, problem.value, problem.key_mask)
    key_scale, _ = problem.token_rows(key_tokens)
    square, linear = problem.moments(key_tokens, key_scale, own=True)
    weights, offsets = (problem.empty(problem.rows, queries) for _ in range(2))
    tile = problem.tile("query_gradient")
    tiles = -(-queries // tile.block)
    shared: dict[str, Argument] = {
        **_direct_arguments(problem),
        **strides("gradient", gradient),
        **{"gradient": gradient, "weights": weights, "offsets": offsets},
    }
    arguments: dict[str, Argument] = {
        **shared,
        **{"key_scale": key_scale, "square": square, "linear": linear, "out": out},
        **{"counts": problem.counts(), "query_gradient": d_query, "tiles": tiles},
    }
    constants = {
        **_widths(problem),
        **{"QUERY_BLOCK": tile.block, "KEY_BLOCK": tile.step, "QK_NORM": problem.qk_norm},
        **{"MASKED": problem.key_mask is not None, "OPERAND": problem.operand},
    }
    launch(
        Launch(
            *(taylor_direct_query_gradient_kernel, (tiles * problem.rows,), arguments, constants),
            *(tile.warps, tile.stages),
        )
    )
    query_scale, gradient_sums = problem.token_rows(Tokens(problem.query, gradient, None), weights)
    tile = problem.tile("key_gradient")
    tiles = -(-keys // tile.block)
    arguments = {
        **shared,
        **{"query_scale": query_scale, "gradient_sums": gradient_sums, "tiles": tiles},
        **{"key_gradient": d_key, "value_gradient": d_value},
    }
    constants = {**constants, "QUERY_BLOCK": tile.step, "KEY_BLOCK": tile.block}
    launch(
        Launch(
            *(taylor_direct_key_gradient_kernel, (tiles * problem.rows,), arguments, constants),
            *(tile.warps, tile.stages),
        )
    )


def _feature_sums(
    problem: Problem,
    of: Tokens,
    scale: Tensor,
    weights: Tensor | None = None,
    offsets: Tensor | None = None,
) -> dict[str, Argument]:
    """S₀, S₁, S₂ weighted with ``weights`` and E₁, E₂ with ``offsets``, all over N_k."""
    moments, sums = problem.moments(of, scale, weights)
    square, linear = problem.moments(of, scale, offsets, own=True)
    return {
        **{"moments": moments, "sums": sums, "square": square, "linear": linear},
        "pairs": problem.pairs(of, scale, weights),
    }


def _feature_output(
    problem: Problem,
    x: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    sums: dict[str, Argument],
    out: Tensor,
    *,
    normalise: bool,
) -> None:
    tile = problem.tile("output")
    blocks = -(-x.shape[1] // tile.block)
    arguments: dict[str, Argument] = {
        **{"x": x, "scale": scale, **sums, "counts": problem.counts(), "out": out},
        **strides("x", x),
        **mask_arguments(mask),
        **{"heads": x.shape[2], "tokens": x.shape[1], "keys": problem.key.shape[1]},
        **{"blocks": blocks, "eps": problem.eps},
    }
    constants = {
        **_widths(problem),
        **{"BLOCK": tile.block, "MASKED": mask is not None, "NORMALISE": normalise},
        **{"COUNTED": problem.key_mask is not None, "OPERAND": problem.operand},
    }
    launch(
        Launch(
            *(taylor_output_kernel, (blocks * problem.rows,), arguments, constants),
            *(tile.warps, tile.stages),
        )
    )


def _feature_gradients(
    problem: Problem, gradient: Tensor, out: Tensor, d_query: Tensor, d_key: Tensor, d_value: Tensor
) -> None:
    key_tokens = Tokens(problem.key, problem.value, problem.key_mask)
    key_scale, value_sums = problem.token_rows(key_tokens)
    centre = problem.mean_over_keys(value_sums)
    key_tokens = Tokens(problem.key, problem.value, problem.key_mask, centre)
    sums = _feature_sums(problem, key_tokens, key_scale)
    query_tokens = Tokens(problem.query, gradient, None)
    query_scale, _ = problem.token_rows(query_tokens)
    weights, offsets = (problem.empty(*query_scale.shape) for _ in range(2))
    _feature_row_gradient(
        problem, query_tokens, query_scale, sums, centre, d_query, weights, offsets
    )
    sums = _feature_sums(problem, query_tokens, query_scale, weights, offsets)
    _feature_output(
        problem,
        problem.key,
        problem.key_mask,
        key_scale,
        sums,
        d_value,
        normalise=False,
    )
    _feature_row_gradient(problem, key_tokens, key_scale, sums, centre, d_key)


def _feature_row_gradient(
    problem: Problem,
    of: Tokens,
    scale: Tensor,
    sums: dict[str, Argument],
    centre: Tensor,
    result: Tensor,
    weights: Tensor | None = None,
    offsets: Tensor | None = None,
) -> None:
    """Gradients of queries, with ``weights`` and ``offsets`` to write, or of keys."""
    tile = problem.tile("gradient")
    blocks = -(-of.x.shape[1] // tile.block)
    arguments: dict[str, Argument] = {
        **{**of.arguments(), **sums, "scale": scale, "counts": problem.counts()},
        **{"centre": centre, "gradient": result, "weights": weights, "offsets": offsets},
        **{"keys": problem.key.shape[1], "blocks": blocks, "eps": problem.eps},
    }
    widths = _widths(problem)
    constants = {
        **{"DIM": widths["DIM"], "W_DIM": widths["VALUE_DIM"], "WIDTH": widths["WIDTH"]},
        **{
            "W_WIDTH": widths["VALUE_WIDTH"],
            "BLOCK": tile.block,
            "QK_NORM": problem.qk_norm,
        },
        **{"MASKED": of.mask is not None, "COUNTED": problem.key_mask is not None},
        **{"QUERIES": weights is not None, "OPERAND": problem.operand},
    }
    launch(
        Launch(
            *(taylor_gradient_kernel, (blocks * problem.rows,), arguments, constants),
            *(tile.warps, tile.stages),
        )
    )
