"""Operators that meet a machine without their backend still compute, and so do their gradients."""

import contextlib
import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from castling.ops.angular import linear_angular
from castling.ops.backends import BackendError, attention_backend, available_backends
from castling.ops.cosine import cosine_attention
from castling.ops.exact_taylor import exact_taylor
from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.local import LocalResidual
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


DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtypes", itertools.product(DTYPES, repeat=3), ids=str)
def test_precisions_may_differ(dtypes: tuple[torch.dtype, ...]) -> None:
    three = zip(leaves(1, 9, 2, 8)[:3], dtypes, strict=True)
    tensors = [x.detach().to(dtype).requires_grad_() for x, dtype in three]
    wide = [x.detach().double().requires_grad_() for x in tensors]
    for attend in (linear_angular, exact_taylor):
        found, expected = attend(*tensors), attend(*wide)
        assert found.dtype == dtypes[2]
        grad = torch.randn(found.shape, dtype=torch.float64)
        gradients = torch.autograd.grad(found, tensors, grad.to(found.dtype))
        targets = torch.autograd.grad(expected, wide, grad.to(found.dtype).double())
        for a, b in zip([found, *gradients], [expected, *targets], strict=True):
            near = 1e-5 if a.dtype != torch.bfloat16 and found.dtype != torch.bfloat16 else 1e-2
            assert (a.double() - b).norm() < near * b.norm()
        if torch.float64 in dtypes and "native" in available_backends("cpu"):
            with attention_backend("native"), pytest.raises(BackendError, match="float64"):
                attend(*tensors)


def test_tensors_without_memory_are_zeros() -> None:
    q, k, v, _ = leaves(1, 5, 2, 8)
    zeros = torch._efficientzerotensor(q.shape)
    out = linear_angular(q, k, v)
    assert not torch.autograd.grad(out, q, zeros)[0].any()
    assert not linear_angular(q, k, zeros).any()


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
def test_a_dispatch_mode_changes_no_bit(operator) -> None:
    found = []
    for mode in (contextlib.nullcontext(), FlopCounterMode(display=False)):
        tensors = leaves(2, 7, 3, 8)[:3]
        with mode:
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


@pytest.mark.parametrize("grad", [True, False])
def test_tensors_without_memory_of_their_own_are_left_to_the_dispatcher(grad) -> None:
    q, k, v = (torch.randn(2, 12, 2, 8, requires_grad=grad) for _ in range(3))
    mask, weight = torch.rand(2, 12) > 0.5, torch.randn(16, 1, 3, 3)
    for operator in (linear_angular, exact_taylor):
        found = operator(q, k, v, key_mask=TwoTensor(mask, mask.clone()))
        torch.testing.assert_close(found.a, operator(q, k, v, key_mask=mask))
    wrapped = LocalResidual(TwoTensor(weight, weight.clone()), (3, 4))
    expected = linear_angular(q, k, v, local=LocalResidual(weight, (3, 4)))
    torch.testing.assert_close(linear_angular(q, k, v, local=wrapped).a, expected)
    negated = LocalResidual(torch._neg_view(-weight), (3, 4))
    torch.testing.assert_close(linear_angular(q, k, v, local=negated), expected)


@pytest.mark.parametrize("grad", [True, False])
def test_tensors_on_two_devices_are_refused(grad) -> None:
    q = torch.randn(2, 12, 2, 8, requires_grad=grad)
    far = torch.empty(2, 12, 2, 8, device="meta")
    mask = torch.ones(2, 12, dtype=torch.bool, device="meta")
    weight = torch.empty(16, 1, 3, 3, device="meta")
    for operator in (linear_angular, exact_taylor):
        for tensors in ((q, far, q), (q, q, far)):
            with pytest.raises(ValueError, match="on one device, got some on cpu, meta"):
                operator(*tensors)
        with pytest.raises(ValueError, match="on one device"):
            operator(q, q, q, key_mask=mask)
    for options in ({"query_value": far}, {"local": LocalResidual(weight, (3, 4))}):
        with pytest.raises(ValueError, match="on one device"):
            linear_angular(q, q, q, **options)


@pytest.mark.parametrize("operator", [linear_angular, exact_taylor])
def test_many_gradients_at_once(operator) -> None:
    tensors = leaves(2, 7, 3, 8)[:3]
    out = operator(*tensors)
    grads = torch.randn(4, *out.shape)
    found = torch.autograd.grad(out, tensors, grads, is_grads_batched=True, retain_graph=True)
    rows = [torch.autograd.grad(out, tensors, grad, retain_graph=True) for grad in grads]
    for batched, single in zip(found, zip(*rows, strict=True), strict=True):
        torch.testing.assert_close(batched, torch.stack(single))


def test_an_export_of_exact_taylor_attention_serves_every_size() -> None:
    class Model(torch.nn.Module):
        def forward(self, x):
            return exact_taylor(*x.unflatten(-1, (3, 2, 8)).unbind(2))

    x = torch.randn(2, 20, 48, requires_grad=True)  # else no state is asked for
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    program = torch.export.export(Model(), (x,), dynamic_shapes={"x": {1: tokens}})
    for count in (9, 20, 300):
        x = torch.randn(2, count, 48)
        torch.testing.assert_close(program.module()(x), Model()(x), rtol=1e-4, atol=1e-5)


def test_a_forced_backend_does_not_lose_tangents() -> None:
    if "native" not in available_backends("cpu"):
        pytest.skip("the C++ operators are not built")
    q = torch.randn(1, 4, 1, 8)
    with attention_backend("native"), forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(BackendError, match="forward-mode"):
            linear_angular(dual, q, q)


def test_without_channels_the_values_mean_has_its_gradient() -> None:
    q, v = torch.randn(1, 4, 1, 0), torch.randn(1, 4, 1, 8, requires_grad=True)
    exact_taylor(q, q, v, order="direct").sum().backward()
    torch.testing.assert_close(v.grad, torch.ones_like(v), rtol=1e-5, atol=1e-5)


X = torch.ones(2, 12, 2, 8)


@pytest.mark.parametrize("backend", ["naive", None])
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cosine_attention(X, X, X, normalize="L2"), '"l2" or "none"'),
        (lambda: linear_angular(X, X, X, kv_scale="token"), "kv_scale must be positive"),
        (lambda: linear_angular(X, X, X, kv_scale=torch.tensor(0.5)), "kv_scale must be positive"),
        (lambda: linear_angular(X, X, X, eps=float("nan")), "cannot be negative"),
        (lambda: exact_taylor(X, X, X, eps=-1.0), "cannot be negative"),
        (lambda: linear_angular(X, X, X, auxiliary_output=X[:, :1]), "auxiliary_output must be"),
        (
            lambda: linear_angular(X, X, X, auxiliary_output=X, query_value=X[:, :1]),
            "query_value must be",
        ),
        (lambda: local(X[0, :2, :1, :1], None), "odd size"),
        (lambda: local(X[0, 0], None), "local weights must be"),
        (lambda: local(torch.ones(16, 1, 3, 3), (2, 2, 3)), "a grid is"),
        (lambda: local(torch.ones(2, 1, 3, 1), None, 3), "need a grid"),
    ],
)
def test_bad_input_is_named_on_every_backend(backend, call, said) -> None:
    with attention_backend(backend), pytest.raises(ValueError, match=said):
        call()


def local(weight, grid, prefix=0):
    return linear_angular(X, X, X, local=LocalResidual(weight, grid, prefix))


def test_a_transform_compiles() -> None:
    def loss(q, k, v):
        return linear_angular(q, k, v).square().sum()

    q, k, v = (leaf.detach() for leaf in leaves(2, 5, 2, 8)[:3])
    torch.compiler.reset()
    compiled = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), torch.func.grad(loss)(q, k, v))
