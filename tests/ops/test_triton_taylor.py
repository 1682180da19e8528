"""The Triton kernels of the exact Taylor attention, in Triton's interpreter, against the formula.

The interpreter has to be chosen before Triton is imported: this file runs itself in a process of
its own, where the tests marked ``inner`` are run.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from castling.ops import quadratic_taylor
from castling.ops import triton as backend
from castling.ops.taylor_inputs import TaylorOptions, TaylorTensors
from castling.ops.triton.taylor_configs import chosen_order, pair_count

INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
ORDERS = ["direct", "features"]

inner = pytest.mark.skipif(not INSIDE, reason="runs in the process with the interpreter")


@pytest.mark.slow
@pytest.mark.skipif(backend.why_never() is not None, reason="Triton is not installed")
@pytest.mark.skipif(INSIDE, reason="this is the inner process")
@pytest.mark.timeout(900)
def test_kernels_in_the_interpreter():
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(Path(__file__))],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


def test_automatic_order_changes_where_the_direct_one_costs_more():
    assert pair_count(64) == 2304

    def order(tokens, asked):
        x = torch.empty(1, tokens, 1, 64, device="meta")
        return chosen_order(TaylorTensors(x, x, x), TaylorOptions(order=asked))

    assert order(1024, "auto") == "direct"
    assert order(4096, "auto") == "features"
    assert order(4, "features") == "features"
    with pytest.raises(ValueError, match="order must be"):
        order(4, "linear")


def test_nothing_is_kept_between_the_passes():
    x = torch.empty(2, 196, 3, 64, device="meta")
    assert backend.taylor_state_shape(TaylorTensors(x, x, x), TaylorOptions(), True) == (0,)


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    # PyTorch then fills what empty() returns with NaN.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def tensors(batch=2, queries=21, keys=33, heads=1, dim=8, value_dim=16, shift=0.0, dtype=None):
    made = [
        torch.randn(batch, n, heads, c) + shift
        for n, c in ((queries, dim), (keys, dim), (keys, value_dim))
    ]
    return [t.to(dtype or torch.float32) for t in made]


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def errors(q, k, v, order, mask=None, qk_norm=True, eps=1e-9, grad_scale=1.0):
    """Relative RMS error of the output and of the gradients of query, key and value."""
    leaves = [t.detach().double().requires_grad_() for t in (q, k, v)]
    naive = quadratic_taylor.naive_exact_taylor(
        TaylorTensors(*leaves, mask), TaylorOptions(qk_norm, eps, "direct")
    )
    grad = (torch.randn(naive.shape) * grad_scale).to(v.dtype)
    expected = torch.autograd.grad(naive, leaves, grad.double())
    if mask is not None:
        # What is masked must not even be looked at.
        k, v = (t.masked_fill(~mask[:, :, None, None], torch.nan) for t in (k, v))
    inputs, options = TaylorTensors(q, k, v, mask), TaylorOptions(qk_norm, eps, order)
    out, state = backend.taylor_attention_forward(inputs, options, True)
    found = backend.taylor_attention_backward(grad, inputs, (out, state), options)
    assert out.is_contiguous()
    for gradient, tensor in zip(found, (q, k, v), strict=True):
        assert gradient.dtype == tensor.dtype
        assert gradient.is_contiguous()
    pairs = zip((out, *found), (naive.detach(), *expected), strict=True)
    return [relative(a, b) for a, b in pairs]


def forward(q, k, v, *, mask=None, eps=1e-9, order):
    options = TaylorOptions(eps=eps, order=order)
    return backend.taylor_attention_forward(TaylorTensors(q, k, v, mask), options, False)


def assert_exact(found, forward=1e-6, backward=2e-6):
    assert found[0] < forward, found
    assert max(found[1:]) < backward, found


@inner
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_options(order, qk_norm, masked):
    q, k, v = tensors()
    mask = torch.rand(2, k.shape[1]) > 0.4 if masked else None
    assert_exact(errors(q, k, v, order, mask, qk_norm))


@inner
@pytest.mark.parametrize("order", ORDERS)
def test_sample_without_keys(order):
    q, k, v = tensors()
    mask = torch.ones(2, k.shape[1], dtype=torch.bool)
    mask[1] = False
    assert_exact(errors(q, k, v, order, mask))
    out, _ = forward(q, k, v, mask=mask, eps=0.0, order=order)
    assert (out[1] == 0).all()


@inner
@pytest.mark.parametrize("dims", [(48, 24), (16, 64), (20, 5), (72, 128)])
@pytest.mark.parametrize("order", ORDERS)
def test_widths(order, dims):
    q, k, v = tensors(1, 9, 11, 1, *dims)
    assert_exact(errors(q, k, v, order))


@inner
@pytest.mark.parametrize("tokens", [1, 49, 63, 197])
@pytest.mark.parametrize("order", ORDERS)
def test_odd_lengths(order, tokens):
    q, k, v = tensors(1, tokens, tokens, 1)
    if tokens == 1:  # one key is all there is: queries and keys change nothing
        assert errors(q, k, v, order)[0] < 1e-6
    else:
        assert_exact(errors(q, k, v, order))


@inner
@pytest.mark.parametrize("order", ORDERS)
def test_long_sequence_in_splits(order):
    assert_exact(errors(*tensors(1, 17, 519, 1), order))
    assert_exact(errors(*tensors(1, 519, 17, 1), order))


@inner
@pytest.mark.parametrize("order", ORDERS)
def test_strides(order):
    packed = torch.randn(2, 19, 3, 2, 8)
    assert_exact(errors(*packed.unbind(2), order))
    channels_first = torch.randn(2, 3, 2, 8, 19).permute(1, 0, 4, 2, 3)
    assert_exact(errors(*channels_first, order))
    shared = torch.randn(1, 19, 1, 8).expand(2, 19, 2, 8)
    assert_exact(errors(*packed.unbind(2)[:2], shared, order))


@inner
@pytest.mark.parametrize("order", ORDERS)
def test_a_large_eps_is_part_of_the_gradient(order):
    q, k, v = tensors(shift=0.5)
    assert_exact(errors(q, k, v, order, torch.rand(2, k.shape[1]) > 0.4, eps=0.3))


@inner
@pytest.mark.parametrize("shift", [0.0, 2.0])
@pytest.mark.parametrize("order", ORDERS)
def test_bfloat16(order, shift):
    found = errors(*tensors(1, 33, 600, 1, 16, 16, shift, torch.bfloat16), order)
    assert found[0] < 2.5e-3, found
    assert max(found[1:]) < 3.5e-3, found


@inner
@pytest.mark.parametrize("order", ORDERS)
def test_float16_neither_overflows_nor_vanishes(order):
    q, k, v = tensors(dtype=torch.float16)
    assert_exact(errors(q, k, v, order), 5e-4, 5e-4)
    # z²/2 beyond 65504, and gradients whose shares are below the smallest float16.
    assert_exact(errors(q * 30, k * 30, v, order, qk_norm=False), 5e-4, 1e-3)
    found = errors(*tensors(1, 300, 300, 1, dtype=torch.float16), order, grad_scale=1e-2)
    assert_exact(found, 5e-4, 5e-3)


@inner
@pytest.mark.parametrize("order", ORDERS)
def test_zero_rows(order):
    q, k, v = tensors()
    q[0, 3] = 0
    k[1, 5] = 0
    assert_exact(errors(q, k, v, order))
    inputs, options = TaylorTensors(q, k, v), TaylorOptions(order=order)
    out, state = backend.taylor_attention_forward(inputs, options, True)
    d_query, d_key, _ = backend.taylor_attention_backward(
        torch.ones_like(out), inputs, (out, state), options
    )
    assert (d_query[0, 3] == 0).all()
    assert (d_key[1, 5] == 0).all()


@inner
@pytest.mark.parametrize("order", ORDERS)
def test_without_eps_a_zero_query_has_no_direction(order):
    q, k, v = tensors()
    q[0, 3] = 0
    out, _ = forward(q, k, v, eps=0.0, order=order)
    assert out[0, 3].isnan().all()
    out[0, 3] = 0
    assert out.isfinite().all()


@inner
@pytest.mark.parametrize("order", ORDERS)
def test_same_bits_twice(order):
    q, k, v = tensors(1, 9, 519, 1)
    first, second = (forward(q, k, v, order=order)[0] for _ in range(2))
    assert torch.equal(first, second)


@inner
def test_bad_input_is_named():
    q, k, v = tensors()
    with pytest.raises(ValueError, match="order must be"):
        forward(q, k, v, order="linear")
    with pytest.raises(ValueError, match="must share"):
        forward(q.half(), k, v, order="direct")
    with pytest.raises(ValueError, match="at most 128 channels"):
        forward(*tensors(1, 3, 3, 1, 130, 16), order="auto")
