"""Operators that meet a machine without their backend still compute, and so do their gradients."""

import contextlib

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from castling.ops.angular import linear_angular
from castling.ops.exact_taylor import exact_taylor
from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.naive_linear_attention import naive_linear_attention
from castling.ops.quadratic_taylor import naive_exact_taylor
from castling.ops.taylor_inputs import TaylorOptions, TaylorTensors

LINEAR = LinearOptions("unit", "l2", identity=0.5, gamma=0.3, alpha=0.1)


def leaves(*shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(4)]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_attention_has_gradients_without_its_backend(dtype: torch.dtype) -> None:
    # A backend that never serves the CPU outside of the interpreter: a program from elsewhere.
    q, k, v, residual = leaves(2, 7, 3, 8, dtype=dtype)
    weight = torch.randn(3, 1, 3, 1, requires_grad=True)
    scalar = torch.tensor(0.7, requires_grad=True)
    mask = torch.arange(7).expand(2, 7) < 5
    moving = [q, k, v, residual, weight, scalar]
    tensors = LinearTensors(q, k, v, residual, weight, mask, scalar)
    out, _ = torch.ops.castling.linear_attention(*tensors, *LINEAR, "triton", True)
    expected = naive_linear_attention(tensors, LINEAR)
    grad = torch.randn(out.shape).to(dtype)
    assert_close(
        list(torch.autograd.grad(out, moving, grad)),
        list(torch.autograd.grad(expected, moving, grad)),
    )


def test_taylor_attention_has_gradients_without_its_backend() -> None:
    q, k, v, _ = leaves(2, 7, 3, 8)
    tensors, options = TaylorTensors(q, k, v), TaylorOptions(order="direct")
    out, _ = torch.ops.castling.taylor_attention(*tensors, *options, "triton", True)
    expected = naive_exact_taylor(tensors, options)
    grad = torch.randn(out.shape)
    assert_close(
        list(torch.autograd.grad(out, [q, k, v], grad)),
        list(torch.autograd.grad(expected, [q, k, v], grad)),
    )


@pytest.mark.parametrize("operator", [linear_angular, exact_taylor])
@pytest.mark.parametrize("shape", [(0, 7, 3, 8), (2, 0, 3, 8)])
def test_nothing_to_compute_has_gradients(operator, shape) -> None:
    q, k, v, _ = leaves(*shape)
    operator(q, k, v).sum().backward()
    assert q.grad.shape == k.grad.shape == v.grad.shape == shape


@pytest.mark.parametrize("operator", [linear_angular, exact_taylor])
def test_tangents_go_through(operator) -> None:
    q, k, v, direction = (leaf.detach() for leaf in leaves(1, 5, 2, 8))
    step = 1e-3
    difference = operator(q + step * direction, k, v) - operator(q - step * direction, k, v)
    with forward_ad.dual_level():
        dual = operator(forward_ad.make_dual(q, direction), k, v)
        tangent = forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, difference / (2 * step), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("operator", [linear_angular, exact_taylor])
def test_whether_something_watches_changes_no_bit(operator) -> None:
    found = []
    for watcher in (contextlib.nullcontext(), FlopCounterMode(display=False)):
        tensors = leaves(2, 7, 3, 8)[:3]
        with watcher:
            out = operator(*tensors)
            found.append([out, *torch.autograd.grad(out, tensors, torch.ones_like(out))])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("operator", [linear_angular, exact_taylor])
def test_negated_views_keep_their_sign(operator, grad) -> None:
    x = torch.view_as_complex(torch.randn(2, 7, 3, 8, 2)).conj().imag
    assert x.is_neg()
    y = torch.randn(2, 7, 3, 8, requires_grad=grad)
    for tensors in ((x, y, y), (y, x, y), (y, y, x)):
        torch.testing.assert_close(
            operator(*tensors), operator(*(t.resolve_neg() for t in tensors))
        )
    if operator is linear_angular:
        out = linear_angular(y, y, y, query_value=x)
        torch.testing.assert_close(out, linear_angular(y, y, y, query_value=x.resolve_neg()))


def test_an_addend_follows_the_widest_precision() -> None:
    q, k, v, residual = leaves(2, 7, 3, 8)
    half = [v.detach().bfloat16(), residual.detach().bfloat16()]
    out = linear_angular(q, k, half[0], query_value=half[1])
    assert out.dtype == torch.bfloat16
    expected = linear_angular(q, k, half[0].float(), query_value=half[1].float())
    torch.testing.assert_close(out.float(), expected, atol=4e-3, rtol=8e-3)
