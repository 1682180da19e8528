"""What timm's users rely on in every model of its registry, for ours: one test for each kind."""

import copy
import io

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import create_feature_extractor, get_graph_node_names, select_adaptive_pool2d
from timm.models import get_pretrained_cfg, get_pretrained_cfg_value
from timm.models._hub import save_for_hf

import castling

PICO = castling.list_models("*_pico")
NAMES = castling.list_models()
CONVERTED = castling.list_models("castling_*")
WITH_ATTENTION = [name for name in PICO if name not in ("deit_pico", "esnet_pico")]
# timm's feature_info of MViTv2 names modules that do not exist ("block.0").
FX_FEATURES = [name for name in PICO if "mvitv2" not in name]


def images(name, batch=2):
    return torch.randn(batch, *get_pretrained_cfg_value(name, "input_size"))


def randomised(model):
    """Without the zero weights that hide what stands behind them, such as LeViT's last norms."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.0)
    return model


def extractor(model):
    """A graph of ``torch.fx`` from images to logits, as timm's own tests make it."""
    return create_feature_extractor(model, [get_graph_node_names(model)[1][-1]])


@pytest.mark.parametrize("name", PICO)
def test_fx_graph_gives_the_same_logits(name):
    model = randomised(timm.create_model(name)).eval()
    graph = extractor(copy.deepcopy(model))
    x = images(name)
    with torch.no_grad():
        (found,) = graph(x).values()
        torch.testing.assert_close(found, model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", PICO)
def test_fx_graph_gives_every_gradient(name):
    model = randomised(timm.create_model(name, num_classes=5)).eval()
    graph = extractor(copy.deepcopy(model))
    x = images(name)
    gradients = []
    for each in (model, graph):
        output = each(x) if each is model else next(iter(each(x).values()))
        output.square().mean().backward()
        gradients.append({n: p.grad for n, p in each.named_parameters()})
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient)


@pytest.mark.parametrize("name", FX_FEATURES)
def test_features_through_fx(name):
    model = timm.create_model(name, features_only=True, feature_cls="fx").eval()
    with torch.no_grad():
        features = model(images(name))
    assert len(features) == len(model.feature_info.channels()) >= 3
    assert all(feature.isfinite().all() for feature in features)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_scripting_is_refused_in_one_line(name):
    for kwargs in ({}, {"features_only": True}):
        model = timm.create_model(name, **kwargs)
        with pytest.raises(
            RuntimeError, match=r"use torch\.jit\.trace.* or torch\.export"
        ) as refused:
            torch.jit.script(model)
        assert "\n" not in str(refused.value)
        model(images(name))  # the model itself is as before


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("deit_pico", {"dynamic_img_size": False, "scriptable": True}), ("esnet_pico", {})],
)
def test_models_without_our_attention_can_be_scripted(name, kwargs):
    model = timm.create_model(name, **kwargs).eval()
    x = images(name)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", PICO)
def test_tracing_keeps_the_batch_open(name):
    model = randomised(timm.create_model(name)).eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, images(name)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    x = images(name, batch=3)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_metadata_of_its_own(name):
    cfg = get_pretrained_cfg(name)
    assert cfg.architecture == name
    assert not cfg.has_weights
    assert name in timm.list_models(name_matches_cfg=True)
    assert name not in timm.list_models(pretrained=True)
    model = timm.create_model(name, device="meta")
    assert model.pretrained_cfg["architecture"] == name
    assert model.default_cfg is model.pretrained_cfg
    assert not {"url", "file", "hf_hub_id"} & {k for k, v in model.pretrained_cfg.items() if v}
    state = model.state_dict()
    for layers in (cfg.classifier, cfg.first_conv):
        for layer in (layers,) if isinstance(layers, str) else layers:
            assert f"{layer}.weight" in state
    assert model.in_chans == cfg.input_size[0]


@pytest.mark.parametrize("name", [name for name in CONVERTED if not name.endswith("_pico")])
def test_metadata_are_the_hosts(name):
    host = name.removeprefix("castling_")
    own, hosts = (
        get_pretrained_cfg(name),
        get_pretrained_cfg(host if timm.is_model(host) else "vit_base_patch16_224"),
    )
    for field in ("input_size", "mean", "std", "interpolation", "crop_pct", "classifier"):
        assert getattr(own, field) == getattr(hosts, field)


def test_the_tag_of_the_hosts_weights_chooses_among_its_metadata():
    name = "castling_vit_base_patch16.augreg2_in21k_ft_in1k"
    cfg = timm.create_model(name, device="meta").pretrained_cfg
    assert cfg["architecture"] == "castling_vit_base_patch16"
    assert cfg["mean"] == get_pretrained_cfg("vit_base_patch16_224.augreg2_in21k_ft_in1k").mean
    with pytest.raises(RuntimeError, match="tag"):
        timm.create_model("castling_vit_base_patch16.unheard_of", device="meta")


def test_the_distilled_model_names_both_classifiers():
    model = timm.create_model("castling_deit_tiny_patch16_224", distilled=True, device="meta")
    assert tuple(model.pretrained_cfg["classifier"]) == ("head", "head_dist")
    assert model.pretrained_cfg["architecture"] == "castling_deit_tiny_patch16_224"


@pytest.mark.parametrize("name", ["castling_deit_tiny_patch16_224", "castling_levit_128s"])
def test_pretrained_weights_are_the_hosts_softmax_weights(name, tmp_path):
    host = timm.create_model(name.removeprefix("castling_"))
    save_file(host.state_dict(), tmp_path / "host.safetensors")
    overlay = {"file": str(tmp_path / "host.safetensors"), "mean": (0.1, 0.2, 0.3)}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    state = model.state_dict()
    for key, value in host.state_dict().items():
        assert torch.equal(state[key], value), key
    described = model.default_cfg
    assert described["mean"] == (0.1, 0.2, 0.3)  # as asked, and the file is not what it holds now
    assert described["architecture"] == name
    assert not described.get("file")


@pytest.mark.parametrize("name", [*PICO, "castling_deit_tiny_patch16_224"])
def test_timm_saves_and_opens(name, tmp_path):
    model = randomised(timm.create_model(name, num_classes=3)).eval()
    save_for_hf(model, tmp_path)
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(name)
    with torch.no_grad():
        torch.testing.assert_close(opened(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", PICO)
def test_a_checkpoint_without_classifier_is_opened_again(name, tmp_path):
    model = randomised(timm.create_model(name, num_classes=0)).eval()
    save_file(dict(sorted(model.state_dict().items())), tmp_path / "headless.safetensors")
    opened = timm.create_model(
        name, num_classes=0, checkpoint_path=tmp_path / "headless.safetensors"
    ).eval()
    x = images(name)
    with torch.no_grad():
        torch.testing.assert_close(opened(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in PICO if not name.startswith("qt_vit")])
def test_a_new_classifier_keeps_the_pool(name):
    """(QT-ViT's head cannot do without one, as its host's.)"""
    unpooled = timm.create_model(name, num_classes=0, global_pool="").eval()
    x = images(name)
    with torch.no_grad():
        before = unpooled(x)
        unpooled.reset_classifier(0)
        torch.testing.assert_close(unpooled(x), before)
        assert before.dim() > 2
        unpooled.reset_classifier(3, "avg")
        assert unpooled(x).shape == (2, 3)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_cas_vit_pools_as_timm_does(pool):
    model = timm.create_model("cas_vit_pico", global_pool=pool, num_classes=3).eval()
    with torch.no_grad():
        features = model.forward_features(images("cas_vit_pico"))
        expected = select_adaptive_pool2d(features, pool).flatten(1)
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected)
        assert model.head_hidden_size == expected.shape[1]
        model.reset_classifier(5)  # keeps the pool
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected)
        assert model(images("cas_vit_pico")).shape == (2, 5)


@torch.no_grad()
def test_cas_vit_without_pooling_gives_channels_first():
    model = timm.create_model("cas_vit_pico", num_classes=0, global_pool="").eval()
    x = images("cas_vit_pico")
    torch.testing.assert_close(model(x), model.forward_features(x))
    assert model(x).shape == (2, model.num_features, 2, 2)
    model.reset_classifier(7)
    at_positions = model(x)
    assert at_positions.shape == (2, 7, 2, 2)
    model.reset_classifier(0)


@pytest.mark.parametrize("pool", ["max", "catavgmax", ""])
def test_folding_cas_vit_minds_the_pool(pool):
    model = randomised(timm.create_model("cas_vit_pico", num_classes=3, global_pool=pool)).eval()
    with torch.no_grad():
        model.norm.weight.mul_(torch.randn_like(model.norm.weight).sign())
    x = images("cas_vit_pico")
    with torch.no_grad():
        before = model(x)
        castling.fold_(model)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PICO)
def test_pruned_models_compute_the_same_maps(name):
    model = randomised(timm.create_model(name)).eval()
    x = images(name)
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        for level in range(len(maps)):
            pruned = copy.deepcopy(model)
            (kept,) = pruned.prune_intermediate_layers([level], prune_norm=True)
            final, found = pruned.forward_intermediates(x, indices=[kept])
            torch.testing.assert_close(found[0], maps[level], rtol=0, atol=0)
            torch.testing.assert_close(pruned.forward_features(x), final, rtol=0, atol=0)
            if final.shape == found[0].shape:
                torch.testing.assert_close(final, found[0], rtol=0, atol=0)
            pruned(x)


def test_a_classifier_goes_with_the_stage_it_was_made_for():
    model = timm.create_model("cas_vit_pico")
    model.prune_intermediate_layers([1], prune_head=False)
    assert model.eval()(images("cas_vit_pico")).shape[1] == model.num_features == 32


@pytest.mark.parametrize("name", PICO)
def test_gradient_checkpointing_of_feature_models(name):
    x = images(name)
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(name, features_only=True).train()
        model.set_grad_checkpointing(enable)
        sum(feature.square().mean() for feature in model(x)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PICO)
def test_at_least_three_feature_levels_by_default(name):
    assert len(timm.create_model(name, features_only=True).feature_info.channels()) >= 3


@pytest.mark.parametrize("name", PICO)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_is_chosen_at_creation(name, dtype):
    model = timm.create_model(name, dtype=dtype, device="cpu", num_classes=3).eval()
    floats = [t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()]
    assert {t.dtype for t in floats} == {dtype}
    with torch.no_grad():
        assert model(images(name).to(dtype)).dtype == dtype
    reference = timm.create_model(name, num_classes=3)
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in reference.state_dict().items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_device_is_chosen_at_creation(name):
    model = timm.create_model(name, device="meta")
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])


def test_a_resized_qt_vit_is_saved_as_it_is(tmp_path):
    model = timm.create_model("qt_vit_pico", num_classes=3).eval()
    model.set_input_size((64, 96))
    save_for_hf(model, tmp_path)
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(opened(x), model(x), rtol=0, atol=0)
