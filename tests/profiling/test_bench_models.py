"""``castling bench models``: checks before times, hosts, attention-free bounds, runtimes."""

import dataclasses
import importlib.util
import json

import pytest
import timm
import torch
from torch import nn

import castling
from castling.attention import LinearAngular, MaskedSoftmax
from castling.attention.base import AttentionCore
from castling.ops.backends import select_backend
from castling.profiling import runtimes
from castling.profiling.attention_free import count_tokens, without_attention
from castling.profiling.bench_models import bench_models
from castling.profiling.candidates import Candidate, choose_candidates, model_candidate
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.surgery import linearize_, register_fold


def pico(name="castling_deit_pico", **options):
    return model_candidate(name, kwargs={"depth": 1}, **options)


def test_a_model_beside_its_host_and_its_bound(quick):
    candidates = [
        pico("deit_pico"),
        Candidate("bound", lambda size: without_attention(pico().build(size))),
        pico(hosts=["deit_pico"], bound="bound"),
    ]
    seen = []
    result = bench_models(candidates, [(32, 32)], batches=[1, 2], report=seen.append, **quick)
    assert seen == list(result.measurements)
    host, bound, ours = result.measurements[:3]
    assert [row.milliseconds for row in (host, bound, ours)] == pytest.approx([1, 2, 3])
    assert ours.against_host == pytest.approx(1 / 3)
    assert ours.bound_share == pytest.approx(2 / 3)
    assert (host.relative_rms, host.against_host) == (None, None)
    assert ours.relative_rms < 1e-5
    assert ours.tokens == 65
    assert ours.images_per_second == pytest.approx(1e3 / 3)
    assert result.measurements[5].images_per_second == pytest.approx(2e3 / 6)
    assert bound.macs < ours.macs < host.macs
    assert ours.peak_megabytes > 0
    assert result.crossovers() == {"castling_deit_pico (eager)": None}
    assert "at none of these sizes" in result.table()


def test_failures_do_not_stop_other_candidates(quick):
    candidates = [pico(), model_candidate("cas_vit_pico")]
    failed, other = bench_models(candidates, [(30, 32)], **quick).measurements
    assert failed.milliseconds is None
    assert "30" in failed.error
    assert other.milliseconds > 0
    assert not other.error


def test_a_wrong_output_gets_no_time(quick):
    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1) / 0

    class Dropping(nn.Module):
        def forward(self, x):
            return x[:1]

    candidates = [Candidate("nan", lambda _: Broken()), Candidate("drop", lambda _: Dropping())]
    found = bench_models(candidates, [(4, 4)], batches=[2], **quick).measurements
    assert [m.milliseconds for m in found] == [None, None]
    assert "NaN" in found[0].error
    assert "batch of 2" in found[1].error


@pytest.mark.slow
def test_a_runtime_with_another_output_gets_no_time(quick):
    class Forgetting(nn.Module):
        """Computes something else once it is exported."""

        def forward(self, x):
            return x.flatten(1) * (1.01 if torch.compiler.is_compiling() else 1.0)

    candidates = [Candidate("other", lambda _: Forgetting())]
    (row,) = bench_models(candidates, [(4, 4)], variants=["program"], **quick).measurements
    assert row.milliseconds is None
    assert "wrong by 1.0e-02" in row.error


def test_a_backend_that_differs_from_the_naive_one_gets_no_time(quick):
    class Wrong(AttentionCore):
        def __init__(self):
            super().__init__(LinearAngular(), 1, 4)

        def forward(self, x):
            return x * (1.0 if select_backend(x) == "naive" else 2.0)

    with castling.attention_backend("compiled"):  # also where the C++ operators are not built
        row, *_ = bench_models([Candidate("w", lambda _: Wrong())], [(4, 4)], **quick).measurements
    assert "wrong by 1.0e+00" in row.error


def test_auxiliary_branches_are_not_measured(quick):
    model = pico().build((32, 32))
    assert all(m.auxiliary is None for m in model.modules() if isinstance(m, AttentionCore))

    def training(_):
        config = LinearAngular(auxiliary=MaskedSoftmax())
        return timm.create_model("castling_deit_pico", depth=1, attention=config)

    row, *_ = bench_models([Candidate("t", training)], [(32, 32)], **quick).measurements
    assert "auxiliary" in row.error


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_runtimes_agree_with_pytorch(runtime, quick):
    pytest.importorskip("onnxscript")
    pytest.importorskip(runtime)
    result = bench_models([pico()], [(32, 32)], variants=["eager", runtime], **quick)
    row = result.measurements[1]
    assert row.error == ""
    assert 0 < row.relative_rms < 1e-4
    assert runtime in result.machine


def test_a_missing_runtime_is_reported(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "openvino" else find(name)
    )
    model = nn.Flatten()
    with (
        runtimes.runtimes(model, torch.zeros(1, 3, 4, 4)) as ways,
        pytest.raises(runtimes.UnavailableError, match=r"openvino needs openvino: pip install"),
    ):
        ways.prepare("openvino")


def test_program_computes_what_eager_computes(quick):
    result = bench_models([pico()], [(32, 32)], variants=["eager", "program"], **quick)
    row = result.measurements[1]
    assert row.error == ""
    assert row.relative_rms < 1e-6
    assert row.against_eager is not None


def test_a_file_that_does_not_open_is_named_without_its_folder(quick, monkeypatch):
    """Results are committed and sent to others; where this machine keeps its files is not."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")

    def refuse(self, path, **options):
        raise ValueError(f"{path} cannot be run: out of memory")

    monkeypatch.setattr(type(runtimes.target_named("openvino")), "open", refuse)
    (row,) = bench_models([pico()], [(32, 32)], variants=["openvino"], **quick).measurements
    assert row.error == "model.onnx cannot be run: out of memory"


def test_a_failed_export_is_tried_once(quick):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    tried = []

    class Branching(nn.Module):
        """Decides by the values of an image, which no graph can hold."""

        def forward(self, x):
            if torch.compiler.is_compiling():
                tried.append(1)
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    candidates = [Candidate("branching", lambda _: Branching())]
    rows = bench_models(candidates, [(4, 4)], variants=["onnxruntime"], **quick).measurements
    once = len(tried)
    assert once > 0
    assert "exporter to ONNX failed" in rows[0].error
    tried.clear()
    variants = ["onnxruntime", "openvino"]
    rows = bench_models(candidates, [(4, 4)], variants=variants, **quick).measurements
    assert rows[0].error == rows[1].error
    assert len(tried) == once


@pytest.mark.parametrize(
    ("name", "hosts"),
    [
        ("castling_deit_tiny_patch16_224", ["deit_tiny_patch16_224"]),
        ("castling_vit_base_patch16", ["vit_base_patch16_224"]),
        ("castling_levit_128s", ["levit_128s", "levit_128s + softmax"]),
        ("castling_mvitv2_tiny", ["mvitv2_tiny", "mvitv2_tiny + softmax"]),
        ("castling_levit_pico", ["castling_levit_pico + softmax"]),
        ("qt_vit_1", ["qt_vit_1 + softmax"]),
    ],
)
def test_hosts_and_bounds(name, hosts):
    candidates = choose_candidates([name])
    assert [s.name for s in candidates] == [*hosts, f"{name} without attention", name]
    assert list(candidates[-1].hosts) == hosts
    assert candidates[-1].bound == f"{name} without attention"


def test_attentions_of_one_model_share_its_bound():
    candidates = choose_candidates(["deit_pico"], ["relu_linear", "linear_angular:local=none"])
    assert [s.name for s in candidates] == [
        *("deit_pico", "deit_pico without attention", "deit_pico + relu_linear"),
        "deit_pico + linear_angular:local=none",
    ]
    model = candidates[-1].build((32, 32))
    assert model.blocks[0].attn.config == LinearAngular(local="none")
    assert [s.name for s in choose_candidates(["deit_pico"])] == ["deit_pico"]


@pytest.mark.parametrize("name", ["deit_pico", "castling_levit_pico", "castling_mvitv2_pico"])
def test_a_bound_ignores_queries_and_passes_values(name):
    model = timm.create_model(name).eval()
    size = model.pretrained_cfg["input_size"]
    bound = without_attention(timm.create_model(name)).eval()
    images = torch.randn(1, *size)
    assert bound(images).shape == model(images).shape
    cores = [m for m in bound.modules() if isinstance(m, AttentionCore)]
    assert cores
    tokens = torch.randn(1, 4, cores[0].num_heads, cores[0].value_dim)
    assert cores[0].attend(torch.full_like(tokens, float("nan")), tokens, tokens).equal(tokens)


@pytest.mark.parametrize("name", ["cas_vit_pico", "qt_vit_pico"])
def test_bounds_of_models_without_a_timm_host(name):
    model = timm.create_model(name).eval()
    size = model.pretrained_cfg["input_size"]
    images = torch.randn(2, *size)
    bound = without_attention(timm.create_model(name).eval())
    assert bound(images).isfinite().all()
    assert sum(p.numel() for p in bound.parameters()) <= sum(p.numel() for p in model.parameters())


def test_nothing_to_delete():
    with pytest.raises(ValueError, match="no attention"):
        without_attention(nn.Linear(2, 2))


def test_tokens_of_the_longest_attention():
    model = timm.create_model("castling_levit_pico").eval()
    assert count_tokens(model, torch.randn(1, 3, 64, 64)) == 64
    assert count_tokens(nn.Flatten(), torch.randn(1, 3, 4, 4)) is None


def test_a_folded_model_is_compared_with_the_unfolded_one(quick):
    candidates = choose_candidates(["cas_vit_pico"])
    result = bench_models(candidates, [(32, 32)], variants=["eager", "folded"], **quick)
    # Host, bound and model, each eager first: 1, 2, … ms.
    assert [row.variant for row in result.measurements] == ["eager", "folded"] * 3
    assert [row.against_eager for row in result.measurements] == pytest.approx(
        [None, 1 / 2, None, 3 / 4, None, 5 / 6]
    )
    *_, eager, folded = result.measurements
    assert folded.against_host == pytest.approx(2 / 6)
    assert folded.bound_share == pytest.approx(4 / 6)
    assert folded.parameters < eager.parameters
    assert 0 < folded.relative_rms < 1e-5
    assert folded.peak_megabytes > 0
    assert "×eager" in result.table()
    assert "0.83×" in result.table()


class Normed(nn.Module):
    """A convolution and a norm with statistics of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x):
        return self.norm(self.conv(x)).flatten(1)


def _folded_row(model, quick):
    candidates = [Candidate("normed", lambda _: model)]
    eager, folded = bench_models(
        candidates, [(4, 4)], batches=[2], variants=["eager", "folded"], **quick
    ).measurements
    assert eager.milliseconds is not None
    return folded


def test_folding_leaves_the_eager_model_unchanged(quick):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten())
    folded = _folded_row(model, quick)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert (folded.error, folded.against_eager) == ("", pytest.approx(1 / 2))
    assert folded.parameters == 4 * 3 + 4


def test_a_refused_fold_gets_no_time(quick):
    class Refused(Normed):
        def forward(self, x):
            return super().forward(x)

    @register_fold(Refused)
    def wrong(module):
        module.norm = nn.Identity()
        return ["norm into conv"]

    folded = _folded_row(Refused(), quick)
    assert (folded.milliseconds, folded.against_eager) == (None, None)
    assert "folding changed the outputs" in folded.error


def test_a_fold_that_is_wrong_at_the_measured_batch_gets_no_time(quick):
    class Fooled(Normed):
        def forward(self, x):
            return super().forward(x)

    class SingleImage(nn.Module):
        def forward(self, x):
            return x if len(x) == 1 else 1.01 * x

    @register_fold(Fooled)
    def wrong(module):
        module.norm = nn.Sequential(module.norm, SingleImage())
        return ["norm into conv"]

    folded = _folded_row(Fooled(), quick)
    assert (folded.milliseconds, folded.against_eager) == (None, None)
    assert folded.error.startswith("normed's output in folded is wrong by 1.0e-02")


def _row(model, side, milliseconds, variant="eager", batch=1, tokens=None):
    return ModelMeasurement(
        *(model, variant, side, side, batch, tokens), milliseconds=milliseconds, low=1.0, high=2.0
    )


def test_crossover_is_against_the_fastest_host():
    rows = []
    for side, plain, fused, ours in ((4, 1, 9, 2), (8, 9, 3, 4), (16, 30, 20, 5)):
        rows += [_row("plain", side, plain), _row("fused", side, fused)]
        rows += [_row("ours", side, ours, tokens=side * 2), _row("ours", side, 0.1, batch=8)]
    hosts = {"plain": (), "fused": (), "ours": ("plain", "fused")}
    result = ModelsResult(tuple(rows), {}, hosts)
    assert result.crossovers() == {"ours (eager)": 32}


def test_the_plot_has_a_panel_per_batch():
    rows = [
        dataclasses.replace(
            _row("ours", side, 1.0, batch=batch), against_host=side / 32, bound_share=0.5
        )
        for batch in (1, 2)
        for side in (32, 64)
    ]
    result = ModelsResult(tuple(rows), {}, {"ours": ("host",)})
    figure = result.plot().figure("#000000")
    assert [axes.get_title() for axes in figure.axes] == ["eager, batch 1", "eager, batch 2"]
    for axes in figure.axes:
        one, ours, bound = (line.get_ydata() for line in axes.get_lines())
        assert (list(one), list(ours), list(bound)) == ([1, 1], [1, 2], [2, 4])


def test_a_result_is_read_from_what_it_writes():
    rows = (_row("plain", 4, 1.0), _row("ours", 4, 2.0, tokens=8))
    result = ModelsResult(rows, {"device": "x"}, {"plain": (), "ours": ("plain",)}, command="c")
    written = json.loads(json.dumps(result.to_dict()))
    assert ModelsResult.from_dict(written) == result
    for row in written["measurements"]:
        row["cap_share"] = None
    with pytest.raises(ValueError, match=r"not a ModelsResult: .*cap_share.*; measure again"):
        ModelsResult.from_dict(written)


def test_bad_input(quick):
    with pytest.raises(ValueError, match="at least one"):
        bench_models([], [(4, 4)])
    with pytest.raises(ValueError, match="positive"):
        bench_models([pico()], [(4, 0)])
    with pytest.raises(ValueError, match="no runtime 'java'; there are: eager"):
        bench_models([pico()], [(32, 32)], variants=["java"])


def test_bounds_of_converted_and_plain_hosts_are_the_same():
    plain = without_attention(timm.create_model("deit_pico", depth=1))
    converted = timm.create_model("deit_pico", depth=1)
    linearize_(converted, LinearAngular())
    without_attention(converted)
    converted.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(plain.eval()(images), converted.eval()(images))


DENSE = "picodet_pico/castling_levit_s8_pico"


def test_a_detector_is_timed_whole_and_its_raw_outputs_are_compared(quick):
    called = []

    def build(size):
        model = model_candidate(DENSE).build(size)
        decode = model.decode
        model.decode = lambda *arguments: called.append(arguments[1]) or decode(*arguments)
        return model

    candidates = [Candidate("detector", build), model_candidate("retinanet_pico/levit_s8_pico")]
    first, folded, *others = bench_models(
        candidates, [(64, 96)], batches=[2], variants=["eager", "folded"], **quick
    ).measurements
    assert [row.error for row in (first, folded, *others)] == [""] * 4
    assert set(called) == {(64, 96)}
    assert first.tokens == 96
    assert first.relative_rms < 1e-4
    assert folded.relative_rms < 1e-3
    assert folded.parameters < first.parameters
    model = castling.create_model(DENSE)
    without = castling.macs(model, (3, 64, 96)).total
    assert first.macs < without  # the auxiliary branch is not measured


def test_a_segmenter_is_timed_with_its_labels(quick):
    sizes = []

    def build(size):
        model = model_candidate("efficientvit_head_pico/castling_levit_s8_pico").build(size)
        infer = model.inference
        model.inference = lambda images: sizes.append(infer(images)["mask"].shape) or infer(images)
        return model

    eager, folded = bench_models(
        [Candidate("segmenter", build)],
        [(64, 96)],
        batches=[2],
        variants=["eager", "folded"],
        **quick,
    ).measurements
    assert (eager.error, folded.error) == ("", "")
    assert {tuple(size) for size in sizes} >= {(2, 64, 96)}
    assert folded.relative_rms < 1e-3
    assert folded.parameters < eager.parameters


def test_the_macs_of_a_detector_hold_what_decoding_computes(quick):
    pytest.importorskip("transformers")
    for name, decoder in (("d_fine_pico/esnet_pico", True), ("picodet_pico/esnet_pico", False)):
        (row,) = bench_models([model_candidate(name)], [(64, 64)], **quick).measurements
        model = castling.create_model(name)
        counted = castling.macs(model, (3, 64, 64))
        assert row.macs == counted.total
        assert row.macs == sum(counted.per_layer.values())
        assert any("decoder" in layer for layer in counted.per_layer) == decoder


def test_hosts_and_bound_of_a_detector_keep_its_head():
    found = {each.name: each for each in choose_candidates([DENSE])}
    assert found[DENSE].hosts
    assert all(host.startswith("picodet_pico/") for host in found[DENSE].hosts)
    assert found[DENSE].bound == f"{DENSE} without attention"
    with pytest.raises(ValueError, match="no head 'picodet'"):
        choose_candidates(["picodet/esnet_pico"])


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_runtimes_run_whole_detectors(runtime, quick):
    pytest.importorskip("onnxscript")
    pytest.importorskip(runtime)
    (row,) = bench_models(
        [model_candidate("picodet_pico/esnet_pico")], [(64, 64)], variants=[runtime], **quick
    ).measurements
    assert row.error == ""
    assert row.relative_rms < 1e-3
