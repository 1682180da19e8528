"""Whole models: hosts, caps, runtimes, gates."""

import importlib.util

import pytest
import timm
import torch
from torch import nn

from castling.attention import LinearAngular, MaskedSoftmax
from castling.attention.base import AttentionCore
from castling.ops.backends import available_backends, select_backend
from castling.profiling import runtimes
from castling.profiling.bench_models import bench_models
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.profiling.subjects import (
    Subject,
    choose_subjects,
    count_tokens,
    model_subject,
    without_attention,
)
from castling.surgery import linearize_


class Clock:
    """Every call that it has not seen yet takes a millisecond more than the last; runs nothing."""

    def __init__(self):
        self.calls = []

    def __call__(self, call, repeats):
        if call not in self.calls:
            self.calls.append(call)
        return (self.calls.index(call) + 1) * 1e-3 * repeats


def quick():
    return {"timer": Clock(), "rounds": 3, "seconds": 0.0}


def pico(name="castling_deit_pico", **options):
    return model_subject(name, kwargs={"depth": 1}, **options)


def test_a_model_beside_its_host_and_its_cap():
    subjects = [
        pico("deit_pico"),
        Subject("cap", lambda size: without_attention(pico().build(size))),
        pico(hosts=["deit_pico"], cap="cap"),
    ]
    seen = []
    result = bench_models(subjects, [(32, 32)], batches=[1, 2], report=seen.append, **quick())
    assert seen == list(result.measurements)
    host, cap, ours = result.measurements[:3]
    assert [row.milliseconds for row in (host, cap, ours)] == pytest.approx([1, 2, 3])
    assert ours.against_host == pytest.approx(1 / 3)
    assert ours.cap_share == pytest.approx(2 / 3)
    assert (host.relative_rms, host.against_host) == (None, None)
    assert ours.relative_rms < 1e-5
    assert ours.tokens == 65
    assert ours.images_per_second == pytest.approx(1e3 / 3)
    assert result.measurements[5].images_per_second == pytest.approx(2e3 / 6)
    assert cap.macs < ours.macs < host.macs
    assert ours.peak_megabytes > 0
    assert result.crossovers() == {"castling_deit_pico (eager)": None}
    assert "at none of these sizes" in result.table()


def test_failures_stand_beside_results():
    subjects = [pico(), model_subject("cas_vit_pico")]
    failed, other = bench_models(subjects, [(30, 32)], **quick()).measurements
    assert failed.milliseconds is None
    assert "30" in failed.error
    assert other.milliseconds > 0
    assert not other.error


def test_a_wrong_result_gets_no_time(monkeypatch):
    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1) / 0

    class Dropping(nn.Module):
        def forward(self, x):
            return x[:1]

    subjects = [Subject("nan", lambda _: Broken()), Subject("drop", lambda _: Dropping())]
    found = bench_models(subjects, [(4, 4)], batches=[2], **quick()).measurements
    assert [m.milliseconds for m in found] == [None, None]
    assert "NaN" in found[0].error
    assert "batch of 2" in found[1].error

    class Forgetting(nn.Module):
        """Gives another answer outside of PyTorch."""

        def forward(self, x):
            return x.flatten(1)

    monkeypatch.setattr(
        runtimes.Runtimes, "prepare", lambda self, variant: lambda: 1.01 * self.images.flatten(1)
    )
    subjects = [Subject("other", lambda _: Forgetting())]
    (row,) = bench_models(subjects, [(4, 4)], variants=["compiled"], **quick()).measurements
    assert row.milliseconds is None
    assert "wrong by 1.0e-02" in row.error


@pytest.mark.skipif("native" not in available_backends("cpu"), reason="no fused backend here")
def test_a_fused_backend_that_differs_from_the_naive_one_gets_no_time():
    class Wrong(AttentionCore):
        def __init__(self):
            super().__init__(LinearAngular(), 1, 4)

        def forward(self, x):
            return x * (1.0 if select_backend(x) == "naive" else 2.0)

    row, *_ = bench_models([Subject("w", lambda _: Wrong())], [(4, 4)], **quick()).measurements
    assert "wrong by 1.0e+00" in row.error


def test_auxiliary_branches_are_not_measured():
    model = pico().build((32, 32))
    assert all(m.auxiliary is None for m in model.modules() if isinstance(m, AttentionCore))

    def training(_):
        config = LinearAngular(auxiliary=MaskedSoftmax())
        return timm.create_model("castling_deit_pico", depth=1, attention=config)

    row, *_ = bench_models([Subject("t", training)], [(32, 32)], **quick()).measurements
    assert "auxiliary" in row.error


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_runtimes_agree_with_pytorch(runtime):
    pytest.importorskip("onnxscript")
    pytest.importorskip(runtime)
    result = bench_models([pico()], [(32, 32)], variants=["eager", runtime], **quick())
    row = result.measurements[1]
    assert row.error == ""
    assert 0 < row.relative_rms < 1e-4
    assert runtime in result.machine


def test_a_missing_runtime_is_said(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "openvino" else find(name)
    )
    model = nn.Flatten()
    with (
        runtimes.runtimes(model, torch.zeros(1, 3, 4, 4)) as ways,
        pytest.raises(runtimes.UnavailableError, match=r"openvino not installed: pip install"),
    ):
        ways.prepare("openvino")


def test_a_failed_export_is_tried_once(monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    tried = []

    def export(*args, **options):
        tried.append(1)
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", export)
    subjects = [Subject("flat", lambda _: nn.Flatten())]
    variants = ["onnxruntime", "onnxruntime"]
    rows = bench_models(subjects, [(4, 4)], variants=variants, **quick()).measurements
    assert "no such operator" in rows[0].error
    assert len(tried) == 1


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
def test_hosts_and_caps(name, hosts):
    subjects = choose_subjects([name])
    assert [s.name for s in subjects] == [*hosts, f"{name} without attention", name]
    assert list(subjects[-1].hosts) == hosts
    assert subjects[-1].cap == f"{name} without attention"


def test_attentions_put_into_a_host_share_its_cap():
    subjects = choose_subjects(["deit_pico"], ["relu_linear", "linear_angular:local=none"])
    assert [s.name for s in subjects] == [
        *("deit_pico", "deit_pico without attention", "deit_pico + relu_linear"),
        "deit_pico + linear_angular:local=none",
    ]
    model = subjects[-1].build((32, 32))
    assert model.blocks[0].attn.config == LinearAngular(local="none")
    assert [s.name for s in choose_subjects(["deit_pico"])] == ["deit_pico"]


@pytest.mark.parametrize("name", ["deit_pico", "castling_levit_pico", "castling_mvitv2_pico"])
def test_a_cap_computes_nothing_of_n_by_n_and_forgets_queries(name):
    model = timm.create_model(name).eval()
    size = model.pretrained_cfg["input_size"]
    capped = without_attention(timm.create_model(name)).eval()
    images = torch.randn(1, *size)
    assert capped(images).shape == model(images).shape
    cores = [m for m in capped.modules() if isinstance(m, AttentionCore)]
    assert cores
    tokens = torch.randn(1, 4, cores[0].num_heads, cores[0].value_dim)
    assert cores[0].attend(torch.full_like(tokens, float("nan")), tokens, tokens).equal(tokens)


@pytest.mark.parametrize("name", ["cas_vit_pico", "qt_vit_pico"])
def test_caps_of_models_without_softmax_hosts(name):
    model = timm.create_model(name).eval()
    size = model.pretrained_cfg["input_size"]
    images = torch.randn(2, *size)
    capped = without_attention(timm.create_model(name).eval())
    assert capped(images).isfinite().all()
    assert sum(p.numel() for p in capped.parameters()) <= sum(p.numel() for p in model.parameters())


def test_nothing_to_delete():
    with pytest.raises(ValueError, match="no attention"):
        without_attention(nn.Linear(2, 2))


def test_tokens_are_those_of_the_longest_attention():
    model = timm.create_model("castling_levit_pico").eval()
    assert count_tokens(model, torch.randn(1, 3, 64, 64)) == 64
    assert count_tokens(nn.Flatten(), torch.randn(1, 3, 4, 4)) is None


def test_a_folded_model_is_compared_with_itself_unfolded():
    subjects = choose_subjects(["cas_vit_pico"])
    result = bench_models(subjects, [(32, 32)], variants=["eager", "folded"], **quick())
    # The host, the cap and the model, each first as it is: the clock gives 1, 2, … ms.
    assert [row.variant for row in result.measurements] == ["eager", "folded"] * 3
    assert [row.against_eager for row in result.measurements] == pytest.approx(
        [None, 1 / 2, None, 3 / 4, None, 5 / 6]
    )
    *_, eager, folded = result.measurements
    assert folded.against_host == pytest.approx(2 / 6)
    assert folded.cap_share == pytest.approx(4 / 6)
    assert folded.parameters < eager.parameters
    assert 0 < folded.relative_rms < 1e-5
    assert folded.peak_megabytes > 0
    assert "×eager" in result.table()
    assert "0.83×" in result.table()


class Normed(nn.Sequential):
    """A convolution and a norm that does something."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten())
        nn.init.uniform_(self[1].running_var, 0.5, 2.0)


def _folded_row(model):
    subjects = [Subject("normed", lambda _: model)]
    eager, folded = bench_models(
        subjects, [(4, 4)], variants=["eager", "folded"], **quick()
    ).measurements
    assert eager.milliseconds is not None
    return folded


def test_folding_leaves_the_eager_model_alone():
    model = Normed()
    folded = _folded_row(model)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert (folded.error, folded.against_eager) == ("", pytest.approx(1 / 2))
    assert folded.parameters == 4 * 3 + 4


def test_a_fold_that_refuses_itself_gets_no_time(monkeypatch):
    from castling.surgery import fold

    def wrong(sequence):
        sequence[1] = nn.Identity()
        return ["1 into 0"]

    monkeypatch.setitem(fold._HANDLERS, nn.Sequential, wrong)
    folded = _folded_row(Normed())
    assert (folded.milliseconds, folded.against_eager) == (None, None)
    assert "folding changed the outputs" in folded.error


def test_a_fold_that_changes_the_output_gets_no_time(monkeypatch):
    def wrong(model, example):
        model[0].weight = nn.Parameter(1.01 * model[0].weight)
        model[0].bias = nn.Parameter(1.01 * model[0].bias)

    monkeypatch.setattr(runtimes, "fold_", wrong)
    folded = _folded_row(Normed())
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


def test_the_picture_shows_every_batch():
    subjects = choose_subjects(["castling_deit_pico"])
    result = bench_models(subjects, [(32, 32), (64, 64)], batches=[1, 2], **quick())
    figure = result.plot()._figure("#000000")
    assert [axes.get_title() for axes in figure.axes] == ["eager, batch 1", "eager, batch 2"]
    # ours, its cap, and the line at 1
    assert [len(axes.get_lines()) for axes in figure.axes] == [3, 3]


def test_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        bench_models([], [(4, 4)])
    with pytest.raises(ValueError, match="positive"):
        bench_models([pico()], [(4, 0)])
    with pytest.raises(ValueError, match="no runtime 'java'; there are: eager"):
        bench_models([pico()], [(32, 32)], variants=["java"])


def test_without_attention_takes_converted_and_plain_hosts():
    plain = without_attention(timm.create_model("deit_pico", depth=1))
    converted = timm.create_model("deit_pico", depth=1)
    linearize_(converted, LinearAngular())
    without_attention(converted)
    converted.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(plain.eval()(images), converted.eval()(images))
