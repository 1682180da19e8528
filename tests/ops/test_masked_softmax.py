"""The auxiliary branch's operator: mask, chunks, memory, masks of keys."""

import pytest
import torch
from torch.nn import functional as F

from castling.ops.masked_softmax import masked_softmax, softmax_scores
from castling.ops.softmax import softmax_attention


def inputs(tokens=37, dtype=torch.float64, grad=False):
    return [torch.randn(2, tokens, 3, 8, dtype=dtype).requires_grad_(grad) for _ in ("q", "k", "v")]


def reference(q, k, v, threshold, scale):
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * scale).softmax(-1)
    return torch.einsum("bhqk,bkhe->bqhe", torch.where(weights > threshold, weights, 0), v)


def test_zero_threshold_is_scaled_dot_product_attention():
    q, k, v = inputs()
    out, *_ = masked_softmax(q, k, v, torch.zeros(()), scale=8**-0.5)
    expected = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
    torch.testing.assert_close(out, expected.transpose(1, 2))


@pytest.mark.parametrize("threshold", [0.02, 0.2, 0.9])
def test_mask_and_statistics(threshold):
    q, k, v = inputs()
    threshold = torch.tensor(threshold, dtype=torch.float64)
    out, hinge, fraction, mass = masked_softmax(q, k, v, threshold, scale=1.0)
    torch.testing.assert_close(out, reference(q, k, v, threshold, 1.0))
    weights = softmax_scores(q, k, 1.0, None, None)
    kept = weights > threshold
    assert float(fraction) == pytest.approx(float(kept.double().mean()))
    assert float(mass) == pytest.approx(float((weights * kept).sum(-1).mean()))
    assert float(hinge) == pytest.approx(float((weights - threshold).relu().sum(-1).mean()))


def test_a_threshold_of_one_is_empty_even_for_certain_rows():
    q, k, v = inputs(tokens=5)
    out, _, fraction, mass = masked_softmax(q * 1e4, k, v, torch.ones(()), scale=1.0)
    assert not out.any()
    assert fraction == 0
    assert mass == 0


@pytest.mark.parametrize("tokens", [1, 63, 101])
def test_chunks_change_nothing(tokens):
    """One query at a time, with a bias and a key mask, forward and backward."""
    mask = torch.ones(2, tokens, dtype=torch.bool)
    mask[1, tokens // 2 + 1 :] = False
    results = []
    base = inputs(tokens)
    table = torch.randn(1, 3, tokens, tokens, dtype=torch.float64)
    for limit in (256.0, 2 * 3 * tokens * 8 / 2**20):
        q, k, v, bias = (t.clone().requires_grad_() for t in (*base, table))
        out, hinge, fraction, mass = masked_softmax(
            *(q, k, v, torch.tensor(0.01)),
            scale=0.35,
            bias=bias,
            key_mask=mask,
            memory_limit_mb=limit,
        )
        (out.square().sum() + hinge).backward()
        results.append([out, hinge, fraction, mass, q.grad, k.grad, v.grad, bias.grad])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked)


def test_chunks_bound_the_largest_tensor():
    """No tensor saved or made in a forward pass exceeds the limit, except inputs and output."""
    tokens, limit = 512, 0.25
    q, k, v = (t.float().requires_grad_() for t in inputs(tokens))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel() * out.element_size())
            return out

    with Watch():
        out, *_ = masked_softmax(q, k, v, torch.tensor(0.01), scale=1.0, memory_limit_mb=limit)
        out.sum().backward()
    assert largest <= max(limit * 2**20, out.numel() * 4)
    assert largest < 2 * 3 * tokens * tokens * 4 / 8  # far below the whole matrix


def test_gradients_match_finite_differences():
    q, k, v = (t[:1, :5].detach().requires_grad_() for t in inputs())
    threshold = torch.tensor(0.15, dtype=torch.float64)

    def run(q, k, v):
        out, hinge, *_ = masked_softmax(q, k, v, threshold, scale=0.5)
        return out, hinge

    assert torch.autograd.gradcheck(run, (q, k, v), eps=1e-7, atol=1e-5)


def test_a_sample_without_keys_gets_zeros():
    q, k, v = inputs()
    mask = torch.ones(2, 37, dtype=torch.bool)
    mask[0] = False
    out, *_ = masked_softmax(q, k, v, torch.zeros(()), scale=1.0, key_mask=mask)
    assert not out[0].any()
    assert torch.isfinite(out).all()


def test_softmax_operator_masks_and_biases():
    q, k, v = inputs()
    bias = torch.randn(1, 3, 37, 37, dtype=torch.float64)
    mask = torch.ones(2, 37, dtype=torch.bool)
    mask[:, 30:] = False
    expected, *_ = masked_softmax(q, k, v, torch.zeros(()), scale=8**-0.5, bias=bias, key_mask=mask)
    torch.testing.assert_close(softmax_attention(q, k, v, bias=bias, key_mask=mask), expected)
    short = softmax_attention(q, k[:, :30], v[:, :30])
    torch.testing.assert_close(softmax_attention(q, k, v, key_mask=mask), short)
