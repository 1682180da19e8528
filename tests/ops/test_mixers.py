"""Pooling, separable and swift attention on tensors: their formulas, masks and precisions."""

import pytest
import torch

from castling.ops.pooling import pooling
from castling.ops.separable import separable
from castling.ops.swift import global_query, unit_rows


def pooled_by_hand(image, size, mask=None):
    out = torch.zeros_like(image)
    reach = size // 2
    height, width = image.shape[-2:]
    for b in range(image.shape[0]):
        for y in range(height):
            for x in range(width):
                near = [
                    image[b, :, i, j]
                    for i in range(max(y - reach, 0), min(y + reach + 1, height))
                    for j in range(max(x - reach, 0), min(x + reach + 1, width))
                    if mask is None or mask[b, 0, i, j]
                ]
                own = image[b, :, y, x] if mask is None or mask[b, 0, y, x] else 0
                out[b, :, y, x] = (sum(near) / len(near) if near else 0) - own
    return out


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("grid", [(1, 1), (2, 7), (5, 3)])
def test_pooling_is_the_mean_of_the_neighbours(size, grid):
    image = torch.randn(2, 3, *grid, dtype=torch.float64)
    torch.testing.assert_close(pooling(image, size), pooled_by_hand(image, size))


def test_pooling_leaves_masked_neighbours_out():
    image = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mask = torch.rand(2, 1, 4, 5) > 0.4
    expected = pooled_by_hand(image, 3, mask)
    image = image.masked_fill(~mask, torch.nan).requires_grad_()
    out = pooling(image, 3, mask)
    torch.testing.assert_close(out, expected)
    (gradient,) = torch.autograd.grad(out.sum(), image)
    assert gradient.isfinite().all()


def test_pooling_gradients():
    image = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pooling(x, 3), image)


def separable_in_one_matrix(scores, key, value):
    """Every output from every key: relu(v_i) ⊙ Σ_j A_ij k_j with equal rows A_i = softmax(s)."""
    weights = scores.squeeze(-1).softmax(1)  # (B, N, H)
    matrix = weights[:, None].expand(-1, key.shape[1], -1, -1)
    return value.relu() * torch.einsum("bijh,bjhd->bihd", matrix, key)


def inputs(tokens, dtype=torch.float64):
    scores = torch.randn(2, tokens, 3, 1, dtype=torch.float64)
    key, value = (torch.randn(2, tokens, 3, 4, dtype=torch.float64) for _ in "kv")
    return tuple(t.to(dtype) for t in (scores, key, value))


@pytest.mark.parametrize("tokens", [1, 7, 50])
def test_separable_against_the_matrix(tokens):
    scores, key, value = inputs(tokens)
    expected = separable_in_one_matrix(scores, key, value)
    torch.testing.assert_close(separable(scores, key, value), expected)


def test_separable_key_mask_equals_leaving_tokens_out():
    scores, key, value = inputs(9)
    mask = torch.arange(9)[None].expand(2, -1) < 6
    short = separable(scores[:, :6], key[:, :6], value[:, :6])
    padded = [t.masked_fill(~mask[:, :, None, None], torch.nan) for t in (scores, key, value)]
    padded = [t.requires_grad_() for t in padded]
    out = separable(*padded, key_mask=mask)
    torch.testing.assert_close(out[:, :6], short)
    assert not out[:, 6:].any()
    out.sum().backward()
    assert all(t.grad.isfinite().all() for t in padded)
    assert not separable(scores, key, value, key_mask=torch.zeros_like(mask)).any()


def test_separable_gradients_and_shapes():
    leaves = [t[:1].requires_grad_() for t in inputs(4)]
    assert torch.autograd.gradcheck(separable, leaves)
    scores, key, value = inputs(4)
    with pytest.raises(ValueError, match="as wide as the key"):
        separable(scores, key, value[..., :2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype):
    scores, key, value = inputs(3000, dtype)
    key = key + 40  # a sum of 3,000 of these overflows float16
    exact = separable(scores.double(), key.double(), value.double())
    torch.testing.assert_close(separable(scores, key, value).double(), exact, rtol=1e-2, atol=1e-2)
    query = key.flatten(2)
    weight = torch.ones(query.shape[-1], dtype=dtype)
    exact = global_query(query.double(), weight.double())
    torch.testing.assert_close(global_query(query, weight).double(), exact, rtol=1e-2, atol=1e-2)


def test_global_query_is_the_weighted_sum():
    query = torch.randn(2, 11, 6, dtype=torch.float64)
    weight = torch.randn(6, dtype=torch.float64)
    scores = torch.einsum("bnd,d->bn", query, weight) / 6**0.5
    scores = scores / scores.norm(dim=1, keepdim=True)
    expected = torch.einsum("bn,bnd->bd", scores, query)[:, None]
    torch.testing.assert_close(global_query(query, weight, 0.0), expected)


def test_swift_zero_tokens_have_no_slope():
    x = torch.zeros(1, 5, 4, requires_grad=True)
    unit = unit_rows(x)
    (unit.sum() + global_query(unit, torch.ones(4)).sum()).backward()
    assert not unit.any()
    assert x.grad.isfinite().all()
