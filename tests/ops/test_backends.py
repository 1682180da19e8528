"""Every backend of every kernel computes the same; PyTorch's compilers see one operator."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import castling
from castling.attention import Attention, LinearAngular, MaskedSoftmax, QuadraticTaylor
from castling.ops.angular import linear_angular
from castling.ops.backends import (
    BackendError,
    available_backends,
    describe_backends,
    select_backend,
)
from castling.ops.cosine import cosine_attention
from castling.ops.exact_taylor import exact_taylor
from castling.ops.first_order_taylor import first_order_taylor
from castling.ops.local import LocalResidual
from castling.ops.macs import _formulas
from castling.ops.mean import mean_attention
from castling.ops.quadratic_taylor import released_taylor
from castling.ops.relu_linear import relu_linear
from castling.ops.sigmoid_softmax import sigmoid_softmax

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
FAST_BACKENDS = [backend for backend in available_backends("cpu") if backend != "naive"]
if INTERPRETING:
    FAST_BACKENDS = ["triton"]
GRID = (5, 7)


def angular(**options):
    return lambda q, k, v, weight, mask: linear_angular(q, k, v, key_mask=mask, **options)


def angular_local(grid):
    def operator(q, k, v, weight, mask):
        local = LocalResidual(weight, grid, 2 if grid else 0)
        return linear_angular(q, k, v, key_mask=mask, local=local)

    return operator


def with_branch(q, k, v, weight, mask):
    return linear_angular(q, k, v, key_mask=mask, auxiliary_output=v.flip(1) * 0.3)


def plain(function, **options):
    return lambda q, k, v, weight, mask: function(q, k, v, key_mask=mask, **options)


def released(q, k, v, weight, mask):
    return released_taylor(q, k, v, weight.flatten()[0] + 0.7, key_mask=mask)


#: name -> operator, and the shape of its weight for H heads of d_v channels.
OPERATORS = {
    "angular": (angular(), None),
    "angular_mean_rowsum": (angular(constant="mean", normalize="rowsum"), None),
    "angular_none_tokens": (
        angular(constant="none", normalize="none", kv_scale="tokens"),
        None,
    ),
    "angular_branch": (with_branch, None),
    "angular_token1d": (angular_local(None), lambda heads, dim: (heads, 1, 9, 1)),
    "angular_grid2d": (angular_local(GRID), lambda heads, dim: (heads * dim, 1, 3, 3)),
    "relu_linear": (plain(relu_linear), None),
    "cosine": (plain(cosine_attention), None),
    "mean": (plain(mean_attention), None),
    "first_order_taylor": (plain(first_order_taylor), None),
    "sigmoid_softmax": (plain(sigmoid_softmax), None),
    "taylor_released": (released, lambda heads, dim: (1,)),
    "taylor_direct": (plain(exact_taylor, order="direct"), None),
    "taylor_features": (plain(exact_taylor, order="features"), None),
    "taylor_raw": (plain(exact_taylor, qk_norm=False), None),
}


def inputs(name, *, dim=16, value_dim=16, heads=3, batch=2, dtype=torch.float32, seed=0):
    """Query, key, value as slices of one packed projection, and the operator's weight."""
    generator = torch.Generator().manual_seed(seed)
    tokens = GRID[0] * GRID[1] + 2
    width = heads * (2 * dim + value_dim)
    packed = torch.randn(batch, tokens, width, generator=generator, dtype=torch.float64)
    packed[:, 3, : 2 * heads * dim] = 0  # a padded token
    shape = OPERATORS[name][1]
    weight = None
    if shape is not None:
        weight = torch.randn(shape(heads, value_dim), generator=generator, dtype=torch.float64) / 3
        weight = weight.to(dtype).requires_grad_()
    packed = packed.to(dtype).requires_grad_()
    q, k, v = packed.split([heads * dim, heads * dim, heads * value_dim], dim=-1)
    return packed, *(x.unflatten(-1, (heads, -1)) for x in (q, k, v)), weight


def run(name, backend, dtype, **options):
    """Output and gradients of packed projection and weight, in float64."""
    packed, q, k, v, weight = inputs(name, dtype=dtype, **options)
    mask = torch.ones(q.shape[:2], dtype=torch.bool)
    mask[0, -9:] = False
    with castling.attention_backend(backend):
        out = OPERATORS[name][0](q, k, v, weight, mask)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    leaves = [packed] if weight is None else [packed, weight]
    return [x.detach().double() for x in (out, *torch.autograd.grad(out, leaves, grad))]


def relative(result, reference):
    return float((result - reference).norm() / reference.norm())


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("backend", [backend for backend in FAST_BACKENDS if backend != "compiled"])
@pytest.mark.parametrize("dims", [(16, 16), (24, 40)], ids=["16", "24x40"])
def test_every_backend_computes_the_same(name, backend, dims, nan_memory):
    dim, value_dim = dims
    expected = run(name, "naive", torch.float64, dim=dim, value_dim=value_dim)
    found = run(name, backend, torch.float32, dim=dim, value_dim=value_dim)
    limits = [1e-5] + [1e-4] * (len(found) - 1)
    for result, reference, limit in zip(found, expected, limits, strict=True):
        assert relative(result, reference) < limit


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("backend", [backend for backend in FAST_BACKENDS if backend == "native"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_no_worse_than_twice_naive(name, backend, dtype, nan_memory):
    # The reference sees the rounded input: what is measured is the arithmetic.
    expected = run(name, "naive", torch.float64)
    naive = run(name, "naive", dtype)
    found = run(name, backend, dtype)
    for result, plain_result, reference in zip(found, naive, expected, strict=True):
        assert relative(result, reference) < 2 * relative(plain_result, reference) + 1e-6


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="the compiled backend does not support the interpreter")
@pytest.mark.parametrize("name", ["angular_grid2d", "taylor_direct"])
def test_the_compiled_backend_computes_the_same(name):
    try:
        found = run(name, "compiled", torch.float32)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        pytest.skip(f"no compiler for torch.compile: {error}")
    for result, reference in zip(found, run(name, "naive", torch.float64), strict=True):
        assert relative(result, reference) < 1e-4


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="runs this file once more")
def test_triton_interpreted_computes_the_same():
    """In a process of its own: Triton reads its environment when it is imported."""
    pytest.importorskip("triton")
    names = "angular_grid2d or angular_token1d or taylor_released or taylor_direct"
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            __file__,
            "-k",
            f"test_every_backend and 16 and not 24x40 and ({names})",
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert "4 passed" in result.stdout


# --- how PyTorch sees the operators -------------------------------------------------------------


def linear_arguments(tensors, weight=None, grid=(), prefix=0, save_state=True):
    q, k, v = tensors
    options = ("unit", "l2", 0.5, 0.3, 0.0, 1.0, 1e-6, 0.0, list(grid), prefix, "native")
    return (q, k, v, None, weight, None, None, *options, save_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_pass_pytorchs_own_check(dtype):
    _, q, k, v, weight = inputs("angular_grid2d", dtype=dtype)
    tensors = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    weight = weight.detach().requires_grad_()
    torch.library.opcheck(
        torch.ops.castling.linear_attention.default,
        linear_arguments(tensors, weight, GRID, 2),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    for order in ("direct", "features"):
        torch.library.opcheck(
            torch.ops.castling.taylor_attention.default,
            (*tensors, None, True, 1e-9, order, "native", True),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


MODELS = {
    "castling": LinearAngular(),
    "official": LinearAngular(preset="official"),
    "auxiliary": LinearAngular(auxiliary=MaskedSoftmax()),
    "released": QuadraticTaylor(),
    "exact": QuadraticTaylor(form="exact"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_a_graph_break(name, training):
    torch.compiler.reset()
    model = Attention(32, 2, MODELS[name]).train(training)
    x = torch.randn(2, 35, 32, requires_grad=training)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        out = compiled(x, grid=GRID)
        torch.testing.assert_close(out, model(x, grid=GRID), atol=1e-5, rtol=1e-4)
    if training:
        out.square().sum().backward()
        found = [x.grad.clone()] + [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        x.grad = None
        model(x, grid=GRID).square().sum().backward()
        expected = [x.grad] + [p.grad for p in model.parameters()]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


class OnGrid(torch.nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = Attention(32, 2, attention)

    def forward(self, x):
        return self.attention(x, grid=GRID)


@pytest.mark.parametrize("name", ["castling", "exact"])
def test_an_exported_program_holds_one_operator(name):
    if "native" not in available_backends("cpu"):
        pytest.skip("the C++ operators are not built")
    model = OnGrid(MODELS[name]).eval()
    x = torch.randn(2, 35, 32)
    program = torch.export.export(model, (x,))
    ours = [str(n.target) for n in program.graph.nodes if "castling" in str(n.target)]
    kind = "taylor" if name == "exact" else "linear"
    assert ours == [f"castling.{kind}_attention.default"]
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("already_exported", [False, True])
@pytest.mark.parametrize("name", ["castling", "released", "exact"])
def test_onnx_gets_basic_operators_by_itself(name, already_exported, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = OnGrid(MODELS[name]).eval()
    x = torch.randn(2, 35, 32)
    source = torch.export.export(model, (x,)) if already_exported else model
    path = tmp_path / "model.onnx"
    torch.onnx.export(source, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), model(x), atol=1e-5, rtol=1e-4)
    # As a product of matrices it is several times as fast there; slopes at zero rows need nothing.
    kinds = {node.op_type for node in pytest.importorskip("onnx").load(path).graph.node}
    assert "MatMul" in kinds
    assert "Einsum" not in kinds
    assert name != "castling" or "Where" not in kinds


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_counted_like_their_formulas(name):
    def count(backend):
        _, q, k, v, weight = inputs(name)
        counter = FlopCounterMode(display=False, custom_mapping=dict(_formulas))
        with torch.no_grad(), castling.attention_backend(backend), counter:
            OPERATORS[name][0](q, k, v, weight, None)
        return counter.get_total_flops()

    if "native" not in available_backends("cpu"):
        pytest.skip("the C++ operators are not built")
    assert count("native") == count("naive") > 0


# --- choosing -----------------------------------------------------------------------------------


def test_backends_are_forced_and_given_back():
    q = torch.randn(1, 4, 1, 8)
    with pytest.raises(ValueError, match="naive, compiled, native, triton"):
        castling.attention_backend("fast").__enter__()
    with castling.attention_backend("triton"), pytest.raises(BackendError, match="triton"):
        linear_angular(q, q, q)
    with castling.attention_backend("native"), pytest.raises(BackendError, match="float64"):
        linear_angular(q.double(), q.double(), q.double())
    linear_angular(q.double(), q.double(), q.double())
    assert set(describe_backends()) == {"naive", "compiled", "native", "triton"}


def chosen():
    """The backend that would be chosen here: float64 takes naive unless another is forced."""
    try:
        return select_backend(torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    except BackendError as error:
        return str(error).split("'")[1]


def test_overlapping_contexts_of_threads_do_not_mix():
    """A opens, B opens, A closes, B closes: each sees its own, and nothing stays behind."""
    entered, left = threading.Event(), threading.Event()
    found = {}

    def first():
        with castling.attention_backend("compiled"):
            entered.set()
            left.wait(10)
            found["first"] = chosen()
        found["after first"] = chosen()

    with castling.attention_backend("native"):
        thread = threading.Thread(target=first)
        thread.start()
        entered.wait(10)
        found["second"] = chosen()
        left.set()
        thread.join()
        found["second again"] = chosen()
    assert chosen() == "naive"
    assert found == {
        "first": "compiled",
        "after first": "naive",
        "second": "native",
        "second again": "native",
    }


def test_overlapping_contexts_of_tasks_do_not_mix():
    async def task(backend, turns):
        seen = []
        with castling.attention_backend(backend):
            for _ in range(turns):
                await asyncio.sleep(0)
                seen.append(chosen())
        return {*seen}, chosen()

    async def both():
        return await asyncio.gather(task("compiled", 2), task("native", 4))

    assert asyncio.run(both()) == [({"compiled"}, "naive"), ({"native"}, "naive")]


def test_nested_contexts_and_exceptions_give_back():
    with castling.attention_backend("compiled"):
        with pytest.raises(KeyError), castling.attention_backend("native"):
            raise KeyError(chosen())
        assert chosen() == "compiled"
        with castling.attention_backend(None):
            assert chosen() == "naive"
        assert chosen() == "compiled"
    assert chosen() == "naive"


def test_the_environment_forces_a_backend_in_every_thread():
    program = (
        "import threading, torch; from castling.ops.backends import select_backend as s\n"
        "q = torch.zeros(1, 1, 1, 1); seen = [s(q)]\n"
        "t = threading.Thread(target=lambda: seen.append(s(q))); t.start(); t.join()\n"
        "print(*seen)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CASTLING_BACKEND": "compiled"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["compiled", "compiled"]


def test_a_compiled_function_follows_the_context_around_it():
    if "native" not in available_backends("cpu"):
        pytest.skip("the C++ operators are not built")
    torch.compiler.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append("castling" in str(graph.graph))
        return graph.forward

    attend = torch.compile(lambda x: linear_angular(x, x, x), fullgraph=True, backend=keep)
    q = torch.randn(2, 9, 2, 8)
    attend(q)
    with castling.attention_backend("naive"):
        attend(q)
        thread = threading.Thread(target=attend, args=(q,))  # the first graph again
        thread.start()
        thread.join()
    attend(q)
    assert graphs == [True, False]


def test_a_forced_backend_compiles_without_a_graph_break():
    torch.compiler.reset()
    q = torch.randn(2, 9, 2, 8)

    def attend(x):
        with castling.attention_backend(FAST_BACKENDS[0] if FAST_BACKENDS else "naive"):
            return linear_angular(x, x, x)

    found = torch.compile(attend, fullgraph=True, backend="aot_eager")(q)
    torch.testing.assert_close(found, linear_angular(q, q, q))
    assert chosen() == "naive"  # nothing stays forced


def test_a_forced_backend_that_transforms_cannot_follow_says_so():
    q = torch.randn(3, 2, 4, 1, 8)
    if "native" not in available_backends("cpu"):
        pytest.skip("the C++ operators are not built")
    with castling.attention_backend("native"), pytest.raises(BackendError, match="transforms"):
        torch.func.vmap(lambda x: linear_angular(x, x, x))(q)


def test_a_negative_grid_is_refused():
    q = torch.randn(1, 9, 1, 8)
    for grid, prefix in (((5, 2), -1), ((-3, -3), 0)):
        local = LocalResidual(torch.randn(8, 1, 3, 3), grid, prefix)
        with pytest.raises(ValueError, match="negative"):
            linear_angular(q, q, q, local=local)


def test_pytorchs_own_counter_knows_the_operators():
    q = torch.randn(1, 6, 2, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        linear_angular(q, q, q)
    assert counter.get_total_flops() == 2 * 2 * 6 * 2 * 8 * 8


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CASTLING_BACKEND": "naive"}, "naive"),
        ({"CASTLING_PATH": "compiled"}, "compiled"),  # the earlier name
        ({"CASTLING_BACKEND": "naive", "CASTLING_PATH": "compiled"}, "naive"),
    ],
)
def test_the_environment_forces_a_backend(variables, expected):
    program = "import castling.ops.backends as b, torch; print(b.select_backend(torch.zeros(1)))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == expected


def test_gradients_of_gradients_say_where_to_go():
    if "native" not in available_backends("cpu"):
        pytest.skip("the C++ operators are not built")
    q = torch.randn(1, 4, 1, 8, requires_grad=True)
    (first,) = torch.autograd.grad(linear_angular(q, q, q).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="attention_backend"):
        first.square().sum().backward()
    with castling.attention_backend("naive"):
        (first,) = torch.autograd.grad(linear_angular(q, q, q).sum(), q, create_graph=True)
        first.square().sum().backward()


def test_function_transforms_take_the_naive_backend():
    q = torch.randn(3, 2, 4, 1, 8)
    out = torch.func.vmap(lambda x: linear_angular(x, x, x))(q)
    torch.testing.assert_close(out[1], linear_angular(q[1], q[1], q[1]))


def test_nothing_to_attend_to():
    q = torch.randn(0, 4, 1, 8)
    assert linear_angular(q, q, q).shape == (0, 4, 1, 8)


def test_names_of_earlier_versions_still_work():
    assert castling.attention_path is castling.attention_backend
    assert castling.available_paths is castling.available_backends
    assert castling.describe_paths is castling.describe_backends
    assert castling.PathError is castling.BackendError
