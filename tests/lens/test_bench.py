"""Measurements: gate before speed, honest memory, failures beside results."""

import pytest
import torch
from torch import nn

from castling.attention import Attention, LinearAngular, MaskedSoftmax
from castling.lens.bench import BenchResult, Measurement, bench
from castling.lens.gate import explicit_difference
from castling.lens.memory import peak_megabytes
from castling.lens.subjects import Subject, attention_subject, choose_subjects, model_subject

QUICK = {"rounds": 2, "seconds": 0.0}


def test_attentions_side_by_side():
    subjects = [attention_subject(name, dim=16, num_heads=2) for name in ("softmax", "relu_linear")]
    seen = []
    result = bench(subjects, [(4, 4), (4, 8)], batch=2, report=seen.append, **QUICK)
    assert seen == list(result.measurements)
    assert [m.tokens for m in result.measurements] == [16, 16, 32, 32]
    first = result.measurements[0]
    assert first.macs == 16 * 16 * 16 * 4 + 2 * 16 * 16 * 16
    assert first.parameters == sum(p.numel() for p in Attention(16, 2).parameters()) - 9 * 16
    assert all(m.gate == "N×N form" for m in result.measurements)
    assert all(m.milliseconds > 0 and m.peak_megabytes > 0 for m in result.measurements)
    assert first.images_per_second == pytest.approx(2e3 / first.milliseconds)
    assert "softmax" in result.table()
    assert "±: half the interquartile range" in result.table()
    assert result.machine["torch"] == torch.__version__


def test_models_are_measured_as_in_use_and_failures_stand_beside():
    subjects = [
        model_subject("castling_deit_pico", kwargs={"depth": 1}),
        model_subject("cas_vit_pico"),
    ]
    result = bench(subjects, [(32, 32), (30, 32)], **QUICK)
    by_size = {(m.name, m.height): m for m in result.measurements}
    failed = by_size["castling_deit_pico", 30]
    assert failed.milliseconds is None
    assert "30" in failed.error
    assert by_size["cas_vit_pico", 30].milliseconds > 0
    assert by_size["castling_deit_pico", 32].tokens == 65
    assert "30×32" in result.table()


def test_a_wrong_result_gets_no_time():
    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1) / 0

    class Dropping(nn.Module):
        def forward(self, x):
            return x[:1]

    subjects = [
        Subject("nan", "model", lambda _: Broken()),
        Subject("drop", "model", lambda _: Dropping()),
    ]
    found = bench(subjects, [(4, 4)], batch=2, **QUICK).measurements
    assert [m.milliseconds for m in found] == [None, None]
    assert "NaN" in found[0].error
    assert "batch of 2" in found[1].error


def test_gate_sees_a_wrong_kernel():
    torch.manual_seed(0)
    attention = Attention(16, 2, LinearAngular(local="none"))
    assert explicit_difference(attention) < 1e-5
    right = attention.kernel.forward
    attention.kernel.forward = lambda *a, **k: right(*a, **k) * 1.01
    assert explicit_difference(attention) > 1e-3
    assert explicit_difference(nn.Linear(2, 2)) is None


def test_auxiliary_branch_is_not_part_of_the_attention_measured():
    subject = attention_subject(LinearAngular(auxiliary=MaskedSoftmax()), dim=16, num_heads=2)
    assert subject.build((4, 4)).attention.auxiliary is None


def test_peak_memory_counts_what_lives_at_one_time():
    x = torch.randn(250, 1000)

    def chain():
        y = x + 1
        z = y * 2
        del y
        return (z - 1).view(-1).add_(1)

    assert peak_megabytes(chain, torch.device("cpu")) == pytest.approx(2.0)


def _measured(name, side, milliseconds):
    return Measurement(name, "model", side, side, tokens=side**2, milliseconds=milliseconds)


def test_crossover_is_where_it_stays_faster():
    times = {
        "base": (1, 2, 8, 32),
        "late": (2, 3, 4, 5),
        "never": (2, 9, 9, 99),
        "lucky": (0.5, 3, 4, 5),
    }
    rows = [
        _measured(name, side, milliseconds)
        for name, values in times.items()
        for side, milliseconds in zip((4, 8, 16, 32), values, strict=True)
    ]
    result = BenchResult(tuple(rows), {})
    assert result.crossovers() == {"late": 256, "never": None, "lucky": 256}
    assert result.crossovers("late")["base"] is None
    assert "late: faster than base from 256 tokens on" in result.table()


def test_choice_of_subjects():
    names = [subject.name for subject in choose_subjects(["deit_pico"], ["softmax", "cosine"])]
    assert names == ["deit_pico + softmax", "deit_pico + cosine"]
    assert choose_subjects([], [])[0].name == "softmax"
    with pytest.raises(ValueError, match="divisible"):
        choose_subjects([], ["softmax"], dim=10, num_heads=3)


def test_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        bench([], [(4, 4)])
    with pytest.raises(ValueError, match="positive"):
        bench([attention_subject("softmax")], [(4, 0)])
