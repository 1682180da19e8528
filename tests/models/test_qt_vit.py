"""QT-ViT models: sizes, shapes, numerics, state, and what timm expects of a model."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay

import castling
from castling.attention import auxiliaries, set_progress
from castling.attention.multi_scale import MultiScaleAttention, resize_table

PUBLISHED = {  # millions of parameters, G multiply-accumulates at 224 pixels
    "qt_vit_1": (9.353, 0.520),
    "qt_vit_2": (24.858, 1.586),
    "qt_vit_3": (49.701, 3.956),
    "qt_vit_4": (52.956, 5.259),
    "qt_vit_5": (64.109, 6.951),
    "qt_vit_6": (246.841, 27.588),
}


def pico(**options):
    torch.manual_seed(0)
    model = timm.create_model("qt_vit_pico", **({"num_classes": 10} | options)).eval()
    for module in attentions(model):
        if module.positional_encoding is not None:
            torch.nn.init.normal_(module.positional_encoding, std=0.5)
    return model


def attentions(model):
    return [module for module in model.modules() if isinstance(module, MultiScaleAttention)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    parameters, macs = PUBLISHED[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == parameters
    assert castling.macs(model, (3, 224, 224)).total / 1e9 == pytest.approx(macs, rel=0.01)


def test_pico_is_small_and_works_at_32_pixels():
    model = timm.create_model("qt_vit_pico")
    assert sum(p.numel() for p in model.parameters()) < 300_000
    out = model(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 1000)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert [m.positional_encoding.shape[-2:] for m in attentions(model)] == [(8, 8), (4, 4)]


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (33, 50), (17, 8), (1, 1)])
def test_any_height_and_width(size):
    out = pico()(torch.randn(2, 3, *size))
    assert out.shape == (2, 10)
    assert out.isfinite().all()


def test_published_strides_and_table_sizes_at_other_image_sizes():
    with torch.device("meta"):
        model = timm.create_model("qt_vit_1", img_size=(160, 225))
    grids = {tuple(m.positional_encoding.shape[-2:]) for m in attentions(model)}
    assert grids == {(10, 15), (5, 8)}


def test_transposed_image_and_network_agree():
    """Rows and columns of non-square maps are kept apart."""
    model = pico()
    turned = copy.deepcopy(model)
    with torch.no_grad():
        for module in turned.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_(module.weight.transpose(2, 3).clone())
        for module in attentions(turned):
            module.positional_encoding.copy_(module.positional_encoding.transpose(2, 3).clone())
        x = torch.randn(1, 3, 32, 64)
        assert torch.allclose(model(x), turned(x.mT), atol=1e-5)


def test_features_only():
    model = timm.create_model("qt_vit_pico", features_only=True)
    maps = model(torch.randn(1, 3, 32, 64))
    assert model.feature_info.channels() == [m.shape[1] for m in maps]
    assert [(32 // r, 64 // r) for r in model.feature_info.reduction()] == [
        tuple(m.shape[-2:]) for m in maps
    ]
    picked = timm.create_model("qt_vit_1", features_only=True, out_indices=(1, 3))
    assert picked.feature_info.reduction() == [8, 32]
    assert [tuple(m.shape[1:]) for m in picked(torch.randn(1, 3, 64, 96))] == [
        (64, 8, 12),
        (256, 2, 3),
    ]


def test_reset_classifier_and_input_channels():
    model = pico(in_chans=1)
    model.reset_classifier(7)
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 7)
    model.reset_classifier(0)
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 80)


@pytest.mark.parametrize("attention", castling.attention.list_kernels())
def test_every_registered_kernel(attention):
    model = pico(attention=attention).train()
    out = model(torch.randn(2, 3, 32, 32))
    out.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("local", ["token1d", "grid2d"])
def test_local_residuals_combine(local):
    model = pico(attention=castling.QuadraticTaylor(local=local))
    assert all(module.dconv is not None for module in attentions(model))
    assert model(torch.randn(1, 3, 32, 48)).isfinite().all()


def test_auxiliary_branch_combines_and_switches_exactly():
    plain = pico()
    model = pico(attention=castling.QuadraticTaylor(auxiliary=castling.MaskedSoftmax()))
    model.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert len(auxiliaries(model)) == 2
    with torch.no_grad():
        assert not torch.allclose(model(images), plain(images), atol=1e-4)
        set_progress(model, 1.0)
        castling.switch_(model, [images])
        assert not auxiliaries(model)
        assert torch.equal(model(images), plain(images))


def test_ablations_leave_parts_out():
    state = pico(shortcut=False, position=False).state_dict()
    assert not any(".bn." in name or "positional_encoding" in name for name in state)
    full = pico().state_dict()
    blocks = {name for name in full if name.endswith("ones_scale1")}
    assert blocks == {
        f"stages.{stage}.blocks.1.context_module.main.kernel.ones_scale1" for stage in (2, 3)
    }


def test_position_is_added_to_keys_and_shortcut_is_gelu_of_bn():
    module = attentions(pico())[0]
    x = torch.randn(2, 32, 8, 8)
    seen = {}
    module.proj = torch.nn.Identity()
    attend = module.attend

    def spy(query, key, value, **options):
        seen.update(key=key, value=value)
        seen["out"] = attend(query, key, value, **options)
        return seen["out"]

    module.attend = spy
    out = module(x)
    qkv = module.qkv(x)
    heads = torch.cat((qkv, module.aggreg[0](qkv)), 1).unflatten(1, (-1, 3, 16))
    key = heads[:, :, 1] + module.positional_encoding.unflatten(1, (-1, 16))
    assert torch.allclose(seen["key"], key.flatten(3).permute(0, 3, 1, 2), atol=1e-6)
    value = heads[:, :, 2].flatten(3)
    shortcut = torch.nn.functional.gelu(module.bn(value.flatten(0, 1).unsqueeze(-1)))
    expected = seen["out"].permute(0, 2, 3, 1) + shortcut.reshape(value.shape)
    assert torch.allclose(out.flatten(2), expected.flatten(1, 2), atol=1e-6)


def test_resized_table_is_kept_and_follows_the_weights():
    model, reference = pico(), pico()
    images = torch.randn(1, 3, 48, 64)
    module = attentions(model)[0]
    with torch.no_grad():
        first = model(images)
        kept = module._resized[1]
        assert torch.equal(model(images), first)
        assert module._resized[1] is kept
        for changed in (model, reference):
            for attention in attentions(changed):
                attention.positional_encoding.data.add_(1.0)  # unseen by version counters
                attention.positional_encoding.data[:, ::2] *= 2
        assert torch.equal(model(images), reference(images))
    model(images).sum().backward()
    assert module.positional_encoding.grad.abs().sum() > 0


def test_set_input_size_resizes_for_good():
    model = pico()
    images = torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        expected = model(images)
        model.set_input_size((48, 80))
        assert attentions(model)[0].positional_encoding.shape[-2:] == (12, 20)
        assert torch.allclose(model(images), expected, atol=1e-6)


def test_official_block_names_and_other_grids_load():
    model = pico()
    state = {
        name.replace("kernel.ones_scale1", "ones_scale1"): tensor
        for name, tensor in model.state_dict().items()
    }
    for name in state:
        if name.endswith("ones_scale1"):
            state[name] = torch.tensor(0.3)
    larger = pico(img_size=64)
    larger.load_state_dict(state)
    first, source = attentions(larger)[0], attentions(model)[0]
    assert first.kernel.ones_scale1.item() == pytest.approx(0.3)
    expected = resize_table(source.positional_encoding, (16, 16))
    assert torch.equal(first.positional_encoding, expected)


def test_no_weight_decay_names_scalar_norm_and_table():
    model = pico()
    names = model.no_weight_decay()
    prefix = "stages.3.blocks.1.context_module.main."
    expected = ("kernel.ones_scale1", "bn.weight", "bn.bias", "positional_encoding")
    assert {prefix + name for name in expected} <= names
    assert names <= {name for name, _ in model.named_parameters()}
    decayed = param_groups_weight_decay(model, 0.1, no_weight_decay_list=names)[1]["params"]
    assert not any(p is m.positional_encoding for m in attentions(model) for p in decayed)


def test_bfloat16_autocast_and_cast():
    model, images = pico(), torch.randn(2, 3, 48, 32)
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images)
    assert (out.float() - expected).norm() <= 0.05 * expected.norm()
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        model(images).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    model = pico().bfloat16()
    assert model(images.bfloat16()).dtype is torch.bfloat16
    assert attentions(model)[0](torch.randn(1, 32, 5, 7).bfloat16()).dtype is torch.bfloat16


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_compiles_without_a_graph_break(size):
    model, images = pico(), torch.randn(2, 3, *size)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(images), model(images), atol=1e-5)


def test_exports_with_height_and_width_left_open():
    model = pico()
    side = {"min": 16, "max": 512}
    shapes = (
        {
            0: torch.export.Dim("batch"),
            2: torch.export.Dim("height", **side),
            3: torch.export.Dim("width", **side),
        },
    )
    program = torch.export.export(model, (torch.randn(2, 3, 48, 64),), dynamic_shapes=shapes)
    exported = program.module()
    for shape in ((1, 3, 32, 32), (3, 3, 80, 50)):
        images = torch.randn(*shape)
        with torch.no_grad():
            assert torch.allclose(exported(images), model(images), atol=1e-5)


def test_copy_pickle_and_state_round_trip(tmp_path):
    model, images = pico(), torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        expected = model(images)
        torch.save(model, tmp_path / "model.pt")
        torch.save(model.state_dict(), tmp_path / "state.pt")
        opened = torch.load(tmp_path / "model.pt", weights_only=False)
        fresh = timm.create_model("qt_vit_pico", num_classes=10).eval()
        fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for other in (copy.deepcopy(model), opened, fresh):
            assert torch.equal(other(images), expected)


def test_stochastic_depth_only_in_training():
    model, plain = pico(drop_path_rate=0.9), pico()
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), plain(images))
    features = model.train().forward_features
    torch.manual_seed(1)
    first = features(images)
    torch.manual_seed(2)
    assert not torch.allclose(first, features(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 0}, "img_size must be positive"),
        ({"strides": (2, 2)}, "strides must be 5 numbers"),
        ({"strides": (2, 2, 3, 2, 2)}, "each 1 or 2"),
        ({"drop_path_rate": 1.5}, "drop_path_rate must lie"),
        ({"attention": "quadratic_tailor"}, "unknown attention"),
    ],
)
def test_meaningless_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("qt_vit_pico", **options)
