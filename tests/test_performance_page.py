"""The page of measured speeds shows what the result files hold, losses included."""

import csv
import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch

from castling.attention import LinearAngular
from castling.profiling.bench_ops import bench_ops, settings_of
from castling.profiling.machine import Roofline
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.profiling.op_results import OpMeasurement, OpsResult
from castling.surgery.plan import Plan, PlannedLayer, Predicted, Verified

ROOT = Path(__file__).parent.parent
MACHINE = {"device": "cpu (some)", "threads": 1, "clock": "wall"}


@pytest.fixture
def docs(monkeypatch):
    """The module of a file in docs, by its name."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module


@pytest.fixture
def page(docs):
    return docs("performance_page").performance_page


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
    (tmp_path / "gpu.json").write_text(json.dumps(gpu))
    return tmp_path


def section(text, title):
    return text[text.index(f"## {title}") :].split("\n## ")[0]


def test_wins_and_losses(page, results):
    text = page(results)
    summary = section(text, "In short")
    assert "Linear kernels against softmax: **0.5×** at 49, 3× at 196 tokens." in summary
    lost = summary[summary.index("**Softmax is faster**") :]
    assert "`linear_angular:local=none` at 49 tokens, forward (0.50×)" in lost
    assert "196 tokens" not in lost
    assert "`ours` in eager at 224 px, batch 1 (0.80×)" in lost


def test_kernels_by_tokens_on_the_default_backend(page, results):
    kernels = section(page(results), "Kernels against softmax")
    assert "| kernel | 49 tokens | 196 tokens |" in kernels
    assert "| `softmax` | 1 ms | 9 ms |" in kernels
    assert "| `linear_angular:local=none` | **2 ms, 0.50×** | 3 ms, 3.00× |" in kernels
    assert "broken (naive), N=196 B=1 H=6 d=64 float32: the output is wrong by 1" in kernels
    assert "cpu (some), 1 thread, wall clock:" in kernels
    assert "`castling bench ops --x`" in kernels
    assert "results/bench_ops.csv)" in kernels


def test_models_by_runtime(page, results):
    row = "| `ours` | 224 | 1 | **12.5 ms, 0.80×** | – | – | – | – | 70% | 5.0 (4.0) |"
    assert row in section(page(results), "Whole models")


def test_aims_and_what_missed_them(page, results):
    aims = section(page(results), "Aims, met and missed")
    kernel = "`linear_angular:local=none`"
    assert f"**Missed** in 1 of 2: {kernel} at 49 tokens: 0.50×." in aims
    assert f"from 196 tokens on. **Missed** in 1 of 1: {kernel} at 196 tokens: 30%." in aims
    assert "up to 4096 tokens. Met in all 2." in aims
    assert "**Missed** in 1 of 1: 224 px, batch 1: 70%." in aims
    assert "**Missed** in 1 of 1: 224 px, batch 1: 5.0 MB (host 4.0 MB)." in aims
    assert "folding" not in aims


def test_folding_has_an_aim_and_a_column(page, results):
    measured = [model("host", 20.0, 1.0)]
    for name, gain in (("cas_vit_xs", 1.25), ("cas_vit_s", 1.5), ("cas_vit_t", None)):
        measured.append(model(name, 10.0, 1.0, against_host=2.0))
        folded = dataclasses.replace(measured[-1], variant="folded", against_eager=gain)
        failed = dataclasses.replace(
            model(name, None, None), variant="folded", error="folding changed the outputs"
        )
        measured.append(folded if gain else failed)
    hosts = {row.model: ("host",) for row in measured[1:]} | {"host": ()}
    ModelsResult(tuple(measured), MACHINE, hosts).write_json(results / "bench_models_folded.json")
    text = page(results)
    assert "**Missed** in 1 of 2: `cas_vit_xs`: 1.25×." in text
    assert "| `cas_vit_s` | 224 | 1 | 10 ms, 2.00× | 10 ms, 2.00× | – |" in text
    assert "| `cas_vit_t` | 224 | 1 | 10 ms, 2.00× | – | – |" in text
    assert "cas_vit_t (folded), 224×224, batch 1: folding changed the outputs" in text


def test_plans_gpu_and_missing_files(page, results):
    text = page(results)
    plan = "1 of 1 layers linear; all softmax 10 ms, all linear 9.5 ms, planned 10 ms"
    assert f"224×224 pixels: {plan} (predicted 9 ms, off by -10.0 %)." in text
    assert "[gpu_forward.csv](../benchmarks/results/gpu_forward.csv): 1 rows." in text
    missing = section(text, "Not measured yet")
    assert "bench_ops_backward.json" in missing
    assert "bench_ops.json" not in missing


def test_without_any_file(page, tmp_path):
    text = page(tmp_path)
    assert text.startswith("# Performance")
    assert "bench_models.json" in text


def test_every_row_is_in_a_csv_file_and_plots_are_drawn(docs, results, tmp_path):
    tables = docs("performance_tables")
    tables.write_tables(results, tmp_path / "csv")
    assert sorted(path.name for path in (tmp_path / "csv").iterdir()) == [
        *("bench_models.csv", "bench_ops.csv", "gpu_forward.csv")
    ]
    with (tmp_path / "csv" / "bench_ops.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    measured = json.loads((results / "bench_ops.json").read_text())["measurements"]
    assert [row["milliseconds"] for row in rows] == [
        "" if row["milliseconds"] is None else str(row["milliseconds"]) for row in measured
    ]
    tables.write_plots(results, tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        *("bench_models.png", "bench_ops.png")
    ]


def test_results_with_old_keys_are_refused(page, results):
    path = results / "bench_models.json"
    path.write_text(path.read_text().replace("bound_share", "cap_share"))
    with pytest.raises(ValueError, match="cap_share"):
        page(results)


def test_what_the_benchmark_writes_can_be_shown(page, tmp_path):
    result = bench_ops(
        {"linear_angular": LinearAngular()},
        settings_of([16], heads=[1], dims=[8], dtypes=[torch.float32]),
        backends=["naive"],
        rounds=1,
        timer=lambda call, repeats: 0.01 * repeats,
        roofline=Roofline(1.0, 1.0),
    )
    result.write_json(tmp_path / "bench_ops.json")
    text = page(tmp_path)
    assert "| `linear_angular` | 10 ms, 1.00× |" in text
    assert "roofline 1 GFLOP/s, 1.0 GB/s" in text
