"""ESNet: sizes, maps, blocks, and what training and folding need."""

import math

import pytest
import timm
import torch
from torch import nn

import castling
from castling.models.backbone import build_backbone
from castling.models.esnet_blocks import ESBlock, ESDownsample, shuffle

PARAMETERS = {"s": 603_659, "m": 1_338_026, "l": 2_077_041}
CHANNELS = {"s": [96, 192, 384], "m": [128, 256, 512], "l": [160, 320, 640]}


@pytest.mark.parametrize("size", PARAMETERS)
def test_backbones_of_picodet(size):
    with torch.device("meta"):
        model = timm.create_model(f"esnet_{size}", features_only=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[size]
    assert model.feature_info.channels() == CHANNELS[size]
    assert model.feature_info.reduction() == [8, 16, 32]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 90), (1, 5), (100, 31)])
def test_maps_of_any_size_round_up(height, width):
    model = timm.create_model("esnet_pico", features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(2, 3, height, width))
    for each, channels, stride in zip(maps, (32, 64, 128), (8, 16, 32), strict=True):
        assert each.shape == (2, channels, math.ceil(height / stride), math.ceil(width / stride))


def test_shuffle_is_shufflenets():
    x = torch.randn(2, 12, 5, 3)
    for groups in (2, 3):
        expected = x.reshape(2, groups, 12 // groups, 5, 3).transpose(1, 2).reshape(2, 12, 5, 3)
        assert torch.equal(shuffle(x, groups), expected)
        assert torch.equal(shuffle(x, groups), nn.ChannelShuffle(groups)(x))


def test_half_of_the_channels_pass_a_block_untouched():
    block, x = ESBlock(16, 8).eval(), torch.randn(2, 16, 6, 6)
    with torch.no_grad():
        out = block(x)
    assert torch.equal(out[:, ::2], x[:, :8])
    assert not torch.equal(out[:, 1::2], x[:, 8:])


@pytest.mark.parametrize("module", [ESBlock(16, 8), ESDownsample(12, 16, 8)])
def test_depthwise_convolutions_of_the_branches_have_no_activation(module):
    for name, part in module.named_modules():
        if name in ("depthwise", "depthwise1", "depthwise2"):
            assert isinstance(part.bn.act, nn.Identity), name
        elif name in ("expand", "project", "project1", "expand2", "project2", "mix.0", "mix.1"):
            assert isinstance(part.bn.act, nn.Hardswish), name


def test_every_parameter_has_a_gradient_and_odd_images_train():
    model = timm.create_model("esnet_pico", num_classes=4).train()
    model(torch.randn(2, 3, 50, 37)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_folding_leaves_no_norm_and_the_same_logits():
    model = timm.create_model("esnet_pico", num_classes=4)
    x = torch.randn(4, 3, 64, 64)
    for _ in range(3):
        model.train()(x)
    before = model.eval()(x)
    castling.fold_(model, x)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_weights_are_initialised_anew_as_at_construction():
    model = timm.create_model("esnet_pico", device="meta", num_classes=4).to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(7)
    model.init_weights()
    fresh = timm.create_model("esnet_pico", num_classes=4)
    for name, tensor in model.state_dict().items():
        expected = fresh.state_dict()[name]
        if expected.numel() > 100 and expected.float().std() > 0:
            assert 0.7 < float(tensor.std() / expected.std()) < 1.4, name
        elif expected.numel() > 1 and expected.float().std() == 0:
            assert torch.equal(tensor, expected), name


def test_frozen_norms_survive_training_mode():
    backbone = build_backbone("esnet_pico", {}, (8, 32), freeze_batchnorm=True).train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert backbone.channels == (32, 128)
