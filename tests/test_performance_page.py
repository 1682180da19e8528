"""The page of measured speeds says what the files say, losses included."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch

from castling.attention import LinearAngular
from castling.profiling import bench_ops as ops
from castling.profiling.bench_ops import settings_of
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.profiling.op_results import OpMeasurement, OpsResult
from castling.surgery.plan import Plan, PlannedLayer, Predicted, Verified

ROOT = Path(__file__).parent.parent
MACHINE = {"device": "cpu (some)", "threads": 1}


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("performance_page").performance_page


def op(kernel, path, tokens, milliseconds, **values):
    return OpMeasurement(
        *(kernel, path, tokens, 1, 6, 64, "float32", False),
        milliseconds=milliseconds,
        low=milliseconds,
        high=milliseconds,
        **values,
    )


def model(name, milliseconds, peak, **values):
    return ModelMeasurement(
        *(name, "eager", 224, 224, 1, 197),
        milliseconds=milliseconds,
        low=milliseconds,
        high=milliseconds,
        peak_megabytes=peak,
        **values,
    )


@pytest.fixture
def results(tmp_path):
    kernel = "linear_angular:local=none"
    rows = [op("softmax", "sdpa", 49, 1.0), op("softmax", "sdpa", 196, 9.0)]
    for tokens, ours, softmax in ((49, 2.0, 1.0), (196, 3.0, 9.0)):
        shared = {"against_sdpa": softmax / ours, "against_reference": 3.5, "roofline_share": 0.3}
        rows.append(op(kernel, "native", tokens, ours, **shared))
        rows.append(op(kernel, "naive", tokens, 4 * ours, against_sdpa=softmax / ours / 4))
    wrong = dataclasses.replace(rows[-1], milliseconds=None, error="the output is wrong by 1")
    rows.append(dataclasses.replace(wrong, kernel="broken"))
    OpsResult(tuple(rows), MACHINE, command="castling bench ops --x").write_json(
        tmp_path / "bench_ops.json"
    )
    measured = (
        model("host", 10.0, 4.0),
        model("ours", 12.5, 5.0, against_host=0.8, bound_share=0.7),
    )
    ModelsResult(measured, MACHINE, {"host": (), "ours": ("host",)}).write_json(
        tmp_path / "bench_models.json"
    )
    layer = PlannedLayer("blocks.0.attn", 197, 3, 64, 64, 2.0, 1.0, "linear")
    Plan(
        *("deit", LinearAngular(), "cpu (some)", 1, "2.15", ("native",), (224, 224), 1, (layer,)),
        Predicted(10.0, 9.0, 9.0),
        Verified(10.0, 9.5, 10.0),
    ).save(tmp_path / "plan_deit_224.json")
    gpu = {"machine": {"device": "cuda (big)"}, "forward": [{"tokens": 196, "us": 12.5, "x": [1]}]}
    (tmp_path / "gpu_kernels.json").write_text(json.dumps(gpu))
    return tmp_path


def test_wins_and_losses(page, results):
    text = page(results)
    lost = text[text.index("**Slower than softmax**") :]
    assert "0.50× at 49 tokens" in lost
    assert "3.00× at 196 tokens" in text[: text.index("**Slower than softmax**")]
    assert "- ours (eager), 224 px, batch 1: 0.80×" in lost
    assert "no time, the output is wrong by 1" in text
    assert "from 196 tokens on" not in text.split("## Kernels alone, forward")[0]


def test_aims_that_were_missed_are_bold(page, results):
    text = page(results)
    assert "**49: 0.50× (aim 1.50×)**; 196: 3.00× (aim 2.00×)" in text
    assert "**196: 30% (aim 40%)**" in text
    assert "**224 px, batch 1: 70% (aim 90%)**" in text
    assert "**224 px, batch 1: 5.0 MB (host 4.0)**" in text


def test_what_folding_gained_and_what_it_was_to_gain(page, results):
    measured = []
    for name, gain in (("cas_vit_xs", 1.25), ("cas_vit_s", 1.5), ("cas_vit_t", None)):
        measured.append(model(name, 10.0, 1.0))
        folded = dataclasses.replace(measured[-1], variant="folded", against_eager=gain)
        measured.append(
            folded if gain else dataclasses.replace(folded, error="x", milliseconds=None)
        )
    ModelsResult(tuple(measured), MACHINE, {row.model: () for row in measured}).write_json(
        results / "bench_models_folded.json"
    )
    text = page(results)
    aims = "aim 1.30×, stretch 2.00×"
    assert (
        f"| `cas_vit_xs` | folded against unfolded | **224 px, batch 1: 1.25× ({aims})** |" in text
    )
    assert f"| `cas_vit_s` | folded against unfolded | 224 px, batch 1: 1.50× ({aims}) |" in text
    assert "| `cas_vit_t` | folded" not in text
    assert "| cas_vit_s | folded | 224×224 | 1 | 197 | 10 (10–10) | - | 1.50× | - |" in text
    # Only where there is something to compare, and where the file knows of it at all.
    assert text.count("| × eager |") == 1
    path = results / "bench_models_folded.json"
    older = json.loads(path.read_text())
    for row in older["measurements"]:
        del row["against_eager"]
    path.write_text(json.dumps(older))
    assert "| cas_vit_s | folded | 224×224 | 1 | 197 | 10 (10–10) | - | - |" in page(results)


def test_commands_plans_gpu_and_what_is_missing(page, results):
    text = page(results)
    assert "`castling bench ops --x` → [bench_ops.json]" in text
    assert "| 1 of 1 | 10 | 9.5 | 10 | 9 | -10.0 % |" in text
    assert "| tokens | us |\n|---|---|\n| 196 | 12.5 |" in text
    missing = text[text.index("## Not measured yet") :]
    assert "bench_ops_backward.json" in missing
    assert "bench_ops.json" not in missing


def test_without_any_file(page, tmp_path):
    text = page(tmp_path)
    assert text.startswith("# Performance")
    assert "bench_models.json" in text


def test_what_the_benchmark_writes_can_be_shown(page, tmp_path, monkeypatch):
    monkeypatch.setattr(ops, "measure_roofline", lambda *_: ops.Roofline(1.0, 1.0))
    result = ops.bench_ops(
        {"linear_angular": LinearAngular()},
        settings_of([16], heads=[1], dims=[8], dtypes=[torch.float32]),
        paths=["naive"],
        rounds=1,
        timer=lambda call, repeats: 0.001 * repeats,
    )
    result.write_json(tmp_path / "bench_ops.json")
    assert "| `linear_angular` | naive | 1.00× |" in page(tmp_path)
