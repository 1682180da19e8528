"""Native exact Taylor attention against the naive formula in float64: output and every gradient."""

from __future__ import annotations

import pytest
import torch

from castling.ops import native
from castling.ops.quadratic_taylor import naive_exact_taylor
from castling.ops.taylor_inputs import TaylorOptions, TaylorTensors

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the native operators are not built"),
    pytest.mark.usefixtures("nan_memory"),
]

ORDERS = ("direct", "features")
EPS = 1e-6


def make(batch=2, n_q=9, n_k=13, heads=3, dim=8, value_dim=5, *, dtype=torch.float32, shift=0.0):
    generator = torch.Generator().manual_seed(n_q + 31 * dim)
    shapes = (
        *((batch, n_q, heads, dim), (batch, n_k, heads, dim)),
        *((batch, n_k, heads, value_dim), (batch, n_q, heads, value_dim)),
    )
    return [(torch.randn(shape, generator=generator) + shift).to(dtype) for shape in shapes]


def expected(query, key, value, grad, mask=None, *, qk_norm=True, eps=EPS):
    leaves = [x.detach().double().requires_grad_() for x in (query, key, value)]
    tensors = TaylorTensors(*leaves, mask)
    out = naive_exact_taylor(tensors, TaylorOptions(qk_norm, eps, "direct"))
    return out.detach(), torch.autograd.grad(out, leaves, grad.double())


def computed(query, key, value, grad, mask=None, *, qk_norm=True, eps=EPS, order="direct"):
    tensors = TaylorTensors(query, key, value, mask)
    options = TaylorOptions(qk_norm, eps, order)
    out, state = native.taylor_attention_forward(tensors, options, True)
    shape = native.taylor_state_shape(tensors, options, True)
    assert tuple(state.shape) == tuple(shape)
    alone, empty = native.taylor_attention_forward(tensors, options, False)
    assert torch.allclose(alone, out, rtol=0, atol=0, equal_nan=True)
    assert empty.shape == (0,)
    gradients = native.taylor_attention_backward(grad, tensors, (out, state), options)
    for result, like in zip((out, *gradients), (grad, query, key, value), strict=True):
        assert result.is_contiguous()
        assert result.dtype == value.dtype
        assert result.shape == like.shape
    return out, gradients


def error(result, target):
    """Relative root mean square of the difference; NaN counts as infinite, no gradient as 1e-6."""
    difference = (result.double() - target).square().mean().sqrt()
    ratio = float(difference.detach() / target.square().mean().sqrt().clamp(min=1e-6))
    return ratio if ratio == ratio else float("inf")


def agree(tensors, mask=None, *, forward=1e-5, backward=1e-4, order, **options):
    out, gradients = computed(*tensors, mask, order=order, **options)
    target, targets = expected(*tensors, mask, **options)
    assert error(out, target) < forward
    for name, result, wanted in zip(("query", "key", "value"), gradients, targets, strict=True):
        assert error(result, wanted) < backward, name


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize(
    ("n_q", "n_k", "dim", "value_dim"),
    [
        *((1, 3, 2, 1), (1, 7, 4, 3), (49, 49, 16, 16), (63, 50, 20, 33), (197, 197, 32, 32)),
        *((5, 300, 64, 48), (300, 5, 24, 64), (130, 70, 70, 20)),
    ],
)
def test_output_and_gradients(order, qk_norm, n_q, n_k, dim, value_dim):
    agree(make(2, n_q, n_k, 3, dim, value_dim), order=order, qk_norm=qk_norm)


@pytest.mark.parametrize("order", ORDERS)
def test_one_key_is_its_value(order):
    tensors = make(2, 5, 1, 2, 8, 8)
    out, gradients = computed(*tensors, order=order)
    target, targets = expected(*tensors)
    assert error(out, target) < 1e-6
    # No slope is left in query and key but that of eps, far below what float32 resolves.
    for result, wanted in zip(gradients, targets, strict=True):
        assert (result.double() - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tokens", [1000, 1025])
def test_many_tokens(order, tokens):
    agree(make(1, tokens, tokens, 2, 16, 16), order=order)


@pytest.mark.parametrize("order", ORDERS)
def test_far_from_zero_mean(order):
    query, key, value, grad = make(1, 1500, 1510, 1, 64, 64, shift=5.0)
    # A tenth of what is allowed: slopes of values that kept their mean lose far more.
    agree((query, key, value, grad - 5), order=order, forward=1e-6, backward=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_an_infinite_value_reaches_its_channel_alone(order):
    query, key, value, _ = make(1, 40, 50, 1, 16, 16)
    tensors, options = TaylorTensors(query, key, value), TaylorOptions(eps=EPS, order=order)
    clean, _ = native.taylor_attention_forward(tensors, options, False)
    value[0, 7, 0, 3] = float("inf")
    out, _ = native.taylor_attention_forward(tensors, options, False)
    assert not out[..., 3].isfinite().any()
    out[..., 3] = clean[..., 3]
    assert torch.equal(out, clean)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", ["packed", "channels_first", "broadcast", "flipped"])
def test_any_strides(order, layout):
    batch, tokens, heads, dim = 2, 37, 3, 16
    generator = torch.Generator().manual_seed(1)
    if layout == "packed":
        query, key, value = torch.randn(batch, tokens, 3, heads, dim, generator=generator).unbind(2)
    elif layout == "channels_first":
        query, key, value = torch.randn(batch, heads, 3, dim, tokens, generator=generator).permute(
            2, 0, 4, 1, 3
        )
    else:
        query, key, value = torch.randn(3, 1, tokens, heads, dim, generator=generator).expand(
            3, batch, tokens, heads, dim
        )
    grad = torch.randn(batch, heads, tokens, dim, generator=generator).transpose(1, 2)
    if layout == "flipped":
        key = key[..., :1, :].expand_as(key)
        value = torch.randn(batch, tokens, heads, 3 * dim, generator=generator)[..., ::3]
    agree((query, key, value, grad), order=order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("qk_norm", [True, False])
def test_masked_keys_take_no_part(order, qk_norm):
    tensors = make(3, 40, 101, 2, 16, 12)
    mask = torch.rand(3, 101, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[1] = False
    mask[2] = True
    agree(tensors, mask, order=order, qk_norm=qk_norm)
    query, key, value, grad = tensors
    out, gradients = computed(*tensors, mask, order=order, qk_norm=qk_norm)
    assert not out[1].any()
    assert not any(gradient[1].any() for gradient in gradients)
    hidden = ~mask[:, :, None, None]
    padded = (query, *(x.masked_fill(hidden, float("nan")) for x in (key, value)), grad)
    again, same = computed(*padded, mask, order=order, qk_norm=qk_norm)
    assert torch.equal(again, out)
    assert all(map(torch.equal, same, gradients))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("eps", [1e-6, 1e-9])
def test_rows_of_zeros_have_no_gradient(order, eps):
    query, key, value, grad = make(2, 21, 35, 2, 16, 16)
    query[:, 3], key[:, 5], key[1, 7, 1] = 0, 0, 0
    agree((query, key, value, grad), order=order, eps=eps)
    _, (d_query, d_key, d_value) = computed(query, key, value, grad, order=order, eps=eps)
    assert not d_query[:, 3].any()
    assert not d_key[:, 5].any()
    assert d_value.isfinite().all()


@pytest.mark.parametrize("order", ORDERS)
def test_without_eps_it_is_the_plain_norm(order):
    agree(make(), order=order, eps=0.0)
    query, key, value, grad = make()
    query[0, 2] = 0
    out, _ = computed(query, key, value, grad, order=order, eps=0.0)
    assert out[0, 2].isnan().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shift", "limit"), [(0.0, 2.5e-3), (2.0, 4e-3)])
def test_half_precisions_lose_only_the_rounding_of_results(order, dtype, shift, limit):
    tensors = make(1, 515, 515, 2, 32, 24, dtype=dtype, shift=shift)
    tensors[3] = tensors[3] - shift
    out, gradients = computed(*tensors, order=order)
    target, targets = expected(*tensors)
    leaves = [x.detach().clone().requires_grad_() for x in tensors[:3]]
    plain = naive_exact_taylor(TaylorTensors(*leaves), TaylorOptions(True, EPS, "direct"))
    plain_gradients = torch.autograd.grad(plain, leaves, tensors[3])
    assert error(out, target) < min(limit, 2 * error(plain, target) + 1e-5)
    for result, other, wanted in zip(gradients, plain_gradients, targets, strict=True):
        assert error(result, wanted) < 2 * error(other, wanted) + 1e-5


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (2, 4), (5, 8)])
def test_threads_change_no_bit(order, batch, heads):
    tensors = make(batch, 300, 270, heads, 16, 16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out, gradients = computed(*tensors, order=order)
            results.append((out, *gradients))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("empty", ["batch", "queries", "keys"])
def test_nothing_to_do(order, empty):
    sizes = {"batch": (0, 4, 5), "queries": (2, 0, 5), "keys": (2, 4, 0)}[empty]
    tensors = make(*sizes, 2, 8, 8)
    out, gradients = computed(*tensors, order=order)
    assert not out.any()
    assert not any(gradient.any() for gradient in gradients)


def test_auto_is_one_of_the_orders():
    short, long = make(1, 24, 24, 1, 32, 32), make(1, 3000, 3000, 1, 8, 8)
    for tensors, order in ((short, "direct"), (long, "features")):
        chosen, gradients = computed(*tensors, order="auto")
        out, wanted = computed(*tensors, order=order)
        assert torch.equal(chosen, out)
        assert all(map(torch.equal, gradients, wanted))


def test_bad_input_is_named():
    query, key, value, _ = make()
    with pytest.raises(ValueError, match="order"):
        computed(query, key, value, query, order="sideways")
    with pytest.raises(ValueError, match="float64"):
        computed(*(x.double() for x in (query, key, value)), query)
