"""Saved detectors: switched and exported on images of their run."""

import dataclasses
import json

import pytest
import torch
import yaml
from torch import nn

import castling
from castling.attention import set_progress
from castling.deploy import export_saved, exporting, switch_saved
from castling.deploy.saved_data import validation_images
from castling.models.builder import build_model
from castling.models.card import ModelCard
from castling.models.saved import open_model, save_model
from castling.tasks import task_from_card

NAME = "picodet_pico/castling_levit_s8_pico"


@pytest.fixture
def run(tmp_path):
    """The folder of a run on digit scenes, with a detector that sees digits everywhere."""
    torch.manual_seed(0)
    model = build_model(NAME, {"num_classes": 10})
    set_progress(model, 1.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
            nn.init.uniform_(module.weight, 0.5, 1.5)  # LeViT starts with zeros
        if isinstance(module, nn.Conv2d) and module.bias is not None:  # the outputs
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 256, 256))
    card = ModelCard(
        name=NAME,
        classes=[str(digit) for digit in range(10)],
        kwargs={"num_classes": 10},
        task={"name": "detection"},
        preprocessing={"image_size": 64, "mean": [0.5] * 3, "std": [0.25] * 3, "multiple": 32},
    )
    save_model(model.eval(), tmp_path, card)
    data = {
        "source": {"name": "digit_scenes", "canvas": 64, "images": 20},
        "transform": {"image_size": 64},
    }
    recipe = {"task": {"name": "detection"}, "data": data, "switch": {}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


def test_the_switch_states_the_gap_and_the_agreement_on_boxes(run):
    report, folder = switch_saved(run, images=3)
    assert report.exact
    assert report.images == 3
    assert report.agreement == 1
    assert open_model(folder)[1].switched
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["agreement"] == 1
    found = castling.Predictor(folder)(torch.zeros(3, 64, 64, dtype=torch.uint8))
    assert found[0].boxes


def test_a_switch_above_the_tolerance_says_how_many_boxes_stay(run):
    model, card = open_model(run)
    set_progress(model, 0.0)
    save_model(model, run, dataclasses.replace(card, progress=0.0))
    with pytest.raises(castling.SwitchRefusedError) as refusal:
        switch_saved(run, images=3, tolerance=0.0)
    report = refusal.value.report
    assert report.max_gap > 0
    assert 0 <= report.agreement <= 1


def test_images_of_the_run_are_normalised_and_as_many_as_asked_for(run):
    _, card = open_model(run)
    task = task_from_card(card)
    (batch,) = validation_images(task, card, run, None, 3)
    assert batch.shape == (3, 3, 64, 64)
    assert float(batch.min()) >= -2
    assert float(batch.max()) <= 2


@pytest.mark.slow
def test_a_run_is_exported_and_compared_on_its_images(run):
    pytest.importorskip("onnxscript")
    switch_saved(run, images=2)
    report = export_saved(run, input_size=None, dynamic="all")
    assert (run / "model.onnx").is_file()
    assert all(check.agreement == 1 and not check.nothing for check in report.checks)
    image = torch.randint(0, 255, (3, 90, 50), dtype=torch.uint8)
    (expected,), (found,) = (castling.Predictor(path)(image) for path in (run, run / "model.onnx"))
    assert found.classes == expected.classes
    torch.testing.assert_close(
        torch.tensor(found.boxes), torch.tensor(expected.boxes), atol=1e-2, rtol=0
    )
    # Without the run's images there is noise.
    (run / "recipe.yaml").unlink()
    assert len(export_saved(run, run / "other.onnx", dynamic="batch").checks) == 3


def test_exports_are_compared_on_images_of_the_run(run, monkeypatch):
    """In noise a trained detector finds only what is hardly there, which the last bit orders."""
    seen = {}
    monkeypatch.setattr(exporting, "export", lambda *_, images, **__: seen.update(images=images))
    export_saved(run, run / "model.onnx")
    _, card = open_model(run)
    expected = next(validation_images(task_from_card(card), card, run, None, 8))
    torch.testing.assert_close(seen["images"], expected)
