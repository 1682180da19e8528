"""Every linear kernel against its N×N form, in every precision, with every trap of its inputs."""

import math

import pytest
import torch
from torch.nn import functional as F

from castling.ops.angular import angular_similarity, linear_angular, quadratic_angular
from castling.ops.common import normalise_rows
from castling.ops.cosine import cosine_attention
from castling.ops.elu_linear import elu_linear
from castling.ops.feature_attention import similarity_attention
from castling.ops.first_order_taylor import first_order_taylor
from castling.ops.hedgehog import hedgehog
from castling.ops.mean import mean_attention
from castling.ops.relu_linear import relu_linear
from castling.ops.sigmoid_softmax import sigmoid_softmax


def scores(q, k):
    return torch.einsum("bqhd,bkhd->bhqk", q, k)


def explicit_angular(q, k, v, *, constant, normalize, kv_scale, key_mask=None):
    """Linear-angular attention written as one N×N matrix times v, independent of the operator."""
    keys = k.shape[1] if key_mask is None else key_mask.sum(1).to(q.dtype)[:, None, None, None]
    s = 1 / keys if kv_scale == "tokens" else kv_scale
    unit = scores(normalise_rows(q, 1e-6), normalise_rows(k, 1e-6)) / math.pi
    matrix = unit * s
    if constant == "mean":
        matrix = matrix + 0.5 * s
    if constant == "identity":
        matrix = matrix + 0.5 * torch.eye(k.shape[1], dtype=q.dtype)
    if key_mask is not None:
        matrix = matrix.masked_fill(~key_mask[:, None, None, :], 0)
    if normalize == "rowsum":
        matrix = matrix / matrix.sum(-1, keepdim=True)
    out = torch.einsum("bhqk,bkhe->bqhe", matrix, v)
    return normalise_rows(out, 1e-6) if normalize == "l2" else out


def explicit_cosine(q, k, v, key_mask=None):
    similarity = scores(normalise_rows(q, 1e-6), normalise_rows(k, 1e-6))
    out = similarity_attention(similarity, v, row_sum=False, eps=0, key_mask=key_mask)
    return normalise_rows(out, 1e-6)


def explicit_sigmoid_softmax(q, k, v, key_mask=None):
    if key_mask is not None:
        k = k.masked_fill(~key_mask[:, :, None, None], float("-inf"))
    return torch.einsum("bqhd,bkhd,bkhe->bqhe", q.sigmoid(), k.softmax(1), v)


def explicit(similarity_of, row_sum, eps=0.0):
    def reference(q, k, v, key_mask=None):
        return similarity_attention(
            similarity_of(q, k), v, row_sum=row_sum, eps=eps, key_mask=key_mask
        )

    return reference


def hedgehog_map(dim, heads, seed):
    """A learned map near the identity, for one head count and width."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(heads, dim, dim, generator=generator, dtype=torch.float64)
    bias = torch.randn(heads, dim, generator=generator, dtype=torch.float64)
    return torch.eye(dim, dtype=torch.float64) + 0.3 * noise / dim**0.5, 0.1 * bias


def hedgehog_maps(q, k):
    return hedgehog_map(q.shape[-1], q.shape[2], 1), hedgehog_map(k.shape[-1], k.shape[2], 2)


def learned_hedgehog(activation):
    def attend(q, k, v, key_mask=None):
        maps = hedgehog_maps(q, k)
        return hedgehog(q, k, v, *maps, activation=activation, eps=1e-15, key_mask=key_mask)

    return attend


def explicit_hedgehog(activation):
    """exp(±(Wx + b)) as the paper writes it, in one N×N matrix."""

    def features(x, weight, bias):
        u = torch.einsum("hed,bnhd->bnhe", weight, x) + bias
        plain = torch.cat((u.exp(), (-u).exp()), dim=-1)
        return plain / plain.sum(-1, keepdim=True) if activation == "softmax" else plain

    def reference(q, k, v, key_mask=None):
        of_query, of_key = hedgehog_maps(q, k)
        similarity = scores(features(q, *of_query), features(k, *of_key))
        return similarity_attention(similarity, v, row_sum=True, eps=0.0, key_mask=key_mask)

    return reference


KERNELS = {
    "elu": (
        elu_linear,
        explicit(lambda q, k: scores(F.elu(q) + 1, F.elu(k) + 1), True, 1e-6),
    ),
    "hedgehog-softmax": (learned_hedgehog("softmax"), explicit_hedgehog("softmax")),
    "hedgehog-exp": (learned_hedgehog("exp"), explicit_hedgehog("exp")),
    "relu_linear": (
        relu_linear,
        explicit(lambda q, k: scores(q.relu(), k.relu()), True, 1e-5),
    ),
    "mean": (mean_attention, explicit(scores, False)),
    "cosine": (cosine_attention, explicit_cosine),
    "first_order_taylor": (
        first_order_taylor,
        explicit(
            lambda q, k: 1 + scores(normalise_rows(q, 1e-6), normalise_rows(k, 1e-6)), True, 1e-6
        ),
    ),
    "sigmoid_softmax": (sigmoid_softmax, explicit_sigmoid_softmax),
}
for _constant, _normalize in [
    ("identity", "l2"),
    ("identity", "none"),
    ("mean", "l2"),
    ("mean", "rowsum"),
    ("mean", "none"),
    ("none", "l2"),
]:
    for _scale in (1.0, "tokens"):
        _options = {"constant": _constant, "normalize": _normalize, "kv_scale": _scale}
        KERNELS[f"linear_angular-{_constant}-{_normalize}-{_scale}"] = (
            lambda *args, _options=_options, **kw: linear_angular(*args, **_options, **kw),
            lambda *args, _options=_options, **kw: explicit_angular(*args, **_options, **kw),
        )
OPERATORS = {name: pair[0] for name, pair in KERNELS.items()}
OPERATORS["quadratic_angular"] = quadratic_angular


def qkv(tokens, *, dim=16, value_dim=None, heads=2, batch=2, dtype=torch.float64, shift=0.0):
    value_dim = dim if value_dim is None else value_dim
    q, k = (torch.randn(batch, tokens, heads, dim, dtype=torch.float64) + shift for _ in "qk")
    v = torch.randn(batch, tokens, heads, value_dim, dtype=torch.float64) + shift
    return tuple(tensor.to(dtype) for tensor in (q, k, v))


def relative_error(result, reference):
    return float((result.double() - reference.double()).norm() / reference.double().norm())


@pytest.mark.parametrize("tokens", [1, 49, 63, 197])
@pytest.mark.parametrize("name", KERNELS)
def test_linear_order_is_the_explicit_matrix(name, tokens):
    operator, reference = KERNELS[name]
    q, k, v = qkv(tokens, value_dim=24)
    torch.testing.assert_close(operator(q, k, v), reference(q, k, v), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", KERNELS)
def test_key_mask_equals_leaving_the_keys_out(name):
    operator, reference = KERNELS[name]
    q, k, v = qkv(20)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, 13:] = False
    masked = operator(q, k, v, key_mask=mask)
    torch.testing.assert_close(masked, reference(q, k, v, key_mask=mask), rtol=1e-9, atol=1e-11)
    k[:, 13:], v[:, 13:] = 7.0, -3.0
    torch.testing.assert_close(operator(q, k, v, key_mask=mask), masked)
    short = operator(q[:, :13], k[:, :13], v[:, :13])
    torch.testing.assert_close(masked[:, :13], short, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_match_finite_differences(name):
    inputs = tuple(t.requires_grad_() for t in qkv(5, dim=4, value_dim=3, heads=2, batch=1))
    assert torch.autograd.gradcheck(OPERATORS[name], inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_permutation_equivariance(name):
    q, k, v = qkv(31)
    order = torch.randperm(31)
    whole = OPERATORS[name](q, k, v)
    shuffled = OPERATORS[name](q[:, order], k[:, order], v[:, order])
    torch.testing.assert_close(shuffled, whole[:, order])


def test_a_zero_row_has_no_slope_however_one_differentiates():
    def normalised(x):
        return normalise_rows(x, 1e-6)

    x, ones = torch.zeros(2, 4), torch.ones(2, 4)
    assert not torch.func.jvp(normalised, (x,), (ones,))[1].any()
    assert not torch.func.jacfwd(normalised)(x).any()
    assert not torch.func.grad(lambda x: torch.func.vmap(normalised)(x).sum())(x).any()
    traced = torch.compile(normalised, backend="eager", fullgraph=True)
    (gradient,) = torch.autograd.grad(traced(x.requires_grad_()).sum(), x)
    assert not gradient.any()


@pytest.mark.parametrize("shift", [0.0, 2.0])
@pytest.mark.parametrize("tokens", [49, 197, 1000, 1025, 16384])
@pytest.mark.parametrize("name", [n for n in OPERATORS if n != "quadratic_angular"])
def test_precision_contract(name, tokens, shift):
    """N1 of the performance specification: relative RMS against float64 at every length."""
    operator = OPERATORS[name]
    q, k, v = qkv(tokens, dim=32, heads=1, batch=1, shift=shift)
    low_precision = {torch.bfloat16: 4e-3 if shift else 2.5e-3, torch.float16: 4e-4}
    cancelling = shift == 0 and name in ("cosine", "mean")
    for dtype, bound in {torch.float32: 1e-5, **low_precision}.items():
        rounded = [t.to(dtype) for t in (q, k, v)]
        result = operator(*rounded)
        assert result.dtype == dtype
        reference = operator(*(t.double() for t in rounded))
        if cancelling and dtype == torch.float16:
            bound = 2e-3  # averages of zero-mean products fall towards fp16's subnormal range
        assert relative_error(result, reference) <= bound, dtype


@pytest.mark.parametrize("tokens", [63, 1025])
@pytest.mark.parametrize("name", OPERATORS)
def test_float32_gradients(name, tokens):
    def gradients(dtype):
        inputs = [t.to(dtype).requires_grad_() for t in base]
        weight = cotangent.to(dtype)
        return torch.autograd.grad((OPERATORS[name](*inputs) * weight).sum(), inputs)

    base = [t.float() for t in qkv(tokens, dim=32, heads=1, batch=1)]
    cotangent = torch.randn(1, tokens, 1, 32)
    for single, double in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert relative_error(single, double) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPERATORS)
def test_zero_rows_stay_finite(name, dtype):
    q, k, v = (t.clone() for t in qkv(17, dtype=dtype))
    for tensor in (q, k, v):
        tensor[:, 3] = 0
        tensor[0] = 0
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    out = OPERATORS[name](q, k, v)
    out.float().sum().backward()
    for tensor in (out, q.grad, k.grad, v.grad):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("name", OPERATORS)
def test_autocast_does_not_lower_the_inner_precision(name):
    q, k, v = qkv(300, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = OPERATORS[name](q, k, v)
    assert out.dtype == torch.float32
    assert relative_error(out, OPERATORS[name](q.double(), k.double(), v.double())) < 1e-5


@pytest.mark.parametrize("name", OPERATORS)
def test_strided_views_of_a_packed_projection(name):
    packed = torch.randn(2, 19, 3, 2, 8)
    views = packed.unbind(2)
    copies = [view.contiguous() for view in views]
    torch.testing.assert_close(OPERATORS[name](*views), OPERATORS[name](*copies))


def test_positivity_where_claimed():
    q, k, _ = qkv(64, dim=8)
    unit_q, unit_k = (normalise_rows(t, 0) for t in (q, k))
    assert (1 + scores(unit_q, unit_k) >= -1e-12).all()
    linear = angular_similarity(q, k, exact=False)
    # ½ ± 1/π: the linear kernel lies in [0.18, 0.82], so row sums are at least 0.18·N.
    assert linear.min() >= 0.5 - 1 / math.pi - 1e-9
    assert linear.max() <= 0.5 + 1 / math.pi + 1e-9


def test_angular_residual_bounds():
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    exact = 1 - torch.arccos(cosine) / math.pi
    residual = (exact - (0.5 + cosine / math.pi)).abs()
    assert residual.max() == pytest.approx(0.5 - 1 / math.pi, abs=1e-12)
    assert residual[cosine.abs() <= 0.4].max() <= 0.0037
    for dim, rms in [(16, 0.0032), (32, 0.0011), (64, 0.0004)]:
        q, k = torch.randn(2, 1, 600, 1, dim, dtype=torch.float64)
        difference = angular_similarity(q, k, exact=True) - angular_similarity(q, k, exact=False)
        assert difference.square().mean().sqrt() == pytest.approx(rms, rel=0.15)


def test_rowsum_needs_the_exact_constant():
    q, k, v = qkv(4)
    with pytest.raises(ValueError, match='constant="mean"'):
        linear_angular(q, k, v, normalize="rowsum", constant="identity")


def test_identity_needs_a_value_per_query():
    q, k, v = qkv(6)
    with pytest.raises(ValueError, match="query_value"):
        linear_angular(q[:, :3], k, v)
    out = linear_angular(q[:, :3], k, v, query_value=v[:, :3])
    torch.testing.assert_close(out, linear_angular(q, k, v)[:, :3])


@pytest.mark.parametrize("wrong", ["batch", "heads", "tokens", "rank", "mask"])
def test_shapes_are_checked(wrong):
    q, k, v = qkv(6)
    mask = None
    if wrong == "batch":
        q = q[:1]
    elif wrong == "heads":
        k = k[:, :, :1]
    elif wrong == "tokens":
        v = v[:, :5]
    elif wrong == "rank":
        q = q[0]
    else:
        mask = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="must"):
        relu_linear(q, k, v, key_mask=mask)


def test_softmax_of_zero_is_uniform_mean():
    """Sanity of the test's own references: Taylor-1 of zero queries averages the values."""
    q, k, v = qkv(9)
    out = first_order_taylor(torch.zeros_like(q), k, v, eps=1e-12)
    torch.testing.assert_close(out, v.mean(1, keepdim=True).expand_as(out))
    torch.testing.assert_close(
        F.scaled_dot_product_attention(
            torch.zeros_like(q).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        ).transpose(1, 2),
        out,
    )
