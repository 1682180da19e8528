"""Whole detectors, decoding and suppression included, as programs of any image size."""

import pytest
import torch
from torch import nn

from castling import create_model
from castling.export.onnx_operators import translations

SIZES = [(1, 192, 192), (3, 192, 256), (2, 320, 192)]


class Whole(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.decode(self.model(images), images.shape[-2:])


def build(name):
    head = {"proposals": 40} if "rcnn" in name else {"candidates": 200}
    model = create_model(f"{name}_pico/test_resnet", num_classes=4, head=head)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.normal_(module.bias, std=0.1)
    return Whole(model.eval())


def any_size():
    """From 192 pixels: a coarsest level of one place would be a case of its own."""
    height, width = (torch.export.Dim(each, min=3, max=16) for each in ("height", "width"))
    return ({0: torch.export.Dim("batch", max=8), 2: 64 * height, 3: 64 * width},)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "cascade_mask_rcnn"])
def test_a_program_gives_the_same_detections(name):
    whole = build(name)
    example = (torch.randn(2, 3, 256, 320),)
    program = torch.export.export(whole, example, dynamic_shapes=any_size()).module()
    for size in SIZES:
        images = torch.randn(size[0], 3, *size[1:])
        with torch.no_grad():
            wanted, found = whole(images), program(images)
        assert (wanted["scores"] > 0).sum(1).min() > 20
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcos", "mask_rcnn"])
def test_onnx_gives_the_same_detections(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    whole = build(name)
    program = torch.onnx.export(
        whole,
        (torch.randn(2, 3, 256, 320),),
        dynamo=True,
        dynamic_shapes=any_size(),
        custom_translation_table=translations(),
        verbose=False,
    )
    program.save(tmp_path / "whole.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "whole.onnx")
    for size in SIZES:
        images = torch.randn(size[0], 3, *size[1:])
        with torch.no_grad():
            wanted = whole(images)
        found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert (wanted["scores"] > 0).sum(1).min() > 20
        for value, given in zip(wanted.values(), found, strict=True):
            torch.testing.assert_close(torch.from_numpy(given), value, rtol=1e-4, atol=1e-3)
