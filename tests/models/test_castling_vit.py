"""The Castling models: registry, sizes, features, precision, and what timm expects of a model."""

import copy
import io

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import castling
from castling.attention import auxiliaries, set_progress
from castling.surgery import HostAttention

PICO = ["castling_deit_pico", "castling_levit_pico", "castling_mvitv2_pico"]
NAMED = {
    "castling_deit_tiny_patch16_224": (5_717_416, 12),
    "castling_deit_small_patch16_224": (None, 12),
    "castling_deit_base_patch16_224": (None, 12),
    "castling_vit_base_patch16": (None, 12),
    "castling_levit_128s": (None, 11),
    "castling_levit_128": (None, 14),
    "castling_levit_192": (None, 14),
    "castling_levit_256": (None, 14),
    "castling_levit_384": (None, 14),
    "castling_mvitv2_tiny": (None, 10),
    "castling_mvitv2_small": (None, 16),
    "castling_mvitv2_base": (None, 24),
}
HOST_OF = {
    "castling_vit_base_patch16": "vit_base_patch16_224",
    **{name: name.removeprefix("castling_") for name in NAMED if "vit_base" not in name},
}


def size(name):
    return 32 if "deit" in name else 64


@pytest.mark.parametrize("name", NAMED)
def test_named_models_are_their_hosts_converted(name):
    """Every layer converted; the only new parameters are the local residuals' filters."""
    with torch.device("meta"):
        model = timm.create_model(name)
        host = timm.create_model(HOST_OF[name])
    layers = [m for m in model.modules() if isinstance(m, HostAttention)]
    assert len(layers) == NAMED[name][1]
    assert len(auxiliaries(model)) == len(layers)
    local = sum(layer.num_heads * layer.value_dim * 9 for layer in layers)
    total = sum(p.numel() for p in model.parameters())
    assert total == sum(p.numel() for p in host.parameters()) + local
    missing = set(host.state_dict()) - set(model.state_dict())
    assert not missing
    new = set(model.state_dict()) - set(host.state_dict())
    assert all(name.endswith("dconv.weight") for name in new)


def test_published_parameter_counts():
    """Castling-DeiT-B 87.2 M, Castling-MViTv2-B 51.9 M, Castling-DeiT-T 5.6 M."""
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in timm.create_model(name, **options).parameters()) / 1e6
            for name, options in {
                "castling_deit_base_patch16_224": {"distilled": True},
                "castling_mvitv2_base": {},
                "castling_deit_tiny_patch16_224": {},
            }.items()
        }
    assert counts["castling_deit_base_patch16_224"] == pytest.approx(87.2, rel=0.01)
    assert counts["castling_mvitv2_base"] == pytest.approx(51.9, rel=0.01)
    assert counts["castling_deit_tiny_patch16_224"] == pytest.approx(5.7, rel=0.02)


def test_listed_by_us_and_by_timm():
    names = castling.list_models("castling_*")
    assert set(NAMED) | set(PICO) <= set(names)
    assert set(names) <= set(timm.list_models("castling_*"))
    assert "vit_tiny_patch16_224" not in castling.list_models()


@pytest.mark.parametrize("name", PICO)
@pytest.mark.parametrize("shape", [(1.0, 1.0), (1.0, 1.5), (2.0, 0.5), (1.25, 1.25)])
def test_any_size(name, shape):
    model = timm.create_model(name, num_classes=5).eval()
    height, width = (int(factor * size(name)) for factor in shape)
    for progress in (0.0, 1.0):
        set_progress(model, progress)
        assert torch.isfinite(model(torch.randn(2, 3, height, width))).all()


def test_a_size_that_cannot_be_says_so():
    model = timm.create_model("castling_deit_pico")
    with pytest.raises(ValueError, match=r"30×32 pixels is not a whole number of 4×4 patches"):
        model(torch.randn(1, 3, 30, 32))


@pytest.mark.parametrize("name", PICO)
def test_odd_sizes_where_the_stem_rounds(name):
    if "deit" in name:
        pytest.skip("a patch embedding does not round")
    model = timm.create_model(name, num_classes=5).eval()
    assert torch.isfinite(model(torch.randn(1, 3, 71, 53))).all()


@pytest.mark.parametrize("name", PICO)
def test_features(name):
    model = timm.create_model(name, features_only=True).eval()
    height, width = size(name) * 2, size(name)
    features = model(torch.randn(2, 3, height, width))
    info = model.feature_info
    assert len(features) == len(info.channels()) > 1
    for feature, channels, reduction in zip(
        features, info.channels(), info.reduction(), strict=True
    ):
        assert feature.shape == (2, channels, height // reduction, width // reduction)
    chosen = timm.create_model(name, features_only=True, out_indices=(1,))
    assert len(chosen(torch.randn(1, 3, height, width))) == 1


@pytest.mark.parametrize("name", PICO)
def test_reset_classifier(name):
    model = timm.create_model(name, num_classes=5)
    model.reset_classifier(7)
    x = torch.randn(2, 3, size(name), size(name))
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape[1] == model.num_features


@pytest.mark.parametrize("name", PICO)
def test_bfloat16_autocast(name):
    model = timm.create_model(name, num_classes=5)
    x = torch.randn(4, 3, size(name), size(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x).float().square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("name", "progress"),
    [*((name, 0.0) for name in PICO), ("castling_deit_pico", 1.0), ("castling_levit_pico", 1.0)],
)
def test_compiles_without_graph_breaks(name, progress):
    model = timm.create_model(name, num_classes=5).eval()
    set_progress(model, progress)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_compiles_for_sizes_not_seen():
    model = timm.create_model("castling_deit_pico", num_classes=5).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for shape in ((2, 3, 32, 32), (3, 3, 32, 48)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "attention", ["linear_angular", pytest.param("softmax", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("name", "multiple"), zip(PICO, (4, 8, 8), strict=True))
def test_exports_with_height_and_width_left_open(name, multiple, attention):
    model = timm.create_model(name, num_classes=5, attention=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some hosts begin with branches of zeros
            parameter.add_(0.1 * torch.randn_like(parameter))
    # A map of one token would be a program of its own.
    height, width = (multiple * torch.export.Dim(side, min=5, max=64) for side in ("h", "w"))
    program = torch.export.export(
        *(model, (torch.randn(2, 3, 64, 96),)),
        dynamic_shapes=({0: torch.export.Dim("batch"), 2: height, 3: width},),
    )
    assert attention == "softmax" or any(
        "castling.linear_attention" in str(node.target) for node in program.graph.nodes
    )
    exported = program.module()
    for shape in ((2, 3, 64, 96), (1, 3, 64, 64), (3, 3, 120, 56), (1, 3, 48, 104)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PICO)
def test_round_trip_through_safetensors(name, tmp_path):
    model = timm.create_model(name, num_classes=5).eval()
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    torch.manual_seed(1)
    twin = timm.create_model(name, num_classes=5).eval()
    twin.load_state_dict(load_file(tmp_path / "m.safetensors"))
    x = torch.randn(1, 3, size(name), size(name))
    assert torch.equal(twin(x), model(x))
    whole = io.BytesIO()
    torch.save(copy.deepcopy(model), whole)


@pytest.mark.parametrize("name", PICO)
def test_attention_and_layers_by_keyword(name):
    model = timm.create_model(name, attention="relu_linear", where=lambda n, m: "1" in n)
    kinds = {type(m.config).__name__ for m in model.modules() if isinstance(m, HostAttention)}
    assert kinds == {"ReLULinear"}
    assert not auxiliaries(model)
    with pytest.raises(ValueError, match="unknown attention"):
        timm.create_model(name, attention="relu")


@pytest.mark.parametrize("name", PICO)
def test_gradients_reach_every_parameter_that_is_used(name):
    model = timm.create_model(name, num_classes=5)
    for parameter in model.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.5)
    model(torch.randn(4, 3, size(name), size(name))).square().sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # With a class token only that token leaves the last block, and a grid has no place for it.
    assert unused == (["blocks.3.attn.dconv.weight"] if "deit" in name else [])


def test_distilled_token():
    model = timm.create_model(
        "castling_deit_tiny_patch16_224", distilled=True, depth=2, img_size=32, num_classes=5
    )
    assert model.blocks[0].attn.place.num_prefix_tokens == 2
    assert model.eval()(torch.randn(1, 3, 32, 48)).shape == (1, 5)


def test_gradient_checkpointing():
    model = timm.create_model("castling_deit_pico", num_classes=5)
    x = torch.randn(2, 3, 32, 32)
    model(x).sum().backward()
    expected = model.blocks[0].attn.qkv.weight.grad.clone()
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).sum().backward()
    torch.testing.assert_close(model.blocks[0].attn.qkv.weight.grad, expected)
