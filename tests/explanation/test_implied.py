"""Implied attention: the matrix of every kernel, against its formula and its own output."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import castling
from castling.attention import AttentionCore, MaskedSoftmax, list_kernels
from castling.explanation import NotLinearError, implied_attention
from castling.explanation.implied import ProjectedTokens

GRID = (2, 3)
TINY = 1e-30  # instead of the default eps, which the formulas below leave out


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def by_rows(similarity):
    return similarity / similarity.sum(dim=-1, keepdim=True)


def angular(q, k):
    return unit(q) @ unit(k).mT / math.pi


def taylor(z):
    return by_rows(1 + z + z**2 / 2)


def squares(x):
    return unit(x.square())


def softmaxed(x):
    return torch.cat([x, -x], dim=-1).softmax(dim=-1)


def neighbours(q, k):
    places = torch.cartesian_prod(torch.arange(GRID[0]), torch.arange(GRID[1])).double()
    near = (torch.cdist(places, places, p=float("inf")) < 1.5).double()
    return (by_rows(near) - torch.eye(6)).expand(*q.shape[:2], 6, 6)


#: Kernels linear in their values -> A of q, k (B, H, N, d); written down apart from the package.
EXACT = {
    castling.Softmax(): lambda q, k: (q @ k.mT / 2).softmax(dim=-1),
    castling.Mean(): lambda q, k: q @ k.mT / 6,
    # A query without a match has a row of zeros.
    castling.ReLULinear(eps=TINY): lambda q, k: by_rows(q.relu() @ k.relu().mT).nan_to_num(),
    castling.ELULinear(eps=TINY): lambda q, k: by_rows((F.elu(q) + 1) @ (F.elu(k) + 1).mT),
    castling.Hedgehog(eps=TINY): lambda q, k: by_rows(softmaxed(q) @ softmaxed(k).mT),
    castling.SigmoidSoftmax(): lambda q, k: q.sigmoid() @ k.softmax(dim=-2).mT,
    castling.FirstOrderTaylor(eps=TINY): lambda q, k: by_rows(1 + unit(q) @ unit(k).mT),
    castling.Cosine(normalize="none", eps=TINY): lambda q, k: unit(q) @ unit(k).mT / 6,
    castling.LinearAngular(normalize="none", eps=0.0, local="none"): lambda q, k: (
        torch.eye(6) / 2 + angular(q, k)
    ),
    castling.LinearAngular(
        constant="mean", normalize="rowsum", eps=0.0, local="none"
    ): lambda q, k: by_rows(0.5 + angular(q, k)),
    castling.QuadraticAngular(normalize="rowsum", eps=TINY): lambda q, k: by_rows(
        1 - (unit(q) @ unit(k).mT).clamp(-1, 1).arccos() / math.pi
    ),
    castling.QuadraticTaylor(eps=TINY): lambda q, k: by_rows(squares(q) @ squares(k).mT + 1),
    castling.QuadraticTaylor(form="exact", eps=TINY): lambda q, k: taylor(unit(q) @ unit(k).mT),
    castling.QuadraticTaylor(form="exact", qk_norm=False, eps=TINY): lambda q, k: taylor(
        q @ k.mT / 2
    ),
    castling.QuadraticTaylor(form="kronecker", order="features", eps=TINY): lambda q, k: taylor(
        unit(q) @ unit(k).mT
    ),
    castling.Pooling(): neighbours,
}
LINEARISED = [
    castling.LinearAngular(local="none"),
    castling.LinearAngular(preset="official", local="none"),
    castling.LinearAngular(constant="none", local="none"),
    castling.QuadraticAngular(),
    castling.Cosine(),
]
NOT_LINEAR = [castling.Separable(), castling.ConvolutionalAdditive()]


def recorded(config, *, width=4, dtype=torch.float64, seed=0, **options):
    """A layer, and its call with random tokens: B = 2, N = 6 on a 2×3 grid, H = 2, d = 4."""
    generator = torch.Generator().manual_seed(seed)
    layer = AttentionCore(config, 2, 4, width).to(dtype).eval()
    q, k, v = (
        torch.randn(2, 6, 2, d, generator=generator, dtype=torch.float64).to(dtype)
        for d in (4, 4, width)
    )
    given = {"grid": GRID} | options
    with torch.no_grad():
        output = layer.attend(q, k, v, **given)
    return layer, ProjectedTokens(query=q, key=k, value=v, output=output, **given)


def times(matrix, value):
    return torch.einsum("bhqk,bkhc->bqhc", matrix, value)


def test_every_registered_kernel_is_checked():
    checked = {config.name for config in (*EXACT, *LINEARISED, *NOT_LINEAR)}
    assert checked == set(list_kernels())


@pytest.mark.parametrize("config", EXACT, ids=str)
def test_the_matrix_is_the_formulas(config):
    layer, call = recorded(config, width=5)
    found = implied_attention(layer, call)
    assert found.exact
    wanted = EXACT[config](call.query.transpose(1, 2), call.key.transpose(1, 2))
    torch.testing.assert_close(found.kernel, wanted.double(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(times(found.kernel, call.value), call.output, rtol=0, atol=1e-10)


@given(seed=st.integers(0, 2**31), form=st.sampled_from(["compact", "pool", "chunk", "random"]))
@settings(max_examples=12, deadline=None)
def test_rows_of_averages_sum_to_one(seed, form):
    layer, call = recorded(castling.QuadraticTaylor(form=form, chunk=2, eps=TINY), seed=seed)
    found = implied_attention(layer, call)
    assert found.exact
    torch.testing.assert_close(found.kernel.sum(dim=-1), torch.ones(2, 2, 6).double())


@pytest.mark.parametrize("config", LINEARISED, ids=str)
def test_normalised_kernels_are_linearised_at_the_present_norm(config):
    layer, call = recorded(config, width=5)
    found = implied_attention(layer, call)
    assert not found.exact
    torch.testing.assert_close(times(found.kernel, call.value), call.output, rtol=0, atol=1e-10)
    # A change of the values that leaves each row's norm as it is to first order: the kernel's own
    # derivative less its part along the output is what J says, less the same part.
    change = torch.randn_like(call.value)
    step = 1e-6
    with torch.no_grad():
        after, before = (
            layer.attend(call.query, call.key, call.value + s * step * change) for s in (1, -1)
        )
    moved, said = (after - before) / (2 * step), times(found.kernel, change)
    direction = unit(call.output)
    across = said - (said * direction).sum(dim=-1, keepdim=True) * direction
    moved = moved - (moved * direction).sum(dim=-1, keepdim=True) * direction
    torch.testing.assert_close(moved, across, rtol=1e-5, atol=1e-7)


def test_the_published_angular_matrix_is_rows_over_the_norm_of_their_output():
    layer, call = recorded(castling.LinearAngular(local="none", eps=0.0), width=5)
    q, k, v = (each.transpose(1, 2) for each in (call.query, call.key, call.value))
    rows = torch.eye(6) / 2 + angular(q, k)
    wanted = rows / (rows @ v).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(implied_attention(layer, call).kernel, wanted)


@pytest.mark.parametrize("config", NOT_LINEAR, ids=str)
def test_a_kernel_without_a_matrix_says_why(config):
    layer, call = recorded(config)
    with pytest.raises(NotLinearError, match=config.name):
        implied_attention(layer, call)


class Cubed(nn.Module):
    """Of every width, but not linear."""

    name = "cubed"

    def forward(self, inputs):
        return inputs.value.mean(dim=1, keepdim=True).pow(3).expand_as(inputs.value)


def test_a_matrix_that_does_not_give_the_output_is_refused():
    layer, call = recorded(castling.Mean())
    with pytest.raises(NotLinearError, match="do not add up"):
        implied_attention(layer, ProjectedTokens(**vars(call) | {"output": call.output * 1.01}))
    layer.kernel = Cubed()
    with pytest.raises(NotLinearError, match="not linear"):
        implied_attention(layer, call)


@pytest.mark.parametrize("config", [castling.ReLULinear(), castling.LinearAngular(local="none")])
def test_chunks_change_nothing(config):
    layer, call = recorded(config)
    whole = implied_attention(layer, call)
    chunked = implied_attention(layer, call, memory_limit_mb=1e-9)
    torch.testing.assert_close(chunked.kernel, whole.kernel, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("local", ["token1d", "grid2d"])
@pytest.mark.parametrize("chunk", [256.0, 1e-9])
@pytest.mark.parametrize(
    "kind", [castling.LinearAngular, castling.ReLULinear, castling.QuadraticTaylor, castling.Cosine]
)
def test_parts_are_stated_apart(kind, chunk, local):
    auxiliary = MaskedSoftmax(alpha=0.9)
    layer, call = recorded(kind(local=local, auxiliary=auxiliary), width=5)
    found = implied_attention(layer, call, memory_limit_mb=chunk)
    together = found.kernel_output + found.auxiliary_output + found.local_output
    torch.testing.assert_close(together, call.output, rtol=0, atol=1e-10)
    # The convolution is added last, whatever the kernel divides by.
    convolved = layer.dconv(call.value, GRID, 0)
    torch.testing.assert_close(found.local_output, convolved)
    q, k, v = (each.transpose(1, 2) for each in (call.query, call.key, call.value))
    weights = (q @ k.mT / 2).softmax(dim=-1)
    masked = weights * (weights > 0.9 / 6)
    assert 0 < (masked > 0).double().mean() < 1
    if found.exact:
        torch.testing.assert_close(found.auxiliary, masked)
    else:  # both were divided by the norm of their sum
        alone, without = recorded(kind(normalize="none", local="none"), width=5)
        rows = implied_attention(alone, without).kernel + masked
        divisor = (rows @ v).norm(dim=-1, keepdim=True)
        torch.testing.assert_close(found.auxiliary, masked / divisor, rtol=1e-5, atol=1e-6)


def test_a_closed_branch_has_no_part():
    layer, call = recorded(castling.ReLULinear(auxiliary=MaskedSoftmax()))
    layer.auxiliary.set_progress(1.0)
    with torch.no_grad():
        output = layer.attend(call.query, call.key, call.value)
    found = implied_attention(layer, ProjectedTokens(**vars(call) | {"output": output}))
    assert found.auxiliary is None
    assert found.auxiliary_output is None


def test_masked_keys_and_biases_count():
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    for config in (castling.Softmax(), castling.ReLULinear(), castling.LinearAngular(local="none")):
        layer, call = recorded(config, key_mask=mask)
        found = implied_attention(layer, call).kernel
        assert not found[1, :, :, 4:].any()
        assert found[0, :, :, 4:].all() or config.name == "relu_linear"
    bias = torch.randn(2, 6, 6, dtype=torch.float64)
    layer, call = recorded(castling.Softmax(), bias=bias)
    q, k = (each.transpose(1, 2) for each in (call.query, call.key))
    wanted = (q @ k.mT / 2 + bias).softmax(dim=-1)
    torch.testing.assert_close(implied_attention(layer, call).kernel, wanted)


def test_fewer_queries_than_keys():
    layer = AttentionCore(castling.LinearAngular(local="grid2d", eps=0.0), 2, 4).double()
    q, k, v = (torch.randn(1, n, 2, 4, dtype=torch.float64) for n in (2, 6, 6))

    def to_queries(tokens):
        return tokens[:, ::3]

    given = {"grid": GRID, "to_queries": to_queries}
    with torch.no_grad():
        output = layer.attend(q, k, v, **given)
    call = ProjectedTokens(query=q, key=k, value=v, output=output, **given)
    found = implied_attention(layer, call)
    assert found.kernel.shape == (1, 2, 2, 6)
    rows = torch.eye(6)[::3] / 2 + angular(q.transpose(1, 2), k.transpose(1, 2))
    wanted = rows / (rows @ v.transpose(1, 2)).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found.kernel, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions(dtype):
    for config in (castling.Softmax(), castling.ReLULinear(), castling.LinearAngular(local="none")):
        layer, call = recorded(config, dtype=dtype)
        assert implied_attention(layer, call).kernel.dtype is torch.float32
