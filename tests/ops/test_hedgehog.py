"""Traps of learned exponential features that the common table of linear kernels does not reach."""

import pytest
import torch

from castling.ops.elu_linear import elu_features, elu_linear
from castling.ops.hedgehog import hedgehog, hedgehog_features

IDENTITY = torch.eye(8).repeat(2, 1, 1), torch.zeros(2, 8)


def attend(q, k, v, activation, **options):
    return hedgehog(q, k, v, IDENTITY, IDENTITY, activation=activation, **options)


@pytest.mark.parametrize("activation", ["softmax", "exp"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_far_beyond_the_range_of_float16(activation, dtype):
    """exp(200) overflows even float32; the ratio must not."""
    q, k, v = (torch.randn(1, 9, 2, 8) * size for size in (200, 200, 1))
    q, k, v = (t.to(dtype).requires_grad_() for t in (q, k, v))
    out = attend(q, k, v, activation)
    out.float().sum().backward()
    assert all(t.isfinite().all() for t in (out, q.grad, k.grad, v.grad))


@pytest.mark.parametrize("call", [lambda *a, **o: attend(*a, "softmax", **o), elu_linear])
def test_nan_in_masked_keys_reaches_neither_result_nor_gradient(call):
    q, k, v = (torch.randn(2, 7, 2, 8) for _ in "qkv")
    mask = torch.arange(7)[None].expand(2, -1) < 4
    clean = call(q, k[:, :4], v[:, :4])
    k, v = (t.masked_fill(~mask[:, :, None, None], torch.nan).requires_grad_() for t in (k, v))
    out = call(q, k, v, key_mask=mask)
    torch.testing.assert_close(out, clean)
    out.sum().backward()
    assert k.grad.isfinite().all()
    assert v.grad.isfinite().all()


@pytest.mark.parametrize("call", [lambda *a, **o: attend(*a, "exp", **o), elu_linear])
def test_without_any_key_the_output_is_zero(call):
    q, k, v = (torch.randn(1, 5, 2, 8) for _ in "qkv")
    assert not call(q, k, v, key_mask=torch.zeros(1, 5, dtype=torch.bool)).any()


def test_learned_maps_receive_gradients():
    q, k, v = (torch.randn(1, 5, 2, 4, dtype=torch.float64) for _ in "qkv")
    weight = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    for activation in ("softmax", "exp"):

        def of_map(w, b, activation=activation):
            return hedgehog(q, k, v, (w, b), (w * 0.5, b + 1), activation=activation)

        assert torch.autograd.gradcheck(of_map, (weight, bias), atol=1e-6)


def test_a_common_shift_of_exp_keys_cancels():
    """Large features are divided by one number for all keys of a head: weights do not change."""
    u = torch.randn(1, 6, 2, 4, dtype=torch.float64)
    plain = torch.cat((u, -u), dim=-1).exp()
    shared = hedgehog_features(u, "exp", over_tokens=True)
    ratio = plain / shared
    torch.testing.assert_close(ratio, ratio[:, :1, :, :1].expand_as(ratio))


def test_elu_features_keep_their_digits_far_below_zero():
    x = torch.tensor([-30.0, -1.0, 0.0, 2.0])
    torch.testing.assert_close(elu_features(x), torch.tensor([9.3576e-14, 0.36788, 1.0, 3.0]))


def test_plain_exponentials_whose_largest_features_never_meet():
    identity = torch.eye(4)[None], torch.zeros(1, 4)
    q, k = (torch.zeros(1, 1, 1, 4) for _ in range(2))
    q[..., 0], k[..., 1] = 25.0, 25.0
    value = torch.ones(1, 1, 1, 2)
    out = hedgehog(q, k, value, identity, identity, activation="exp")
    torch.testing.assert_close(out, value)
    none = torch.zeros(1, 0, 1, 4)
    assert hedgehog(q, none, none[..., :2], identity, identity, activation="exp").eq(0).all()
