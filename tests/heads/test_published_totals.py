"""Parameters of whole detectors with 80 classes: counted totals, and those of the papers."""

import pytest
import torch

from castling import create_model

#: Millions, with 256 channels and 80 classes: RetinaNet, FCOS, Faster and Mask R-CNN.
CAS_VIT = {
    "retinanet": {"xs": 12.190, "s": 14.780, "m": 21.533, "t": 30.971},
    "fcos": {"xs": 10.730, "s": 13.237, "m": 19.696, "t": 28.839},
    "faster_rcnn": {"xs": 20.137, "s": 22.644, "m": 29.107, "t": 38.258},
    "mask_rcnn": {"xs": 22.780, "s": 25.287, "m": 31.750, "t": 40.902},
}
#: Millions: what QT-ViT's table says of Cascade Mask R-CNN, and what is counted.
CASCADE = {
    "efficientvit_b1": (57.6, 57.600),
    "qt_vit_1": (57.9, 57.851),
    "efficientvit_b2": (68.0, 67.995),
    "qt_vit_2": (68.5, 68.522),
    "efficientvit_b3": (92.1, 92.077),
    "qt_vit_3": (93.1, 93.131),
}


def millions(name, **kwargs):
    with torch.device("meta"):
        model = create_model(name, num_classes=80, **kwargs)
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize("head", CAS_VIT)
@pytest.mark.parametrize("size", ["xs", "s", "m", "t"])
def test_cas_vit(head, size):
    total = millions(f"{head}/cas_vit_{size}", feature_norm=True)
    assert total == pytest.approx(CAS_VIT[head][size], abs=6e-4)


@pytest.mark.parametrize("backbone", CASCADE)
def test_cascade_mask_rcnn(backbone):
    published, counted = CASCADE[backbone]
    total = millions(f"cascade_mask_rcnn/{backbone}")
    assert total == pytest.approx(counted, abs=6e-4)
    assert abs(total - published) < 0.05


def test_parts_of_cascade_mask_rcnn():
    with torch.device("meta"):
        model = create_model("cascade_mask_rcnn/efficientvit_b1", num_classes=80)

    def count(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    assert count(model.rpn) == 593_935
    for stage in model.stages:
        assert count(stage.box_head, stage.box_predictor) == 13_982_805
        assert count(stage.mask_head, stage.mask_predictor) == 2_643_280
    assert count(model) == count(model.backbone, model.neck, model.rpn, model.stages)
