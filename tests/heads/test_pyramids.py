"""Feature pyramids: on any backbone, and on plain transformers."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from castling import create_model
from castling.heads.fpn import FPN, p6_p7
from castling.heads.simple_pyramid import SimplePyramid


def test_the_levels_are_torchvisions():
    ours = FPN((8, 12, 20), 16, p6_p7(20, 16))
    theirs = FeaturePyramidNetwork([8, 12, 20], 16, p6_p7(20, 16))
    theirs.load_state_dict(ours.state_dict())
    maps = [torch.randn(2, c, 24 // s, 40 // s) for c, s in ((8, 1), (12, 2), (20, 4))]
    wanted = theirs({"c3": maps[0], "c4": maps[1], "c5": maps[2]})
    found = ours(maps)
    assert [tuple(each.shape[2:]) for each in found] == [
        (24, 40),
        (12, 20),
        (6, 10),
        (3, 5),
        (2, 3),
    ]
    for a, b in zip(found, wanted.values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("channels", [16, 20])
def test_p6_comes_from_the_backbone_whatever_its_channels(channels):
    """torchvision takes P5 where C5 is as wide as the pyramid, as in CAS-ViT-S."""
    extra = p6_p7(channels, 16)
    c5, p5 = torch.randn(1, channels, 6, 6), torch.randn(1, 16, 6, 6)
    levels, _ = extra([p5], [c5], ["p5"])
    assert torch.equal(levels[1], F.conv2d(c5, extra.p6.weight, extra.p6.bias, 2, 1))
    assert torch.equal(levels[2], F.conv2d(levels[1].relu(), extra.p7.weight, extra.p7.bias, 2, 1))


def test_p6_of_retinanet_on_cas_vit_s_and_of_fcos():
    with torch.device("meta"):
        retinanet = create_model("retinanet/cas_vit_s")
        fcos = create_model("fcos/cas_vit_s")
    assert retinanet.backbone.channels[-1] == 256 == retinanet.neck.extra_blocks.p6.in_channels
    assert not retinanet.neck.extra_blocks.use_P5
    assert fcos.neck.extra_blocks.use_P5


def test_simple_pyramid_is_that_of_vitdet():
    """ViTDet, §3 and A.2, written out."""
    pyramid = SimplePyramid(64, 16, 32, (4, 8, 16, 32))
    single = torch.randn(2, 64, 6, 4)

    def norm(x, layer):
        mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        x = (x - mean) / (variance + 1e-6).sqrt()
        return x * layer.weight[:, None, None] + layer.bias[:, None, None]

    def double(x, layer):
        return F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)

    quarter, half = pyramid.scales[0], pyramid.scales[1]
    scaled = [
        double(F.gelu(norm(double(single, quarter[0]), quarter[1])), quarter[3]),
        double(single, half[0]),
        single,
        F.max_pool2d(single, 2),
    ]
    assert [each.shape[1] for each in scaled] == [16, 32, 64, 64]
    for found, x, level in zip(pyramid([single]), scaled, pyramid.levels, strict=True):
        x = norm(F.conv2d(x, level[0].weight), level[1])
        x = norm(F.conv2d(x, level[2].weight, padding=1), level[3])
        torch.testing.assert_close(found, x)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_simple_pyramid_from_any_patch_size(stride):
    pyramid = SimplePyramid(64, stride, 8, (4, 8, 16, 32), p6_p7(64, 8) if stride < 32 else None)
    found = pyramid([torch.randn(1, 64, 128 // stride, 192 // stride)])
    assert [tuple(each.shape[1:]) for each in found[:4]] == [
        (8, 128 // each, 192 // each) for each in (4, 8, 16, 32)
    ]


def test_patches_of_14_pixels_are_refused():
    with pytest.raises(ValueError, match="a power of 2, not 14"):
        SimplePyramid(64, 14, 8, (4, 8, 16, 32))


#: Backbone and its keyword arguments; the last three are plain, with one stride.
BACKBONES = {
    "test_resnet": {},
    "test_efficientnet": {},
    "castling_levit_pico": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 1, 1)},
    "cas_vit_xs": {},
    "qt_vit_1": {},
    "test_vit": {},
    "deit_pico": {},
    "castling_deit_pico": {},
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_detector_on_any_backbone(backbone):
    model = create_model(f"retinanet_pico/{backbone}", num_classes=3, **BACKBONES[backbone])
    images = torch.randn(2, 3, 64, 96)
    model.train()
    levels = model.levels(images)
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    assert [tuple(each.shape[1:]) for each in levels] == [(32, *size) for size in sizes]
    target = {"boxes": torch.tensor([[8.0, 8, 40, 50]]), "labels": torch.tensor([2])}
    sum(model.losses(images, [target] * 2).values()).backward()
    lacking = [name for name, p in model.named_parameters() if p.grad is None]
    assert not lacking
    plain = timm.create_model(backbone, features_only=True, **BACKBONES[backbone])
    one_stride = len(set(plain.feature_info.reduction())) == 1
    assert isinstance(model.neck, SimplePyramid if one_stride else FPN)


@pytest.mark.parametrize("head", ["picodet_pico", "d_fine_pico"])
@pytest.mark.parametrize("backbone", ["deit_pico", "castling_deit_pico"])
def test_detectors_with_necks_of_their_own_on_plain_transformers(head, backbone):
    model = create_model(f"{head}/{backbone}", num_classes=3).train()
    assert isinstance(model.pyramid, SimplePyramid)
    target = {"boxes": torch.tensor([[8.0, 8, 40, 50]]), "labels": torch.tensor([2])}
    sum(model.losses(torch.randn(2, 3, 64, 96), [target] * 2).values()).backward()
    below = [*model.backbone.parameters(), *model.pyramid.parameters()]
    assert all(p.grad is not None for p in below)
    found = model.eval().inference(torch.randn(1, 3, 128, 64))
    assert found["boxes"].shape == (1, model.detections, 4)


def test_a_backbone_without_a_stride_is_refused():
    with pytest.raises(ValueError, match=r"no feature map of stride 4, only of 8, 16, 32"):
        create_model("faster_rcnn_pico/castling_levit_pico")


def test_frozen_batchnorm_survives_training():
    model = create_model("retinanet_pico/test_resnet", head={"freeze_batchnorm": True})
    model.train()
    before = copy.deepcopy(model.backbone.state_dict())
    norms = [each for each in model.backbone.modules() if isinstance(each, nn.BatchNorm2d)]
    assert norms
    model.levels(torch.randn(2, 3, 64, 64)).pop().sum().backward()
    assert not any(each.training for each in norms)
    assert all(p.grad is None for each in norms for p in each.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    assert any(p.grad is not None for p in model.backbone.parameters())
    assert not create_model("retinanet_pico/test_resnet").backbone.freeze_batchnorm
