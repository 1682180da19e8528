"""The Triton kernels of linear attention, in Triton's interpreter, against the naive formula.

The interpreter has to be chosen before Triton is imported: this file runs itself in a process of
its own, where the classes below are collected.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from castling.ops import triton as backend
from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.naive_linear_attention import naive_linear_attention

INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
NAMES = ("query", "key", "value", "residual", "local_weight", "scalar")

ANGULAR = {
    "features": "unit",
    "normalize": "l2",
    "identity": 0.5,
    "gamma": 1 / math.pi,
    "alpha": 0.0,
    "kv_scale": 1.0,
    "eps": 1e-6,
    "row_eps": 0.0,
}
EXACT_ANGULAR = ANGULAR | {"normalize": "rowsum", "identity": 0.0, "alpha": 0.5, "kv_scale": 0.0}
RELU = EXACT_ANGULAR | {"features": "relu", "gamma": 1.0, "alpha": 0.0, "row_eps": 1e-5}
RELEASED = RELU | {"features": "squares", "eps": 1e-9, "row_eps": 1e-9}
MEAN = RELU | {"features": "identity", "normalize": "none", "identity": 0.5, "alpha": 0.5}
OPTIONS = {
    "angular": ANGULAR,
    "exact_angular": EXACT_ANGULAR,
    "relu": RELU,
    "released": RELEASED,
    "mean": MEAN,
}


def subprocess_of(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(backend.why_never() is not None, reason="Triton is not installed")
@pytest.mark.skipif(INSIDE, reason="this is the inner process")
def test_kernels_in_the_interpreter():
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header")
    done = subprocess_of(
        "-m", "pytest", *options, str(Path(__file__)), TRITON_INTERPRET="1", OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


def test_importing_the_package_imports_no_triton():
    code = (
        "import sys\n"
        "sys.modules['triton'] = None  # as if it were not installed\n"
        "from castling.ops import triton\n"
        "assert 'not installed' in triton.why_not('cuda')\n"
    )
    done = subprocess_of("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(INSIDE, reason="there the kernels do run on a CPU")
def test_cpu_tensors_are_refused_with_a_reason():
    assert not backend.available("cpu")
    assert backend.why_not("cpu")


def tensors(shape, *, dtype=torch.float32, value_dim=None, queries=None, shift=0.0):
    batch, tokens, heads, dim = shape
    sizes = [(queries or tokens, dim), (tokens, dim), (tokens, value_dim or dim)]
    return [(torch.randn(batch, n, heads, d) + shift).to(dtype) for n, d in sizes]


def strided(tensor, how):
    """The same numbers behind other strides."""
    if how == "packed":
        batch, tokens, heads, dim = tensor.shape
        packed = torch.full((batch, tokens, 3, heads, dim), float("nan"), dtype=tensor.dtype)
        packed[:, :, 1] = tensor
        return packed[:, :, 1]
    if how == "channels_first":
        return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return tensor


def reference(inputs, mask, options, grid, prefix):
    """Naive output in float64, and leaves that hold its gradients."""
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    *first, scalar = leaves
    out = naive_linear_attention(
        LinearTensors(*first, mask, scalar), LinearOptions(**options, grid=grid, prefix=prefix)
    )
    return out, leaves


def relative(found, expected):
    expected = expected.detach()
    error = (found.double() - expected).norm()
    return float(error / expected.norm()) if expected.norm() > 0 else float(error)


def compare(
    inputs, options, *, mask=None, grid=(), prefix=0, forward=1e-5, backward=1e-4, poison=True
):
    """Forward and every gradient against float64, in memory that was NaN before."""
    torch.use_deterministic_algorithms(poison)  # fills what torch.empty returns
    try:
        *first, scalar = inputs
        arguments = LinearTensors(*first, mask, scalar)
        numbers = LinearOptions(**options, grid=grid, prefix=prefix)
        out, state = backend.linear_attention_forward(arguments, numbers, True)
        gradient = torch.randn(out.shape).to(out.dtype)
        found = backend.linear_attention_backward(gradient, arguments, (state,), numbers)
    finally:
        torch.use_deterministic_algorithms(False)
    expected, leaves = reference(inputs, mask, options, grid, prefix)
    assert out.dtype == arguments.query.dtype
    assert out.is_contiguous()
    assert relative(out, expected) < forward
    expected.backward(gradient.double())
    for name, leaf, given, result in zip(NAMES, leaves, inputs, found, strict=True):
        assert (result is None) == (given is None), name
        if given is not None:
            assert result.dtype == given.dtype, name
            assert result.shape == given.shape, name
            assert result.is_contiguous(), name
            error = relative(result, leaf.grad)
            limit = backward[name] if isinstance(backward, dict) else backward
            assert error < limit, f"{name}: {error}"


def local_weight(kind, heads, dim, size):
    if kind == "token1d":
        return torch.randn(heads, 1, size, 1)
    return torch.randn(heads * dim, 1, size, size) if kind == "grid2d" else None


def no_single_launch(monkeypatch):
    from castling.ops.triton import linear_attention

    monkeypatch.setattr(linear_attention, "SINGLE_LAUNCH_TOKENS", 0)


class TestInTheInterpreter:
    __test__ = INSIDE

    @pytest.fixture(params=["one launch", "two launches"])
    def _launches(self, request, monkeypatch):
        if request.param == "two launches":
            no_single_launch(monkeypatch)

    @pytest.mark.usefixtures("_launches")
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("name", list(OPTIONS))
    def test_every_feature_map_and_option(self, name, masked):
        heads, dim = 2, 32
        query, key, value = tensors((2, 65, heads, dim))
        residual = torch.randn_like(value) if masked and OPTIONS[name]["identity"] else None
        mask = torch.rand(2, 65) > 0.4 if masked else None
        scalar = torch.tensor(0.7) if name == "released" else None
        kind = "grid2d" if masked else "token1d"
        weight = local_weight(kind, heads, dim, 3)
        grid, prefix = ((8, 8), 1) if masked else ((), 0)
        inputs = [query, key, value, residual, weight, scalar]
        compare(inputs, OPTIONS[name], mask=mask, grid=grid, prefix=prefix)

    @pytest.mark.usefixtures("_launches")
    @pytest.mark.parametrize(("dim", "value_dim"), [(16, 16), (48, 24), (16, 64), (96, 128)])
    def test_widths(self, dim, value_dim):
        inputs = tensors((1, 20, 4 if dim == 16 else 1, dim), value_dim=value_dim)
        compare([*inputs, None, None, None], ANGULAR)

    @pytest.mark.usefixtures("_launches")
    @pytest.mark.parametrize("tokens", [1, 49, 197])
    def test_odd_lengths(self, tokens):
        inputs = tensors((1, tokens, 1, 16))
        # One token alone, normalised, is its own value: queries then have no gradient to compare.
        options = ANGULAR if tokens > 1 else ANGULAR | {"normalize": "none"}
        compare([*inputs, None, local_weight("token1d", 1, 16, 9), None], options)

    @pytest.mark.usefixtures("_launches")
    @pytest.mark.parametrize("how", ["packed", "channels_first"])
    def test_strides(self, how):
        inputs = [strided(t, how) for t in tensors((2, 35, 2, 32))]
        compare([*inputs, None, local_weight("grid2d", 2, 32, 3), None], ANGULAR, grid=(5, 7))

    @pytest.mark.usefixtures("_launches")
    def test_other_lengths_of_queries_and_keys(self):
        query, key, value = tensors((2, 70, 1, 16), queries=20)
        compare([query, key, value, None, None, None], RELU)
        compare([query, key, value, torch.randn(2, 20, 1, 16), None, None], ANGULAR)

    def test_long_sequence_in_parts(self):
        inputs = tensors((1, 1025, 1, 16))
        scalar = torch.tensor(0.5)
        compare([*inputs, None, None, scalar], RELEASED)

    def test_many_taps(self):
        inputs = tensors((1, 30, 1, 16))
        compare([*inputs, None, local_weight("grid2d", 1, 16, 7), None], ANGULAR, grid=(5, 6))

    @pytest.mark.parametrize("name", ["angular", "released", "relu"])
    def test_half_precision(self, name):
        inputs = tensors((1, 65, 2, 32), dtype=torch.float16)
        scalar = torch.tensor(0.7) if name == "released" else None
        weight = local_weight("token1d", 2, 32, 3)
        compare([*inputs, None, weight, scalar], OPTIONS[name], forward=3e-4, backward=6e-4)

    def test_gradients_far_below_the_range_of_float16(self):
        # Terms of the state's gradient of 1e-7 would vanish in a float16 product.
        query, key, value = tensors((1, 65, 1, 32), dtype=torch.float16)
        options = EXACT_ANGULAR | {"normalize": "none"}
        arguments = LinearTensors(query, key, value * 64)
        out, state = backend.linear_attention_forward(arguments, LinearOptions(**options), True)
        gradient = torch.randn(out.shape).half() * 1e-3
        found = backend.linear_attention_backward(
            gradient, arguments, (state,), LinearOptions(**options)
        )
        inputs = [*arguments[:5], None]
        expected, leaves = reference(inputs, None, options, (), 0)
        expected.backward(gradient.double())
        assert relative(found[0], leaves[0].grad) < 2e-3

    @pytest.mark.parametrize("shift", [0.0, 2.0])
    @pytest.mark.parametrize("name", ["angular", "released", "exact_angular"])
    def test_products_of_bfloat16_lose_nothing(self, name, shift, monkeypatch):
        """Products as for bfloat16, outputs unrounded: what is left is far below that rounding.

        The interpreter stores bfloat16 wrongly rounded, so the numbers come in float32 here.
        """
        from castling.ops.triton.linear_attention_problem import Problem

        split = {"EXACT": True, "PRECISION": "split"}
        before = Problem.state_constants
        monkeypatch.setattr(Problem, "state_constants", lambda self: before(self) | split)
        no_single_launch(monkeypatch)
        inputs = [t.bfloat16().float() for t in tensors((1, 300, 1, 64), shift=shift)]
        scalar = torch.tensor(0.7) if name == "released" else None
        compare([*inputs, None, None, scalar], OPTIONS[name], forward=1e-4, backward=1e-3)

    @pytest.mark.parametrize("heads", [1, 4])
    @pytest.mark.parametrize("name", ["relu", "released", "exact_angular"])
    def test_gradients_of_row_sums_far_from_zero(self, name, heads):
        inputs = tensors((2, 515, heads, 24), value_dim=16, shift=20.0)
        mask = torch.rand(2, 515) > 0.2
        scalar = torch.tensor(0.7) if name == "released" else None
        options = OPTIONS[name] | {"row_eps": 1e-3}
        limits = {"query": 1e-3, "key": 5e-6, "value": 1e-6, "scalar": 1e-3}
        compare([*inputs, None, None, scalar], options, mask=mask, backward=limits)

    def test_values_without_weight_cost_no_digits(self):
        query, key, value = tensors((1, 256, 2, 16))
        key[:, :200], value[:, :200] = -1, 1e6
        compare([query, key, value, None, None, None], RELU, forward=1e-6, backward=1e-6)

    def test_tokens_that_see_only_small_values_keep_their_digits(self):
        query, key, value = tensors((1, 64, 2, 16))
        for x in (query, key):
            x.abs_()
            x[:, :32, :, :8] = -1
            x[:, 32:, :, 8:] = -1
        value[:, 32:] += 1e6
        arguments, options = LinearTensors(query, key, value), LinearOptions(**RELU)
        out, state = backend.linear_attention_forward(arguments, options, True)
        gradient = torch.randn(out.shape)
        found = backend.linear_attention_backward(gradient, arguments, (state,), options)
        expected, leaves = reference([query, key, value, None, None, None], None, RELU, (), 0)
        expected.backward(gradient.double())
        for result, leaf in zip(found[:3], leaves[:3], strict=True):
            assert relative(result[:, :32], leaf.grad[:, :32]) < 1e-6

    def test_signed_features_whose_sum_is_small(self):
        query, key, value = tensors((1, 64, 2, 16))
        key -= key.mean(dim=1, keepdim=True)
        options = RELU | {"features": "identity", "row_eps": 1.0}
        compare([query, key, value, None, None, None], options, backward=1e-6)

    @pytest.mark.parametrize("features", ["relu", "identity"])
    @pytest.mark.parametrize("row_eps", [0.0, 1e-2])
    def test_rows_that_sum_to_zero_have_the_slopes_of_their_products(self, features, row_eps):
        query, key, value = tensors((2, 35, 2, 16), shift=2.0)
        query[0, 3] = 0
        mask = torch.ones(2, 35, dtype=torch.bool)
        mask[1] = False
        options = RELU | {"features": features, "row_eps": row_eps}
        compare([query, key, value, None, None, None], options, mask=mask)

    def test_zero_rows_are_finite(self):
        query, key, value = tensors((1, 33, 1, 16))
        query[:, 3], key[:, 5], value[:, 7] = 0, 0, 0
        for name, options in OPTIONS.items():
            scalar = torch.tensor(0.7) if name == "released" else None
            compare([query, key, value, None, None, scalar], options)
        nothing = [torch.zeros_like(t) for t in (query, key, value)]
        out, state = backend.linear_attention_forward(
            LinearTensors(*nothing), LinearOptions(**RELU), True
        )
        assert torch.equal(out, torch.zeros_like(out))
        assert torch.isfinite(state).all()

    def test_without_eps_the_rows_past_the_end_are_harmless(self):
        compare([*tensors((1, 33, 1, 16)), None, None, None], ANGULAR | {"eps": 0.0})

    def test_masked_tokens_are_never_looked_at(self):
        query, key, value = tensors((2, 49, 1, 16))
        mask = torch.rand(2, 49) > 0.5
        mask[1] = False
        weight = local_weight("token1d", 1, 16, 3)
        options = LinearOptions(**RELU | {"identity": 0.5})
        clean = LinearTensors(query, key, value, local_weight=weight, key_mask=mask)
        dirty = clean._replace(
            key=torch.where(mask[..., None, None], key, float("nan")),
            value=torch.where(mask[..., None, None], value, float("nan")),
        )
        out, state = backend.linear_attention_forward(dirty, options, True)
        expected, _ = backend.linear_attention_forward(clean, options, False)
        assert torch.equal(out, expected)
        gradients = backend.linear_attention_backward(
            torch.ones_like(out), dirty, (state,), options
        )
        assert all(torch.isfinite(g).all() for g in gradients if g is not None)
        assert not gradients[1][~mask].any()
        assert not gradients[2][~mask].any()

    def test_no_state_unless_asked_for(self):
        arguments, options = LinearTensors(*tensors((1, 17, 1, 16))), LinearOptions(**ANGULAR)
        _, state = backend.linear_attention_forward(arguments, options, False)
        assert state.shape == (0,)
        with pytest.raises(ValueError, match="save_state"):
            backend.linear_attention_backward(
                torch.ones(1, 17, 1, 16), arguments, (state,), options
            )

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"query": torch.ones(1, 17, 1, 16).double()}, "float32, bfloat16 or float16"),
            ({"query": torch.ones(1, 5, 1, 16)}, "identity needs one value per query"),
            ({"value": torch.ones(1, 17, 1, 130)}, "at most 128 channels"),
            ({"residual": torch.ones(1, 17, 1, 8)}, "residual must be"),
            ({"local_weight": torch.ones(1, 1, 4, 1)}, "odd size"),
            ({"local_weight": torch.ones(16, 1, 3, 3), "grid": (4, 4)}, "does not make 17 tokens"),
        ],
    )
    def test_bad_input_is_named(self, change, said):
        change = dict(change)
        call = dict(zip(("query", "key", "value"), tensors((1, 17, 1, 16)), strict=True))
        options = LinearOptions(**ANGULAR, grid=change.pop("grid", ()))
        with pytest.raises(ValueError, match=said):
            backend.linear_attention_forward(LinearTensors(**call | change), options, False)
