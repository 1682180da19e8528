"""LeViT of stride 8: Castling backbones and their softmax twins."""

import pytest
import timm
import torch

import castling
from castling.attention import auxiliaries
from castling.models.backbone import build_backbone
from castling.surgery import attention_layers

SIZES = ["s", "m", "l"]
#: Attention layers of each size, and those of them with an auxiliary branch.
LAYERS = {"s": (8, 6), "m": (9, 7), "l": (13, 10)}
CHANNELS = {"s": (64, 128, 160), "m": (80, 160, 240), "l": (128, 256, 384)}
#: Multiply-accumulates of the softmax twins at 416 pixels, in G.
SOFTMAX = {"s": 2.954, "m": 4.575, "l": 10.067}
CASTLED = {"s": 0.757, "m": 1.372, "l": 4.100}


@pytest.mark.parametrize("size", SIZES)
def test_layout(size):
    with torch.device("meta"):
        model = timm.create_model(f"castling_levit_s8_{size}", features_only=True)
        twin = timm.create_model(f"levit_s8_{size}", features_only=True)
    layers, branches = LAYERS[size]
    assert {layer.config.name for layer in attention_layers(model).values()} == {"linear_angular"}
    assert {layer.config.name for layer in attention_layers(twin).values()} == {"softmax"}
    assert len(attention_layers(model)) == len(attention_layers(twin)) == layers
    assert len(auxiliaries(model)) == branches
    assert not any("stages.0" in name or "stages_0" in name for name in auxiliaries(model))
    assert not auxiliaries(twin)
    for each in (model, twin):
        assert tuple(each.feature_info.channels()) == CHANNELS[size]
        assert each.feature_info.reduction() == [8, 16, 32]


@pytest.mark.parametrize(
    "size",
    ["s", pytest.param("m", marks=pytest.mark.slow), pytest.param("l", marks=pytest.mark.slow)],
)
def test_linear_attention_pays_at_416_pixels(size):
    with torch.device("meta"):
        twin = timm.create_model(f"levit_s8_{size}", features_only=True)
        castled = timm.create_model(
            f"castling_levit_s8_{size}", features_only=True, attention=castling.LinearAngular()
        )
    for model, expected in ((twin, SOFTMAX[size]), (castled, CASTLED[size])):
        found = castling.macs(model, (3, 416, 416)).total / 1e9
        assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["castling_levit_s8_pico", "levit_s8_pico"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 32), (64, 160)])
def test_images_of_any_size(name, height, width):
    model = timm.create_model(name, features_only=True).train()
    maps = model(torch.randn(2, 3, height, width))
    for each, channels, stride in zip(maps, (32, 48, 64), (8, 16, 32), strict=True):
        assert each.shape == (2, channels, height // stride, width // stride)
    sum(each.square().mean() for each in maps).backward()
    used = {n: p for n, p in model.named_parameters() if "attention_biases" not in n}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in used.values())


@torch.no_grad()
def test_the_softmax_twin_is_timms_levit():
    """At the size it was made for, with the same weights."""
    host = timm.models.levit.Levit(
        img_size=64,
        stem_type="s8",
        embed_dim=(32, 48, 64),
        key_dim=8,
        depth=(1, 1, 1),
        num_heads=(2, 3, 4),
        down_op="subsample",
        num_classes=5,
    ).eval()
    for name, parameter in host.named_parameters():
        if parameter.dim() == 1 or "biases" in name:
            parameter.uniform_(0.5, 1.5)
    twin = timm.create_model("levit_s8_pico", num_classes=5).eval()
    twin.load_state_dict(host.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(twin(images), host(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_castling_the_twin_gives_the_castling_backbone():
    twin = timm.create_model("levit_s8_pico", num_classes=5).eval()
    model = timm.create_model("castling_levit_s8_pico", num_classes=5).eval()
    stages = ("stages.1", "stages.2")
    castling.linearize_(
        twin,
        castling.LinearAngular(),
        {
            "stages.0": castling.LinearAngular(),
            **{name: castling.LinearAngular(auxiliary=castling.MaskedSoftmax()) for name in stages},
        },
    )
    twin.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(twin.eval()(images), model(images))


def test_options_and_a_choice_of_layers():
    other = timm.create_model("castling_levit_s8_pico", attention="relu_linear")
    assert {layer.config.name for layer in attention_layers(other).values()} == {"relu_linear"}
    some = timm.create_model("castling_levit_s8_pico", where="stages.2")
    kinds = {
        name: type(layer).__module__.startswith("castling")
        for name, layer in attention_layers(some).items()
    }
    assert {name for name, ours in kinds.items() if ours} == {
        name for name in kinds if name.startswith("stages.2")
    }
    backbone = build_backbone("castling_levit_s8_pico", {}, (16, 32))
    assert backbone.channels == (48, 64)
