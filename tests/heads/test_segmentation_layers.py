"""Semantic FPN, EfficientViT's head and UperNet, written out or against transformers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.heads.segmenting import build, labels, varied
from torch import nn
from torch.nn import functional as F

from castling.heads.efficientvit_head import EfficientViTHead
from castling.heads.semantic_fpn import SemanticFPNHead
from castling.heads.upernet import PyramidPooling, UperNetHead, pool_to_bins


def statistics(module):
    """Running statistics that are not 0 and 1."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return varied(module).eval()


def maps(*channels, batch=2, height=8, width=12):
    return [
        torch.randn(batch, each, max(1, height >> i), max(1, width >> i))
        for i, each in enumerate(channels)
    ]


def normed(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def double(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def test_semantic_fpn_written_out():
    """Panoptic FPN, figure 3: levels 4, 8, 16, 32 take 1, 1, 2 and 3 convolutions."""
    head = statistics(SemanticFPNHead(6, 4, 3, levels=4, dropout=0.1))
    pyramid = maps(6, 6, 6, 6, height=16, width=24)

    def block(x, level, place):
        layer = head.levels[level][place]
        return F.relu(normed(F.conv2d(x, layer.conv.weight, padding=1), layer.bn))

    total = block(pyramid[0], 0, 0)
    total = total + double(block(pyramid[1], 1, 0))
    total = total + double(block(double(block(pyramid[2], 2, 0)), 2, 2))
    coarse = double(block(double(block(double(block(pyramid[3], 3, 0)), 3, 2)), 3, 4))
    last = head.classifier.conv
    expected = F.conv2d(total + coarse, last.weight, last.bias)
    torch.testing.assert_close(head(pyramid), expected)


@pytest.mark.parametrize("fused", [False, True])
def test_efficientvits_head_written_out(fused):
    head = statistics(EfficientViTHead((6, 8, 10), 4, 2, fused, 2, 0.0, 3))

    def layer(x, part, act=None, **kwargs):
        x = normed(F.conv2d(x, part.conv.weight, **kwargs), part.norm)
        return x if act is None else act(x)

    def gelu(x):
        return F.gelu(x, approximate="tanh")

    pyramid = maps(6, 8, 10)
    fine, middle, coarse = (layer(x, part) for x, part in zip(pyramid, head.inputs, strict=True))
    x = fine + F.interpolate(middle, scale_factor=2, mode="bicubic")
    x = x + F.interpolate(coarse, scale_factor=4, mode="bicubic")
    for each in head.blocks:
        block = each.main
        if fused:
            y = layer(x, block.spatial_conv, gelu, padding=1)
        else:
            y = layer(x, block.inverted_conv, F.hardswish)
            y = layer(y, block.depth_conv, F.hardswish, padding=1, groups=16)
        x = x + layer(y, block.point_conv)
    x = layer(x, head.expand, gelu if fused else F.hardswish)
    last = head.classifier.conv
    torch.testing.assert_close(head(pyramid), F.conv2d(x, last.weight, last.bias))


def upernet_of_transformers(head, channels):
    """transformers' head with the weights of ours."""
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetHead as Theirs

    theirs = Theirs(UperNetConfig(hidden_size=8, num_labels=3), channels)
    pairs = {
        **{f"psp_modules.{i}.1": layer for i, layer in enumerate(head.pooling.layers)},
        "bottleneck": head.pooling.join,
        **{f"lateral_convs.{i}": layer for i, layer in enumerate(head.laterals)},
        **{f"fpn_convs.{i}": layer for i, layer in enumerate(head.outputs)},
        "fpn_bottleneck": head.join,
        "classifier": head.classifier.conv,
    }
    for name, layer in pairs.items():
        state = {
            key.replace("bn.", "batch_norm.", 1): value for key, value in layer.state_dict().items()
        }
        theirs.get_submodule(name).load_state_dict(state)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in head.parameters())
    return theirs


@pytest.mark.parametrize("training", [False, True])
def test_upernet_is_that_of_transformers(training):
    pytest.importorskip("transformers")
    channels = [4, 6, 8, 10]
    head = statistics(UperNetHead(channels, 8, 3, dropout=0.0)).train(training)
    theirs = upernet_of_transformers(head, channels).train(training)
    pyramid = maps(*channels, batch=3, height=56, width=72)
    found, expected = head(pyramid), theirs(pyramid)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weights = [
        head.pooling.layers[1].conv.weight,
        theirs.psp_modules.blocks[1].layers[1].conv.weight,
    ]
    pull = torch.randn_like(found)
    ours, wanted = (
        torch.autograd.grad((x * pull).sum(), w)[0]
        for x, w in zip((found, expected), weights, strict=True)
    )
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 20), width=st.integers(1, 20), bins=st.sampled_from([1, 2, 3, 6]))
def test_bins_are_those_of_adaptive_pooling(height, width, bins):
    x = torch.randn(2, 3, height, width)
    torch.testing.assert_close(pool_to_bins(x, bins), F.adaptive_avg_pool2d(x, bins))


def test_one_value_is_normalised_by_running_statistics():
    """BatchNorm refuses to learn from one value per channel, which a bin of one image is."""
    pooling = statistics(PyramidPooling(6, 4)).train()
    before = [layer.bn.running_mean.clone() for layer in pooling.layers]
    x = torch.randn(1, 6, 8, 12)
    pooling(x).sum().backward()
    assert all(layer.training and layer.bn.training for layer in pooling.layers)
    moved = [
        not torch.equal(layer.bn.running_mean, old)
        for layer, old in zip(pooling.layers, before, strict=True)
    ]
    assert moved == [False, True, True, True]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pooling.parameters())
    pooling(torch.randn(2, 6, 8, 12))
    assert not torch.equal(pooling.layers[0].bn.running_mean, before[0])


def test_the_auxiliary_head_of_upernet():
    model, images, masks = (
        build("upernet", auxiliary_weight=0.4),
        torch.randn(2, 3, 64, 96),
        labels(),
    )
    model.eval()
    with torch.no_grad():
        parts = model.losses(images, masks)
        maps_ = model.neck(model.backbone(images))
        logits = model.auxiliary_head(maps_[2])
        full = F.interpolate(logits, (64, 96), mode="bilinear")
        expected = 0.4 * F.cross_entropy(full, masks, ignore_index=255)
        assert list(model(images)) == ["logits"]
    assert parts["auxiliary"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert list(build("upernet", auxiliary=False).losses(images, masks)) == ["class"]
