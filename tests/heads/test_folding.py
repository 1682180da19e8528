"""Detectors are folded as classifiers are: raw outputs and detections stay."""

import pytest
import torch

import castling
from castling.heads.matching import DetectorOutputs

NAMES = [
    "picodet_pico/esnet_pico",
    "d_fine_pico/cas_vit_pico",
    "retinanet_pico/test_resnet",
    "fcos_pico/cas_vit_xs",
    "faster_rcnn_pico/test_resnet",
]


@pytest.mark.parametrize("name", NAMES)
def test_folding_keeps_raw_outputs_and_detections(name):
    if "d_fine" in name:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = castling.create_model(name, num_classes=3)
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))  # statistics of BatchNorm that are not 0 and 1
    images = torch.randn(2, 3, 128, 64)
    with torch.no_grad():
        before = model.eval()(images)
    report = castling.fold_(model, images, task=DetectorOutputs())
    assert report.agreement == 1
    assert report.batch_norms_before > report.batch_norms_after == 0
    with torch.no_grad():
        after = model(images)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-4)
