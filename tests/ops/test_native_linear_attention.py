"""Native linear attention against the naive formula in float64: output and every gradient."""

import ctypes
import math
import os
import subprocess
import sys

import pytest
import torch

from castling.ops import native
from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.naive_linear_attention import naive_linear_attention

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the native operators are not built"),
    pytest.mark.usefixtures("nan_memory"),
]

ANGULAR = {"features": "unit", "normalize": "l2", "identity": 0.5, "gamma": 1 / math.pi}
MECHANISMS = {
    "angular": ANGULAR,
    "angular_tokens": {**ANGULAR, "kv_scale": 0.0},
    "angular_mean_l2": {**ANGULAR, "identity": 0.0, "alpha": 0.5, "kv_scale": 0.0},
    "angular_rowsum": {
        **{"features": "unit", "normalize": "rowsum", "gamma": 1 / math.pi},
        **{"alpha": 0.5, "kv_scale": 0.0},
    },
    "angular_none": {**ANGULAR, "normalize": "none"},
    "relu": {"features": "relu", "normalize": "rowsum", "kv_scale": 0.0, "row_eps": 1e-5},
    "relu_l2": {"features": "relu", "normalize": "l2", "identity": 1.0, "kv_scale": 0.0},
    "released": {
        **{"features": "squares", "normalize": "rowsum", "kv_scale": 0.0, "scalar": 0.7},
        **{"eps": 1e-9, "row_eps": 1e-9},
    },
    "plain": {"features": "identity", "normalize": "none", "identity": 1.0, "kv_scale": 0.0},
}
DEFAULTS = {
    **{"features": "unit", "normalize": "none", "identity": 0.0, "gamma": 1.0, "alpha": 0.0},
    **{"kv_scale": 1.0, "eps": 1e-6, "row_eps": 0.0},
}
NAMES = ("query", "key", "value", "residual", "local_weight", "scalar")


def draw(*shape, seed=0, shift=0.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift


class Case:
    """Inputs of one call, its result, and what the result should be."""

    def __init__(
        self, batch=2, n=9, heads=3, dim=8, value_dim=None, *, n_q=None, mechanism="angular",
        layout="packed", dtype=torch.float32, shift=0.0, mask=None, residual=False,
        local=None, grid=None, prefix=0, **changes,
    ):  # fmt: skip
        value_dim, n_q = value_dim or dim, n if n_q is None else n_q
        options = {**DEFAULTS, **MECHANISMS[mechanism], **changes}
        scalar = options.pop("scalar", None)
        self.scalar = None if scalar is None else torch.tensor(scalar)
        self.options = options
        self.query, self.key, self.value = (
            x.to(dtype) if layout != "packed" else x
            for x in self.layout(layout, batch, n_q, n, heads, dim, value_dim, dtype, shift)
        )
        self.residual = draw(batch, n_q, heads, value_dim, seed=7).to(dtype) if residual else None
        self.mask, self.grid, self.prefix = mask, grid, prefix
        self.weight = None
        if local and grid is None:
            self.weight = draw(heads, 1, local, 1, seed=8)
        elif local:
            self.weight = draw(heads * value_dim, 1, local, local, seed=9) * 0.5
        self.grad = draw(batch, n_q, heads, value_dim, seed=10).to(dtype)

    @staticmethod
    def layout(layout, batch, n_q, n, heads, dim, value_dim, dtype, shift):
        if layout == "packed" and n_q == n and value_dim == dim:
            return draw(batch, n, 3, heads, dim, shift=shift).to(dtype).unbind(2)
        if layout == "channels_first":
            return draw(batch, 3, heads, dim, n).permute(1, 0, 4, 2, 3).unbind(0)
        if layout == "broadcast":
            return draw(3, 1, n, 1, dim).expand(3, batch, n, heads, dim).contiguous().unbind(0)
        if layout == "odd":
            return draw(3, heads, n, batch, 2 * dim).permute(0, 3, 2, 1, 4)[..., ::2].unbind(0)
        shapes = (n_q, dim), (n, dim), (n, value_dim)
        return tuple(
            draw(batch, tokens, heads, channels, seed=i, shift=shift).to(dtype)
            for i, (tokens, channels) in enumerate(shapes)
        )

    def tensors(self):
        first = (self.query, self.key, self.value, self.residual, self.weight)
        return LinearTensors(*first, self.mask, self.scalar)

    def arguments(self):
        return LinearOptions(**self.options, grid=self.grid or (), prefix=self.prefix)

    def run(self):
        out, state = native.linear_attention_forward(self.tensors(), self.arguments(), True)
        gradients = native.linear_attention_backward(
            self.grad, self.tensors(), (state,), self.arguments()
        )
        alone, empty = native.linear_attention_forward(self.tensors(), self.arguments(), False)
        # Without a state few tokens are multiplied in another order.
        close = 1e-5 if out.dtype == torch.float32 else 1e-2
        assert torch.allclose(alone, out, rtol=close, atol=close, equal_nan=True)
        assert empty.shape == (0,)
        batch, _, heads, dim = self.query.shape
        value_dim = self.value.shape[3]
        assert state.shape == (batch, heads, dim * value_dim + dim + value_dim)
        assert state.dtype == torch.float32
        return out, gradients

    def reference(self, dtype=torch.float64):
        inputs = [self.query, self.key, self.value, self.residual, self.weight, self.scalar]
        leaves = [None if x is None else x.detach().to(dtype).requires_grad_() for x in inputs]
        *first, scalar = leaves
        out = naive_linear_attention(LinearTensors(*first, self.mask, scalar), self.arguments())
        there = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(out, there, self.grad.to(dtype), materialize_grads=True))
        return out.detach(), [None if leaf is None else next(found) for leaf in leaves]

    def check(self, forward=1e-5, backward=1e-4, least=1e-12):
        out, gradients = self.run()
        target, targets = self.reference()
        inputs = (self.query, self.key, self.value, self.residual, self.weight, self.scalar)
        assert out.dtype == self.value.dtype
        assert out.is_contiguous()
        assert error(out, target) < forward
        alone, _ = native.linear_attention_forward(self.tensors(), self.arguments(), False)
        assert error(alone, target) < forward
        for name, gradient, wanted, like in zip(NAMES, gradients, targets, inputs, strict=True):
            if wanted is None:
                assert gradient is None, name
                continue
            assert gradient.dtype == like.dtype, name
            assert gradient.shape == like.shape, name
            assert gradient.is_contiguous(), name
            # One number, a sum of thousands that nearly cancel: no relative bound holds.
            floor = max(least, 0.1) if name == "scalar" else least
            assert error(gradient, wanted, floor) < backward, name


def error(result, target, least=1e-12):
    """Root mean square of the difference over the target's, at least ``least``; NaN is infinite."""
    if not target.numel():
        return 0.0
    difference = (result.double() - target).square().mean().sqrt()
    ratio = float(difference / target.square().mean().sqrt().clamp(min=least))
    return ratio if ratio == ratio else math.inf


def key_mask(batch, n):
    mask = torch.rand(batch, n, generator=torch.Generator().manual_seed(3)) > 0.4
    mask[0] = False
    mask[-1] = True
    return mask


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("n", [1, 5, 49, 63, 197, 1000, 1025])
def test_every_mechanism_at_odd_lengths(mechanism, n):
    # A single row has no direction to turn to: its gradients are differences of equal numbers.
    least = 0.1 if n == 1 else 1e-12
    Case(n=n, dim=16, batch=1, mechanism=mechanism).check(least=least)


@pytest.mark.parametrize("mechanism", ["angular", "angular_rowsum", "relu", "released"])
@pytest.mark.parametrize("dim", [1, 7, 16, 32, 48, 64, 96, 128])
def test_channels(mechanism, dim):
    least = 0.1 if dim == 1 else 1e-12  # as above
    Case(n=70, dim=dim, heads=2, batch=1, mechanism=mechanism).check(least=least)


@pytest.mark.parametrize("mechanism", ["angular", "relu", "released"])
@pytest.mark.parametrize(("dim", "value_dim"), [(16, 32), (7, 64), (64, 7), (40, 33), (32, 128)])
def test_values_of_another_width(mechanism, dim, value_dim):
    Case(n=50, dim=dim, value_dim=value_dim, mechanism=mechanism).check()


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(
    ("n_q", "n", "dim", "value_dim"),
    [(49, 49, 64, 64), (1, 3, 16, 16), (90, 90, 128, 128), (65, 128, 256, 200), (20, 9, 38, 27)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_tokens_than_channels(mechanism, n_q, n, dim, value_dim, dtype):
    mask = key_mask(2, n)
    mask[0] = True
    for masked in (None, mask):
        case = Case(
            *(2, n, 2, dim, value_dim),
            **{"n_q": n_q, "mechanism": mechanism, "layout": "plain", "mask": masked},
            **{"residual": n_q != n, "local": 3 if n_q == n else None, "dtype": dtype},
        )
        half = dtype != torch.float32
        out, _ = native.linear_attention_forward(case.tensors(), case.arguments(), False)
        target, _ = case.reference()
        assert error(out, target) < (4e-3 if half else 1e-5)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("layout", ["channels_first", "broadcast", "odd"])
@pytest.mark.parametrize("dim", [16, 13])
def test_any_strides(mechanism, layout, dim):
    case = Case(n=75, dim=dim, mechanism=mechanism, layout=layout)
    case.grad = case.grad.transpose(1, 2).contiguous().transpose(1, 2)
    case.check()


@pytest.mark.parametrize("layout", ["channels_first", "odd"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_any_strides_in_half_precision(layout, dtype):
    case = Case(n=75, dim=13, mechanism="angular", layout=layout, dtype=dtype)
    case.check(forward=4e-3, backward=6e-3)


@pytest.mark.parametrize("mechanism", ["angular", "plain", "relu_l2"])
@pytest.mark.parametrize(("n_q", "n"), [(30, 70), (300, 7), (1, 90)])
def test_residual_at_other_queries(mechanism, n_q, n):
    Case(n=n, n_q=n_q, dim=16, value_dim=24, mechanism=mechanism, residual=True).check()


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("residual", [True, False])
def test_masked_keys_take_no_part(mechanism, residual):
    mask = key_mask(3, 101)
    case = Case(3, 101, 2, 16, mechanism=mechanism, mask=mask, residual=residual, layout="plain")
    case.check()
    out, gradients = case.run()
    assert not gradients[1][~mask].any()
    assert not gradients[2][~mask].any()
    case.key[~mask] = math.nan
    case.value[~mask] = math.nan
    again, same = case.run()
    assert torch.equal(again, out)
    assert all(a is None or torch.equal(a, b) for a, b in zip(same, gradients, strict=True))


@pytest.mark.parametrize("mechanism", ["angular", "angular_rowsum", "relu", "released"])
@pytest.mark.parametrize("taps", [1, 3, 9])
@pytest.mark.parametrize("n", [1, 4, 197])
@pytest.mark.parametrize("dim", [16, 64, 13])
def test_taps_along_the_tokens(mechanism, taps, n, dim):
    least = 0.1 if n == 1 else 1e-12
    Case(n=n, heads=2, dim=dim, mechanism=mechanism, local=taps).check(least=least)


@pytest.mark.parametrize("mechanism", ["angular", "angular_rowsum"])
@pytest.mark.parametrize(("grid", "prefix"), [((7, 7), 0), ((5, 11), 2), ((14, 14), 1), ((1, 2), 0),
                                              ((2, 1), 1), ((1, 1), 5), ((33, 8), 1)])  # fmt: skip
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("dim", [16, 13])
def test_kernels_on_the_grid(mechanism, grid, prefix, kernel, dim):
    n = grid[0] * grid[1] + prefix
    Case(n=n, heads=2, dim=dim, mechanism=mechanism, local=kernel, grid=grid, prefix=prefix).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("local", "grid", "prefix"), [(9, None, 0), (3, (10, 10), 1)])
def test_local_residual_with_a_mask(dtype, local, grid, prefix):
    case = Case(
        *(3, 101, 2, 16),
        **{"mask": key_mask(3, 101), "local": local, "grid": grid, "prefix": prefix},
        **{"residual": True, "dtype": dtype},
    )
    half = dtype != torch.float32
    case.check(4e-3 if half else 1e-5, 6e-3 if half else 1e-4)


@pytest.mark.parametrize("mechanism", ["angular", "angular_mean_l2", "relu", "released"])
def test_rows_of_zeros_are_finite(mechanism):
    case = Case(n=30, dim=16, mechanism=mechanism, layout="plain", local=3)
    case.query[:, 3] = 0
    case.key[:, 4] = 0
    case.value[:, 5] = 0
    case.value[0] = 0
    case.check()
    _, (d_query, d_key, *_) = case.run()
    assert not d_query[:, 3].any()
    assert not d_key[:, 4].any()


def test_without_eps_it_is_the_plain_norm():
    Case(n=30, eps=0.0).check()
    case = Case(n=30, eps=0.0, layout="plain")
    case.query[0, 2] = 0
    out, _ = case.run()
    assert out[0, 2].isnan().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shift", "limit"), [(0.0, 2.5e-3), (2.0, 4e-3)])
def test_half_precisions_lose_only_the_rounding_of_results(mechanism, dtype, shift, limit):
    case = Case(1, 515, 2, 32, mechanism=mechanism, dtype=dtype, shift=shift, local=3)
    out, gradients = case.run()
    target, targets = case.reference()
    plain, others = case.reference(dtype)
    assert error(out, target) < min(limit, 2 * error(plain, target) + 1e-5)
    for name, gradient, other, wanted in zip(NAMES, gradients, others, targets, strict=True):
        if wanted is not None:
            assert error(gradient, wanted) < max(4e-3, 2 * error(other, wanted)), name


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("n", [1, 2, 3, 9, 16, 17, 18, 33, 49, 50, 65, 66, 113, 128, 129, 130])
@pytest.mark.parametrize("n_q", [None, 5])
def test_keys_after_the_last_whole_vector(mechanism, n, n_q):
    residual = n_q is not None and mechanism != "relu"
    mask = key_mask(2, n) if n % 2 else None
    options = {"n_q": n_q, "mechanism": mechanism, "residual": residual, "mask": mask}
    case = Case(2, n, 2, 128, 16, **options)
    out, _ = native.linear_attention_forward(case.tensors(), case.arguments(), False)
    assert error(out, case.reference()[0]) < 1e-6


@pytest.mark.parametrize("mechanism", ["relu", "released", "angular_rowsum"])
@pytest.mark.parametrize("n", [49, 197, 16384])
@pytest.mark.parametrize("shift", [0.0, 2.0, 20.0])
def test_gradients_of_row_sums_far_from_zero(mechanism, n, shift):
    case = Case(1, n, 2, 64, mechanism=mechanism, shift=shift, row_eps=1e-3)
    out, gradients = case.run()
    target, targets = case.reference()
    _, plain = case.reference(torch.float32)
    assert error(out, target) < 1e-6
    query, formula = (error(each[0], targets[0]) for each in (gradients, plain))
    assert query < {0.0: 1e-6, 2.0: 6e-5, 20.0: 6e-3}[shift]
    assert query < (1.1 if shift == 0 else 0.8) * formula
    for gradient, wanted in zip(gradients[1:3], targets[1:3], strict=True):
        assert error(gradient, wanted) < 1e-5


@pytest.mark.parametrize("size", [1e3, 1e6, 1e18])
@pytest.mark.parametrize("count", [8, 200])
def test_values_without_weight_cost_no_digits(size, count):
    case = Case(1, 256, 2, 16, mechanism="relu", layout="plain")
    case.key[:, :count] = -1
    case.value[:, :count] = size
    case.check(forward=1e-6, backward=1e-6)


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_tokens_that_see_only_small_values_keep_their_digits(size):
    case = Case(1, 64, 2, 16, mechanism="relu", layout="plain")
    for x in (case.query, case.key):
        x.abs_()
        x[:, :32, :, :8] = -1
        x[:, 32:, :, 8:] = -1
    case.value[:, 32:] += size
    _, gradients = case.run()
    _, targets = case.reference()
    for gradient, wanted in zip(gradients[:3], targets[:3], strict=True):
        assert error(gradient[:, :32], wanted[:, :32]) < 1e-6


def test_one_value_unlike_the_others_costs_no_digits():
    mask = torch.ones(1, 4000, dtype=torch.bool)
    mask[0, 1:64] = False
    case = Case(1, 4000, 2, 16, mechanism="relu", layout="plain", mask=mask)
    case.value[:, 0] = 1000
    case.check(forward=1e-6, backward=1e-6)


@pytest.mark.parametrize("row_eps", [0.0, 1e-2])
def test_row_sums_where_no_key_counts(row_eps):
    mask = torch.ones(2, 70, dtype=torch.bool)
    mask[0] = False
    mask[1, :66] = False
    case = Case(2, 70, 2, 16, mechanism="relu", shift=2.0, row_eps=row_eps, mask=mask)
    case.check()
    out, _ = case.run()
    assert not out[0].any()
    case = Case(1, 70, 2, 16, mechanism="relu", layout="plain", shift=2.0, row_eps=row_eps)
    case.query[0, 3] = -1.0
    case.check()
    out, _ = case.run()
    assert not out[0, 3].any()


def test_rows_that_sum_to_zero_have_the_slopes_of_their_products():
    options = {"mechanism": "relu", "features": "identity", "row_eps": 0.0}
    case = Case(1, 6, 1, 8, **options, shift=3.0, layout="plain")
    case.query[:] = 0
    case.check()


def test_a_state_may_have_any_strides():
    case = Case(2, 128, 4, 32, mechanism="relu")
    _, state = native.linear_attention_forward(case.tensors(), case.arguments(), True)
    wide = torch.empty(*state.shape, 2)
    wide[..., 0] = state
    found, expected = (
        native.linear_attention_backward(case.grad, case.tensors(), (each,), case.arguments())
        for each in (wide[..., 0], state)
    )
    assert all(a is None or torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_options_that_could_change_are_refused():
    case = Case(eps=torch.tensor(1e-6))
    with pytest.raises(TypeError, match="plain numbers"):
        native.linear_attention_forward(case.tensors(), case.arguments(), False)


def test_an_infinite_value_stays_at_its_channel():
    case = Case(1, 70, 1, 16, mechanism="relu", shift=2.0, layout="plain")
    case.value[0, 5, 0, 3] = math.inf
    out, _ = case.run()
    assert out[..., 3].isinf().any()
    assert out[..., :3].isfinite().all()
    assert out[..., 4:].isfinite().all()


@pytest.mark.parametrize("mechanism", ["angular", "released"])
@pytest.mark.parametrize(
    ("batch", "heads", "n", "dim"),
    [(1, 1, 1100, 32), (2, 3, 300, 32), (5, 8, 80, 32), (3, 3, 49, 128), (1, 1, 128, 256)],
)
def test_threads_change_no_bit(mechanism, batch, heads, n, dim):
    case = Case(batch, n, heads, dim, mechanism=mechanism, local=3, dtype=torch.bfloat16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7, 7):
            torch.set_num_threads(threads)
            out, gradients = case.run()
            alone, _ = native.linear_attention_forward(case.tensors(), case.arguments(), False)
            results.append([out, alone, *(g for g in gradients if g is not None)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_threads_without_a_pool():
    functions = native.library.load().functions
    case = Case(1, 1100, 2, 32, local=3)
    before = torch.get_num_threads()
    expected, _ = case.run()
    try:
        torch.set_num_threads(3)
        functions.castling_use_openmp(None)
        out, _ = case.run()
    finally:
        functions.castling_use_openmp(ctypes.c_void_p(native.library.openmp_entry()))
        torch.set_num_threads(before)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"n_q": 0}, {"n": 0, "n_q": 3}])
def test_nothing_to_do(sizes):
    case = Case(**{"n": 4, "mechanism": "angular_mean_l2", "layout": "plain", **sizes})
    out, gradients = case.run()
    assert not out.any()
    assert not any(g.any() for g in gradients if g is not None)


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["portable", "avx2", "avx512"])
def test_each_instruction_set(instructions):
    library = native.library
    if not library.load().functions.castling_runs(library.INSTRUCTION_SETS.index(instructions)):
        pytest.skip(f"this machine does not run {instructions}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k"]
    names = "channels or taps or grid or half or strides or masked"
    environment = {**os.environ, "CASTLING_ISA": instructions, "OMP_NUM_THREADS": "1"}
    if os.environ.get("CASTLING_ISA"):
        pytest.skip("an instruction set is forced already")
    done = subprocess.run(
        [*command, names, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_bad_input_is_named():
    case = Case()
    case.value = case.value.double()
    with pytest.raises(ValueError, match=r"one precision.*float64"):
        case.run()
    case = Case(features="cube")
    with pytest.raises(ValueError, match="features is one of"):
        case.run()
    case = Case(n=9)
    case.weight = draw(3, 1, 4, 1)
    with pytest.raises(ValueError, match="odd size"):
        case.run()
    case = Case(n=9, local=3, grid=(2, 4))
    with pytest.raises(ValueError, match="does not make 9 tokens"):
        case.run()
    case = Case()
    arguments = (case.tensors(), (torch.empty(0),), case.arguments())
    with pytest.raises(ValueError, match="save_state"):
        native.linear_attention_backward(case.grad, *arguments)
