"""Quadratic Taylor operators: exactness of the maps, agreement of the orders, numerics."""

from __future__ import annotations

import pytest
import torch

from castling.ops import quadratic_taylor as ops
from castling.ops import taylor_features as maps
from castling.ops.exact_taylor import exact_taylor


def tokens(batch=2, n_q=9, n_k=13, heads=3, dim=8, value_dim=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, n_q, heads, dim), (batch, n_k, heads, dim), (batch, n_k, heads, value_dim))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)


def polynomial(q, k, qk_norm):
    if qk_norm:
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        z = q @ k.mT
    else:
        z = q @ k.mT / q.shape[-1] ** 0.5
    return 1 + z + z.square() / 2


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("features", [maps.symmetric_features, maps.kronecker_features])
def test_exact_maps_reproduce_the_polynomial(features, qk_norm):
    q, k, _ = tokens(dim=16)
    q, k = q[:, :, 0], k[:, :, 0]
    phi_q, phi_k = (features(maps.scaled_vectors(x, qk_norm=qk_norm, eps=0.0)) for x in (q, k))
    assert torch.allclose(phi_q @ phi_k.mT, polynomial(q, k, qk_norm), rtol=0, atol=1e-12)


def test_one_chunk_or_pools_of_one_are_the_polynomial_without_its_linear_term():
    q, k, _ = tokens(dim=8)
    q, k = (maps.scaled_vectors(x[:, :, 0], qk_norm=True, eps=0.0) for x in (q, k))
    expected = 1 + (q @ k.mT).square() / 2
    for features in (maps.chunk_features, maps.pool_features):
        assert torch.allclose(features(q, 1) @ features(k, 1).mT, expected, atol=1e-12)


def test_all_ordered_pairs_make_the_whole_square():
    q, k, _ = tokens(dim=6)
    q, k = (maps.scaled_vectors(x[:, :, 0], qk_norm=True, eps=0.0) for x in (q, k))
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T
    product = maps.random_features(q, pairs) @ maps.random_features(k, pairs).mT
    assert torch.allclose(product, 1 + (q @ k.mT).square() / 2, atol=1e-12)


def test_random_pairs_are_distinct_and_follow_the_seed():
    first, again, other = (maps.random_pairs(16, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(pair) for pair in first.T.tolist()}) == 16


def test_compact_map_is_equation_11():
    q, k, _ = tokens(dim=8)
    q, k = q[:, :, 0], k[:, :, 0]
    alpha, beta, gamma = (torch.tensor(x, dtype=torch.float64) for x in (0.7, 0.4, 1.3))
    # Eq. 11 on raw vectors, its alpha being ours over the root of d.
    paper_alpha = alpha / 8**0.5
    written = [
        torch.cat(
            (paper_alpha * x**2, beta * (4 / 8) ** 0.25 * x, gamma.expand(*x.shape[:-1], 1)), -1
        )
        for x in (q, k)
    ]
    ours = [
        maps.compact_features(maps.scaled_vectors(x, qk_norm=False, eps=0.0), alpha, beta, gamma)
        for x in (q, k)
    ]
    assert torch.allclose(ours[0] @ ours[1].mT, written[0] @ written[1].mT, atol=1e-12)


@pytest.mark.parametrize(
    ("form", "options", "size"),
    [
        ("released", {}, 17),
        ("compact", {}, 17),
        ("compact", {"linear_term": True}, 33),
        ("exact", {}, 153),
        ("kronecker", {}, 290),
        ("pool", {"pool": 2}, 65),
        ("pool", {"pool": 4}, 17),
        ("chunk", {"chunk": 2}, 129),
        ("chunk", {"chunk": 8}, 33),
        ("random", {}, 17),
    ],
)
def test_feature_sizes(form, options, size):
    assert maps.taylor_feature_count(form, 16, **options) == size
    assert maps.taylor_feature_count("exact", 32) == 561


def test_table_3_follows_from_the_feature_sizes():
    """FLOPs (G) of QT-ViT-1 at 224 px: what attention adds is N·D·(d_v + 1) twice per head."""
    blocks = ((3, 196, 16), (4, 49, 32))  # blocks, tokens and heads (two scales) of stages 3 and 4
    head_tokens = sum(count * tokens * heads for count, tokens, heads in blocks)

    def flops(form, **options):
        extra = maps.taylor_feature_count(form, 16, **options) - 17
        return round(0.520 + 2 * head_tokens * extra * 17 / 1e9, 2)

    assert flops("compact") == flops("random") == flops("pool", pool=4) == 0.52
    assert flops("chunk", chunk=1) == 0.65  # the whole Kronecker square, without a linear term
    assert flops("pool", pool=2) == flops("chunk", chunk=4) == 0.55
    assert flops("chunk", chunk=2) == 0.58
    assert flops("chunk", chunk=8) == 0.53


def released_by_features(q, k, v, scalar, *, key_mask, eps=1e-9):
    """The released form as the paper writes it: features with s appended."""

    def features(x):
        squares = maps.squared_directions(x, eps)
        return torch.cat((squares, scalar.expand(*squares.shape[:-1], 1)), dim=-1)

    return ops.taylor_attention(q, k, v, features, eps=eps, key_mask=key_mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_fused_released_form_equals_its_reference_with_gradients(dtype, bound, masked):
    inputs = [x.requires_grad_() for x in tokens(dtype=dtype)]
    scalar = torch.tensor(0.8, dtype=dtype, requires_grad=True)
    key_mask = torch.rand(2, 13, generator=torch.Generator().manual_seed(1)) > 0.4
    key_mask = key_mask if masked else None
    results = []
    for function in (ops.released_taylor, released_by_features):
        out = function(*inputs, scalar, key_mask=key_mask)
        results.append((out, *torch.autograd.grad(out.square().sum(), [*inputs, scalar])))
    for fused, reference in zip(*results, strict=True):
        assert (fused - reference).norm() <= bound * reference.norm()


def test_released_form_is_the_published_similarity():
    q, k, v = tokens()
    squares = [x**2 / (x**2).norm(dim=-1, keepdim=True) for x in (q, k)]
    similarity = torch.einsum("bqhd,bkhd->bhqk", *squares) + 0.7**2
    expected = torch.einsum("bhqk,bkhe->bqhe", similarity / similarity.sum(-1, keepdim=True), v)
    scalar = torch.tensor(0.7, dtype=torch.float64)
    assert torch.allclose(ops.released_taylor(q, k, v, scalar, eps=1e-15), expected, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_exact_orders_agree_with_gradients(qk_norm, masked):
    inputs = [x.requires_grad_() for x in tokens()]
    key_mask = torch.ones(2, 13, dtype=torch.bool)
    key_mask[0, 4:] = False
    key_mask = key_mask if masked else None
    results = []
    for order in ("direct", "features"):
        out = exact_taylor(*inputs, qk_norm=qk_norm, order=order, key_mask=key_mask)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for direct, features in zip(*results, strict=True):
        assert torch.allclose(direct, features, rtol=1e-10, atol=1e-12)
    if masked:
        q, k, v = inputs
        short = exact_taylor(q[:1], k[:1, :4], v[:1, :4], qk_norm=qk_norm)
        assert torch.allclose(results[0][0][:1], short, atol=1e-9)


@pytest.mark.parametrize(("n", "direct"), [(32, True), (45, False), (46, False)])
def test_auto_takes_the_cheaper_order(n, direct):
    """With d = d_v = 8 there are 45 features: direct below 45 tokens."""
    inputs = tokens(n_q=n, n_k=n, value_dim=8)
    found = exact_taylor(*inputs)
    # The orders add in another order, so that their last bits differ.
    assert torch.equal(found, exact_taylor(*inputs, order="direct")) is direct
    assert torch.equal(found, exact_taylor(*inputs, order="features")) is not direct


def test_gradients_against_finite_differences():
    inputs = [
        x.requires_grad_() for x in tokens(batch=1, n_q=3, n_k=4, heads=1, dim=3, value_dim=2)
    ]
    scalar = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.released_taylor, (*inputs, scalar))
    assert torch.autograd.gradcheck(exact_taylor, inputs)


def attend(form, q, k, v):
    if form == "released":
        return ops.released_taylor(q, k, v, torch.ones(()))
    return exact_taylor(q, k, v, order=form)


@pytest.mark.parametrize("form", ["released", "direct", "features"])
def test_zero_tokens_are_finite_also_backward(form):
    inputs = [x.zero_().requires_grad_() for x in tokens(dtype=torch.float32)]
    out = attend(form, *inputs)
    assert torch.equal(out, torch.zeros_like(out))
    for gradient in torch.autograd.grad(out.sum(), inputs):
        assert gradient.isfinite().all()


def test_released_scalar_zero_and_zero_query_is_finite():
    q, k, v = tokens(dtype=torch.float32)
    assert ops.released_taylor(q * 0, k, v, torch.zeros(())).isfinite().all()


@pytest.mark.parametrize("shift", [0.0, 2.0])
@pytest.mark.parametrize("n", [63, 1025, 16384])
@pytest.mark.parametrize("form", ["released", "features"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_meets_the_numerics_contract(dtype, form, n, shift):
    q, k, v = (x + shift for x in tokens(1, n, n, 1, 16, 16, dtype=torch.float64))
    q, k, v = (x.to(dtype) for x in (q, k, v))
    out = attend(form, q, k, v)
    assert out.dtype is dtype
    expected = attend(form, q.double(), k.double(), v.double())
    error = (out.double() - expected).norm() / expected.norm()
    assert error <= (4e-3 if shift else 2.5e-3)


@pytest.mark.parametrize("form", ["released", "direct", "features"])
def test_accumulation_is_float32_under_autocast(form):
    q, k, v = tokens(1, 197, 197, 2, 16, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(form, q, k, v)
    assert torch.equal(out, attend(form, q, k, v))


def test_large_and_small_magnitudes_do_not_matter():
    q, k, v = tokens(dtype=torch.float32)
    expected = attend("released", q, k, v)
    for factor in (1e-2, 1e6):
        assert torch.allclose(attend("released", q * factor, k * factor, v), expected, atol=1e-5)


def test_fully_masked_sample_gives_zeros():
    q, k, v = tokens()
    key_mask = torch.ones(2, 13, dtype=torch.bool)
    key_mask[1] = False
    for out in (
        ops.released_taylor(q, k, v, torch.ones(()), key_mask=key_mask),
        exact_taylor(q, k, v, key_mask=key_mask),
    ):
        assert out[1].eq(0).all()
        assert out[0].isfinite().all()


def test_unknown_order_is_refused():
    with pytest.raises(ValueError, match="order must be"):
        exact_taylor(*tokens(), order="fast")
