"""Whole detectors, decoding and suppression included, as programs of any image size."""

import pytest
import torch
from torch import nn

from castling import create_model

NAMES = ["retinanet", "fcos", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"]


class Whole(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.decode(self.model(images), images.shape[-2:])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_program_gives_the_same_detections_at_any_size(name):
    model = create_model(
        f"{name}_pico/test_resnet", num_classes=4, head={"proposals": 40} if "rcnn" in name else {}
    )
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.normal_(module.bias, std=0.1)
    whole = Whole(model.eval())
    batch = torch.export.Dim("batch", max=8)
    # From 192 pixels: a coarsest level of one place would be a case of its own.
    height, width = (torch.export.Dim(each, min=3, max=16) for each in ("height", "width"))
    program = torch.export.export(
        whole,
        (torch.randn(2, 3, 256, 320),),
        dynamic_shapes=({0: batch, 2: 64 * height, 3: 64 * width},),
    ).module()
    for size in [(1, 192, 192), (3, 192, 256), (2, 320, 192)]:
        images = torch.randn(size[0], 3, *size[1:])
        with torch.no_grad():
            wanted, found = whole(images), program(images)
        assert (wanted["scores"] > 0).sum(1).min() > 20
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value)
