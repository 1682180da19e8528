"""``castling bench ops``: checks before times, the backend that ran, ratios, authors' code."""

import csv
import json
from contextlib import contextmanager

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from castling.attention import LinearAngular, QuadraticTaylor, ReLULinear, Softmax
from castling.attention.linear_angular import LinearAngularKernel
from castling.attention.relu_linear import ReLULinearKernel
from castling.profiling.bench_ops import bench_ops, settings_of
from castling.profiling.candidates import read_attention
from castling.profiling.checks import exact_result, relative_rms
from castling.profiling.machine import Roofline
from castling.profiling.op_candidates import (
    Setting,
    backend_taken,
    core_for,
    operations,
)
from castling.profiling.op_results import OpMeasurement, OpsResult
from castling.profiling.references import MAX_BYTES, reference_for

CPU = torch.device("cpu")
KERNELS = (
    *("linear_angular:local=none", "linear_angular:local=token1d", "linear_angular:local=grid2d"),
    *("relu_linear", "quadratic_taylor", "quadratic_taylor:form=exact"),
)


@contextmanager
def wrong_in_float32(kernel, distort):
    """Distort what every ``kernel`` computes in float32; the float64 reference stays right."""

    def hook(module, _, out):
        return distort(out) if isinstance(module, kernel) and out.dtype == torch.float32 else None

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.01 * grad


@pytest.fixture
def quick(quick):
    """On a machine of 1 GFLOP/s and 1 GB/s."""
    return quick | {"roofline": Roofline(1.0, 1.0)}


@pytest.mark.parametrize("tokens", [16, 17])
@pytest.mark.parametrize("kernel", KERNELS)
def test_authors_code_computes_the_same_function(kernel, tokens):
    setting = Setting(2, tokens, 2, 8)
    core = core_for(read_attention(kernel), setting, CPU)
    packed = setting.packed(CPU)
    grid, prefix = setting.grid, setting.prefix
    assert (grid, prefix) == (((4, 4), 0) if tokens == 16 else ((4, 4), 1))
    reference = reference_for(core, packed, grid, prefix)
    expected, _ = exact_result(core, packed, grid, prefix, None)
    assert relative_rms(reference(packed), expected) < 1e-5
    assert relative_rms(1.001 * reference(packed), expected) > 9e-4


def test_attentions_without_authors_code_and_its_memory_limit():
    setting = Setting(1, 64, 2, 8)
    packed = setting.packed(CPU)
    for config in (Softmax(), LinearAngular(constant="mean"), ReLULinear(local="token1d")):
        core = core_for(config, setting, CPU)
        assert reference_for(core, packed, (8, 8), 0) is None
    long = torch.empty(1, MAX_BYTES >> 10, 3, 2, 8, device="meta")
    core = core_for(QuadraticTaylor(form="exact"), setting, CPU)
    with pytest.raises(ValueError, match="GB of features"):
        reference_for(core, long, (8, 8), 0)


def test_rows_ratios_and_roofline(quick):
    seen = []
    result = bench_ops(
        {"relu_linear": ReLULinear()},
        settings_of([16], heads=[2], dims=[8]),
        backends=["naive"],
        report=seen.append,
        **quick,
    )
    assert seen == list(result.measurements)
    softmax, block, naive = result.measurements
    assert [row.backend for row in result.measurements] == ["sdpa", "reference", "naive"]
    assert [row.milliseconds for row in (softmax, block, naive)] == pytest.approx([1, 2, 3])
    assert naive.against_sdpa == pytest.approx(1 / 3)
    assert naive.against_reference == pytest.approx(2 / 3)
    # 4·16·8·8 operations in 2 heads and 4·16·8·2 numbers of 4 bytes, both at 10⁹ a second
    assert naive.roofline_share == pytest.approx(4 * 16 * 8 * 8 * 2 / 1e9 / 3e-3)
    assert softmax.roofline_share is None
    assert naive.relative_rms < 1e-6
    assert naive.peak_megabytes > 0
    assert result.crossovers() == {"relu_linear (reference)": None, "relu_linear (naive)": None}
    assert "relu_linear" in result.table()
    assert "at none of these sizes" in result.table()


def test_gradients_are_checked_and_timed(quick):
    settings = settings_of([9], heads=[2], dims=[4], dtypes=[torch.float32, torch.bfloat16])
    kernels = {"linear_angular": LinearAngular()}
    result = bench_ops(kernels, settings, backends=["naive"], backward=True, **quick)
    assert not any(row.error for row in result.measurements)
    assert all(row.backward for row in result.measurements)
    assert result.measurements[2].relative_rms < 1e-5
    assert 1e-4 < result.measurements[5].relative_rms < 1e-2


def test_a_wrong_gradient_gets_no_time(quick):
    settings = settings_of([9], heads=[2], dims=[4])
    with wrong_in_float32(LinearAngularKernel, WrongGradient.apply):
        *_, block, naive = bench_ops(
            {"linear_angular": LinearAngular(local="none")},
            settings,
            backends=["naive"],
            backward=True,
            **quick,
        ).measurements
    assert block.milliseconds is not None
    assert naive.milliseconds is None
    assert naive.error.startswith("a gradient is wrong by 1.0e-02")


def test_a_wrong_output_gets_no_time(quick):
    settings = settings_of([16], heads=[1], dims=[8])
    with wrong_in_float32(ReLULinearKernel, lambda out: 2 * out):
        *_, block, naive = bench_ops(
            {"r": ReLULinear()}, settings, backends=["naive"], **quick
        ).measurements
    assert block.milliseconds is not None
    assert naive.milliseconds is None
    assert naive.error == "the output is wrong by 1.0e+00 (relative RMS), allowed is 1.0e-05"


def test_long_quadratic_forms_are_compared_at_some_queries(quick):
    result = bench_ops(
        {"t": QuadraticTaylor(form="exact")},
        settings_of([1030], heads=[1], dims=[4]),
        backends=["naive"],
        backward=True,
        **quick,
    )
    assert not any(row.error for row in result.measurements)
    setting = Setting(1, 1030, 1, 4)
    core = core_for(QuadraticTaylor(form="exact"), setting, CPU)
    rows = torch.tensor([0, 5, 1029])
    some, _ = exact_result(core, setting.packed(CPU), (1, 1030), 0, rows)
    everything, _ = exact_result(core, setting.packed(CPU), (1, 1030), 0, None)
    torch.testing.assert_close(some, everything[:, rows])


def test_a_backend_that_did_not_run_is_not_timed(quick):
    settings = settings_of([16], heads=[1], dims=[8])
    kernels = {"quadratic_angular": read_attention("quadratic_angular")}
    *_, row = bench_ops(kernels, settings, backends=["compiled"], **quick).measurements
    assert "no compiled backend, it ran on the naive one" in row.error


def test_which_backend_a_call_used():
    # An operator of ours with the backend among its arguments.
    library = torch.library.Library("castling", "FRAGMENT")
    library.define("probe(Tensor x, str path) -> Tensor")
    library.impl("probe", lambda x, path: x + 1, "CPU")
    x = torch.zeros(1)
    assert backend_taken(lambda: torch.ops.castling.probe(x, "native"), "native") == (1, "native")
    assert backend_taken(lambda: x + 1, "native") == (1, "naive")
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    assert backend_taken(lambda: compiled(x), "compiled") == (1, "compiled")
    assert backend_taken(lambda: x + 1, "compiled") == (1, "naive")


def test_operations():
    setting = Setting(2, 100, 3, 16)
    assert operations(LinearAngular(), setting) == 4 * 100 * 16 * 16 * 6
    assert operations(Softmax(), setting) is None
    # with fewer tokens than the 153 symmetric features the quadratic order is cheaper
    assert operations(QuadraticTaylor(form="exact"), setting) == 4 * 100 * 100 * 16 * 6


def test_settings_and_their_grids():
    assert [s.tokens for s in settings_of([1, 2], dims=[4, 8])] == [1, 2, 1, 2]
    assert Setting(1, 196, 1, 1).grid == (14, 14)
    assert (Setting(1, 197, 1, 1).grid, Setting(1, 197, 1, 1).prefix) == ((14, 14), 1)
    assert (Setting(1, 3, 1, 1).grid, Setting(1, 3, 1, 1).prefix) == ((1, 3), 0)


def test_authors_code_that_needs_too_much_memory_is_refused(quick):
    setting = Setting(1, 8000, 1, 64)
    kernels = {"t": QuadraticTaylor(form="exact")}
    softmax, block = bench_ops(kernels, [setting], backends=[], **quick).measurements
    assert softmax.milliseconds is not None
    assert (block.backend, block.milliseconds) == ("reference", None)
    assert block.error == "the authors' code would need 1 GB of features"


def _row(path, tokens, milliseconds, against=None, dim=8):
    return OpMeasurement(
        *("k" if path != "sdpa" else "softmax", path, tokens, 1, 1, dim, "float32", False),
        milliseconds=milliseconds,
        low=milliseconds,
        high=milliseconds,
        against_sdpa=against,
    )


def test_the_crossover_is_where_it_stays_faster(tmp_path):
    rows = []
    for tokens, softmax, ours in ((4, 1, 0.5), (8, 2, 3), (16, 8, 4), (32, 32, 5)):
        rows += [_row("sdpa", tokens, softmax), _row("native", tokens, ours, softmax / ours)]
    rows += [_row("sdpa", 4, 1, dim=16), _row("native", 4, 9, 1 / 9, dim=16)]
    result = OpsResult(tuple(rows), {"device": "x"})
    assert result.crossovers() == {"k (native)": 16}
    assert "k (native): faster than SDPA from 16 tokens on" in result.table()
    result.write_json(tmp_path / "a" / "r.json")
    result.write_csv(tmp_path / "r.csv")
    result.write_plot(tmp_path / "r.png")
    assert json.loads((tmp_path / "a" / "r.json").read_text())["crossovers"] == {"k (native)": 16}
    with (tmp_path / "r.csv").open() as stream:
        reader = csv.DictReader(stream)
        assert len(list(reader)) == len(rows)
    # Setting first, measured values after it.
    assert reader.fieldnames[:3] == ["kernel", "backend", "tokens"]
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("relu_linear", ReLULinear()),
        ("linear_angular:local=none,eps=0.5", LinearAngular(local="none", eps=0.5)),
        ("quadratic_taylor:form=exact,qk_norm=false", QuadraticTaylor(form="exact", qk_norm=False)),
    ],
)
def test_attentions_as_text(text, config):
    assert read_attention(text) == config


@pytest.mark.parametrize("text", ["magic", "relu_linear:eps", "relu_linear:name=x", "cosine:a=1"])
def test_attentions_as_wrong_text(text):
    with pytest.raises(ValueError, match=text.split(":")[0]):
        read_attention(text)


def test_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        bench_ops({}, settings_of([4]))
    with pytest.raises(ValueError, match="positive"):
        bench_ops({"relu_linear": ReLULinear()}, settings_of([0]))
