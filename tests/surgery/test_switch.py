"""``switch_``: it measures, refuses, and what it casts away is gone."""

import json

import pytest
import timm
import torch
from torch import nn

import castling
from castling.attention import Attention, auxiliaries, set_progress
from castling.surgery import is_switched, strip_, switch_

FAMILIES = ["castling_deit_pico", "castling_levit_pico", "castling_mvitv2_pico"]


def images(model_name, count=4):
    return torch.randn(count, 3, *((32, 32) if "deit" in model_name else (64, 64)))


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_when_the_mask_is_empty(name):
    model = timm.create_model(name, num_classes=5)
    set_progress(model, 1.0)
    model.eval()
    x = images(name)
    before = model(x)
    model.train()
    report = switch_(model, [x[:2], (x[2:], torch.zeros(2))], repeats=1)
    assert model.training
    assert report.exact
    assert not report.forced
    assert report.max_gap == report.mean_gap == report.max_difference == 0
    assert report.agreement == 1
    assert report.images == 4
    assert torch.equal(model.eval()(x), before)
    assert is_switched(model)
    assert report.parameters_after == sum(p.numel() for p in model.parameters())
    assert report.macs_after == castling.macs(model, tuple(x.shape[1:])).total
    assert report.macs_after < report.macs_before
    assert report.milliseconds_before > 0
    json.dumps(report.to_dict())
    assert "exact" in str(report)


@pytest.mark.parametrize("name", FAMILIES)
def test_refused_above_the_tolerance_and_untouched(name):
    model = timm.create_model(name, num_classes=5).eval()
    if "levit" in name:  # its attention leaves through a zero-initialised BatchNorm
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.ones_(module.weight)
    x = images(name)
    before = model(x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(castling.SwitchRefusedError, match="force=True") as refusal:
        switch_(model, x, tolerance=1e-9, repeats=1)
    assert refusal.value.report.max_gap > 1e-9
    assert not refusal.value.report.exact
    assert all(figures.surviving_mass > 0 for figures in refusal.value.report.layers.values())
    assert not is_switched(model)
    assert torch.equal(model(x), before)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    report = switch_(model, x, tolerance=1e-9, force=True, repeats=1)
    assert report.forced
    assert is_switched(model)
    centred = before - before.mean(dim=1, keepdim=True)
    gap = ((model(x) - before).norm(dim=1) / centred.norm(dim=1)).detach()
    assert float(gap.max()) == pytest.approx(report.max_gap, rel=1e-3)


def test_a_generous_tolerance_is_enough():
    model = timm.create_model("castling_deit_pico", num_classes=5)
    report = switch_(model, images("deit"), tolerance=10.0, repeats=1)
    assert not report.exact
    assert not report.forced
    assert "within tolerance" in str(report)


def test_a_model_that_answers_nan_is_refused():
    model = timm.create_model("castling_deit_pico", num_classes=5)
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(castling.SwitchRefusedError, match=r"NaN or infinite.*weights"):
        switch_(model, images("deit"), tolerance=1e9, repeats=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_said(value):
    model = timm.create_model("castling_deit_pico", depth=1)
    images = torch.randn(4, 3, 32, 32)
    images[2, 1, 5, 7] = value
    with pytest.raises(ValueError, match="1 of 4 calibration images hold NaN or infinite pixels"):
        castling.switch_(model, images)
    assert auxiliaries(model)


def test_nothing_to_switch():
    model = timm.create_model("deit_pico")
    with pytest.raises(ValueError, match="no auxiliary branch"):
        switch_(model, images("deit"))


def test_calibration_is_checked():
    model = timm.create_model("castling_deit_pico")
    with pytest.raises(ValueError, match="no images"):
        switch_(model, [])
    with pytest.raises(ValueError, match="image batches"):
        switch_(model, torch.randn(3, 32, 32))
    assert not is_switched(model)


def test_score_biases_go_with_the_branch_and_only_then():
    model = timm.create_model("castling_levit_pico", where="stages.0.blocks.0.*")
    before = sum("attention_biases" in name for name, _ in model.named_parameters())
    report = switch_(model, images("levit"), force=True, repeats=1)
    after = sum("attention_biases" in name for name, _ in model.named_parameters())
    assert (before, after) == (5, 4)  # the layers left as they were keep theirs
    assert report.parameters_before - report.parameters_after == 2 * 8 * 8


def test_token_mixers_outside_hosts_are_stripped_too():
    mixer = Attention(32, 4, castling.LinearAngular(auxiliary=castling.MaskedSoftmax()))
    strip_(mixer)
    assert not auxiliaries(mixer)
    assert mixer.config.auxiliary is None


def test_every_output_counts():
    """A feature extractor whose first map does not depend on the branch that is cast away."""
    model = timm.create_model("castling_levit_pico", features_only=True).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.ones_(module.weight)
    x = images("levit")
    before = model(x)
    with pytest.raises(castling.SwitchRefusedError):
        switch_(model, x, tolerance=1e-6, repeats=1)
    report = switch_(model, x, tolerance=1e-6, force=True, repeats=1)
    worst = max(
        float((new - old).norm() / (old - old.mean()).norm())
        for old, new in zip(before, model(x), strict=True)
    )
    assert report.max_gap >= 0.5 * worst
    assert report.agreement is None


def test_an_offset_of_all_logits_does_not_hide_a_change():
    model = timm.create_model("castling_deit_pico", num_classes=5)
    x = images("deit")
    with pytest.raises(castling.SwitchRefusedError) as plain:
        switch_(model, x, tolerance=0.0, repeats=1)
    nn.init.constant_(model.head.bias, -1e3)
    with pytest.raises(castling.SwitchRefusedError) as offset:
        switch_(model, x, tolerance=0.0, repeats=1)
    gaps = [refusal.value.report.max_gap for refusal in (plain, offset)]
    assert gaps[1] == pytest.approx(gaps[0], rel=0.05)


def test_outputs_that_say_nothing_are_refused():
    model = timm.create_model("castling_deit_pico", num_classes=5)
    nn.init.zeros_(model.head.weight)
    with pytest.raises(castling.SwitchRefusedError):
        switch_(model, images("deit"), tolerance=1.0, repeats=1)
    set_progress(model, 1.0)
    assert switch_(model, images("deit"), repeats=1).exact


def test_modes_of_all_modules_are_given_back():
    model = timm.create_model("castling_levit_pico", num_classes=5).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    for norm in norms:
        norm.eval()
    switch_(model, images("levit"), force=True, repeats=1)
    assert model.training
    assert not any(norm.training for norm in norms)


def test_a_foreign_module_called_auxiliary_is_left_alone():
    model = nn.Sequential(timm.create_model("castling_deit_pico", num_classes=5))
    model.auxiliary = nn.Linear(5, 5)
    strip_(model)
    assert isinstance(model.auxiliary, nn.Linear)
    assert is_switched(model)


def test_a_negative_tolerance_is_refused():
    with pytest.raises(ValueError, match="negative"):
        switch_(timm.create_model("castling_deit_pico"), images("deit"), tolerance=-1)
