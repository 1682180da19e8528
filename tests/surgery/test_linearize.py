"""``linearize_`` on timm's hosts: weights kept, softmax returns, layers chosen, grids found."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import castling
from castling.attention import attention_config, list_kernels
from castling.attention.config import BareConfig
from castling.surgery import HostAttention, convertible, linearize_, strip_, token_grid

HOSTS = {
    "deit": ("deit_tiny_patch16_224", {"depth": 2, "img_size": 64}, (64, 64)),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {"depth": 2, "img_size": 64}, (64, 64)),
    "vit_avg_registers": (
        "vit_tiny_patch16_224",
        {
            "depth": 2,
            "img_size": 64,
            "reg_tokens": 3,
            "class_token": False,
            "global_pool": "avg",
            "qk_norm": True,
            "no_embed_class": True,
        },
        (64, 64),
    ),
    "eva02": ("eva02_tiny_patch14_224", {"depth": 2, "img_size": 56}, (56, 56)),
    "eva02_separate": (
        "eva02_base_patch16_clip_224",
        {"depth": 2, "img_size": (32, 64), "embed_dim": 128, "num_heads": 2},
        (32, 64),
    ),
    "dinov3": ("vit_small_patch16_dinov3", {"depth": 2}, (96, 64)),
    "rope_mixed": (
        "vit_small_patch16_rope_mixed_224",
        {"depth": 2, "img_size": (64, 96)},
        (64, 96),
    ),
    "grouped_keys": (
        "vit_large_patch16_sapiens2",
        {"depth": 2, "img_size": (96, 64), "embed_dim": 128, "num_heads": 4, "num_kv_heads": 2},
        (96, 64),
    ),
    "perception": (
        "vit_pe_core_tiny_patch16_384",
        {"depth": 2, "img_size": 64},
        (64, 64),
    ),
    "qwen3": (
        "qwen3_vit_88m",
        {"depth": 2, "embed_dim": 96, "num_heads": 3},
        (64, 96),
    ),
    "deepseek": (
        "deepseek_vit_412m_enc",
        {"depth": 2, "embed_dim": 96, "num_heads": 3},
        (84, 70),
    ),
    "levit": ("levit_128s", {"img_size": (64, 128)}, (64, 128)),
    "levit_conv": ("levit_conv_128s", {"img_size": 96}, (96, 96)),
    "mvitv2": ("mvitv2_tiny", {"img_size": 64}, (64, 64)),
}


def host(family):
    """A host whose every part matters: no zero-initialised gates, biases or batch statistics."""
    name, options, size = HOSTS[family]
    model = timm.create_model(name, num_classes=5, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1 or parameter.abs().max() == 0:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
        for label, parameter in model.named_parameters():
            if "attention_biases" in label or "rel_pos" in label or label == "head.weight":
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = None  # cumulative average: statistics of the batch below
        model.train()
        model(torch.randn(8, 3, *size, generator=generator))
    return model.eval(), torch.randn(2, 3, *size, generator=generator)


@pytest.mark.parametrize("family", HOSTS)
def test_softmax_as_target_returns_the_host(family):
    model, x = host(family)
    with torch.no_grad():
        expected = model(x)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        names = linearize_(model, castling.Softmax())
        assert names == list(convertible(model))
        assert all(isinstance(model.get_submodule(n), HostAttention) for n in names)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        # The test must be able to fail: a linear kernel gives something else.
        linearize_(model, castling.LinearAngular(local="none"))
        assert not torch.allclose(model(x), expected, rtol=1e-2, atol=1e-2)
        # And back again.
        linearize_(model, castling.Softmax())
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["levit", "levit_conv", "mvitv2"])
def test_score_biases_matter_to_softmax_and_to_the_branch(family):
    """Relative positions reach the scores of both; a linear kernel alone does not read them."""
    model, x = host(family)
    reads = {}
    for label, attention in {
        "softmax": castling.Softmax(),
        "branch": castling.LinearAngular(auxiliary=castling.MaskedSoftmax()),
        "bare": castling.LinearAngular(),
    }.items():
        twin = copy.deepcopy(model)
        linearize_(twin, attention)
        with torch.no_grad():
            before = twin(x)
            for name, parameter in twin.named_parameters():
                if "attention_biases" in name or "rel_pos" in name:
                    parameter.mul_(-3)
            reads[label] = not torch.allclose(twin(x), before, rtol=1e-4, atol=1e-5)
    assert reads == {"softmax": True, "branch": True, "bare": False}


@pytest.mark.parametrize(
    "family", [name for name in HOSTS if name not in ("eva02", "perception", "qwen3", "deepseek")]
)
@pytest.mark.parametrize(
    "attention", [n for n in list_kernels() if not isinstance(attention_config(n), BareConfig)]
)
def test_every_attention_in_every_host(family, attention):
    model, x = host(family)
    linearize_(model, attention)
    check_training_step(model, x)


def check_training_step(model, x):
    model.train()
    out = model(x)
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)


def test_convolutional_additive_where_every_token_has_a_place():
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=2, class_token=False, global_pool="avg"
    )
    linearize_(vit, "convolutional_additive")
    check_training_step(vit, torch.randn(2, 3, 64, 64))
    mvit, x = host("mvitv2")
    linearize_(mvit, "convolutional_additive", "stages.3.blocks.1")
    check_training_step(mvit, x)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("deit", "class_token=False"),
        ("levit", "as wide as its keys"),
        ("mvitv2", "position of its key"),
    ],
)
def test_convolutional_additive_refuses_other_hosts_with_advice(family, message):
    model, x = host(family)

    def convert_and_run():
        linearize_(model, "convolutional_additive")
        model(x)

    with pytest.raises(ValueError, match=message):
        convert_and_run()


def test_choice_of_layers():
    model = timm.create_model("deit_tiny_patch16_224", depth=4, img_size=32)

    def converted():
        return [n for n, m in model.named_modules() if isinstance(m, HostAttention)]

    assert linearize_(model, "linear_angular", "blocks.1.attn") == ["blocks.1.attn"]
    assert linearize_(model, "linear_angular", "blocks.[01].*") == [
        "blocks.0.attn",
        "blocks.1.attn",
    ]
    assert converted() == ["blocks.0.attn", "blocks.1.attn"]
    assert linearize_(model, "relu_linear", lambda name, module: "3" in name) == ["blocks.3.attn"]
    plan = {"blocks.2": {"name": "cosine"}, "blocks.0": None, "blocks.3": castling.Softmax()}
    assert linearize_(model, "linear_angular", plan) == ["blocks.2.attn", "blocks.3.attn"]
    kinds = [type(model.blocks[i].attn.config).__name__ for i in range(4)]
    assert kinds == ["LinearAngular", "LinearAngular", "Cosine", "Softmax"]
    assert torch.isfinite(model(torch.randn(1, 3, 32, 32))).all()


def test_stage_by_name():
    model = timm.create_model("levit_128s", img_size=96)
    names = linearize_(model, "linear_angular", "stages.0")
    assert names
    assert all(name.startswith("stages.0.") for name in names)


def test_wrong_choices_name_the_layers():
    model = timm.create_model("deit_tiny_patch16_224", depth=2, img_size=32)
    with pytest.raises(ValueError, match=r"blocks\.7.*blocks\.0\.attn, blocks\.1\.attn"):
        linearize_(model, "linear_angular", "blocks.7")
    with pytest.raises(ValueError, match="selects none"):
        linearize_(model, "linear_angular", lambda name, module: False)
    with pytest.raises(ValueError, match="no attention that can be replaced: nothing in it"):
        linearize_(timm.create_model("resnet10t"), "linear_angular")


def test_a_refused_layer_leaves_the_model_whole():
    model = timm.create_model("deit_tiny_patch16_224", depth=2, img_size=32)
    plan = {"blocks.0": "linear_angular", "blocks.1": {"name": "mean", "auxiliary": {"alpha": -1}}}
    with pytest.raises(ValueError, match="alpha"):
        linearize_(model, "linear_angular", plan)
    assert not any(isinstance(m, HostAttention) for m in model.modules())


def test_grids_are_shared_not_stale():
    """Two images of one token count but other shapes differ: the local residual sees the grid."""
    model = timm.create_model("castling_deit_pico", num_classes=5).eval()
    x = torch.randn(1, 3, 16, 64)
    wide = model(x)
    model(x.transpose(2, 3).contiguous())
    with castling.tap(model, "blocks.0") as taps:
        torch.testing.assert_close(model(x), wide)
    assert taps["blocks.0.attn"][0].grid == (4, 16)


def test_copies_and_pickles_have_their_own_geometry():
    model = timm.create_model("castling_levit_pico", num_classes=5).eval()
    x, other = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 96, 64)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        model(other)
        with castling.tap(model, "stages.0") as taps, castling.tap(twin, "stages.0") as twins:
            torch.testing.assert_close(twin(x), expected)
            model(other)
        assert twins["stages.0.blocks.0.attn"][0].grid == (8, 8)
        assert taps["stages.0.blocks.0.attn"][0].grid == (12, 8)
        geometries = [m.stages[0].blocks[0].attn.place.geometry for m in (model, twin)]
        assert geometries[0] is not geometries[1]


def test_one_hook_however_often_converted():
    model = timm.create_model("castling_deit_pico")
    hooked = (model, model.patch_embed, model.patch_embed.proj, model.blocks, model.blocks[0])
    before = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in hooked]
    for name in ("softmax", "mean", "linear_angular"):
        linearize_(model, name)
    linearize_(model, "cosine", "blocks.0")
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in hooked] == before
    assert before == [2, 2, 1, 2, 2]


def test_layers_that_cannot_know_their_grid_are_refused_at_once():
    block = nn.Sequential(VisionTransformer(depth=1, embed_dim=32, num_heads=2).blocks[0].attn)
    with pytest.raises(ValueError, match="cannot know the grid"):
        linearize_(block, castling.LinearAngular())
    dropping = timm.create_model("vit_tiny_patch16_224", depth=1, patch_drop_rate=0.5)
    with pytest.raises(ValueError, match="patch_drop_rate"):
        linearize_(dropping, castling.LinearAngular())
    assert not any(isinstance(m, HostAttention) for m in dropping.modules())
    linearize_(block, castling.LinearAngular(local="token1d"))
    assert block(torch.randn(1, 10, 32)).shape == (1, 10, 32)


def test_masks_in_a_vit():
    model = timm.create_model("castling_deit_pico").blocks[0].attn
    x = torch.randn(2, 17, 64)
    keep = torch.ones(2, 17, dtype=torch.bool)
    with token_grid(model, (4, 4)):
        torch.testing.assert_close(model(x, attn_mask=keep[:, None, None]), model(x))
        with pytest.raises(ValueError, match="key masks only"):
            model(x, attn_mask=torch.zeros(17, 17))
        with pytest.raises(ValueError, match="is_causal"):
            model(x, is_causal=True)


def test_biases_cast_away_cannot_come_back():
    model = timm.create_model("castling_levit_pico")
    strip_(model)
    assert not any("attention_biases" in name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="lost attention_biases"):
        linearize_(model, castling.Softmax())
    linearize_(model, castling.Cosine())


def test_dtype_and_mode_follow_the_host():
    model = timm.create_model("deit_tiny_patch16_224", depth=1, img_size=32).double().eval()
    linearize_(model, castling.LinearAngular())
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert not model.blocks[0].attn.training
    assert model(torch.randn(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


def test_threads_do_not_see_each_others_images():
    model = timm.create_model("castling_deit_pico", num_classes=5).eval()
    shapes = [(16, 64), (64, 16), (32, 32)]  # as many tokens each
    inputs = [torch.randn(1, 3, *shape) for shape in shapes]
    with torch.no_grad():
        expected = [model(x) for x in inputs]

        def serve(index):
            return all(torch.equal(model(inputs[index]), expected[index]) for _ in range(15))

        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(serve, range(3)))


def test_blocks_shared_by_two_models_see_each_models_image():
    first = timm.create_model("deit_pico", num_classes=5).eval()
    second = timm.create_model("deit_pico", num_classes=5).eval()
    second.load_state_dict(first.state_dict())
    second.blocks = first.blocks
    x, other = torch.randn(1, 3, 16, 64), torch.randn(1, 3, 64, 16)
    linearize_(first, castling.LinearAngular())
    linearize_(second, castling.LinearAngular())
    expected = first(x)
    first(other)
    torch.testing.assert_close(second(x), expected)


def test_tied_attentions_are_replaced_at_all_their_places():
    model = timm.create_model("deit_pico")
    model.blocks[1].attn = model.blocks[0].attn
    linearize_(model, castling.LinearAngular())
    assert isinstance(model.blocks[1].attn, HostAttention)
    assert model.blocks[1].attn is model.blocks[0].attn


def test_an_attention_cannot_replace_itself():
    attention = timm.create_model("deit_pico").blocks[0].attn
    with pytest.raises(ValueError, match="the module that holds it"):
        linearize_(attention, "softmax")
    assert "" not in dict(attention.named_children())


@pytest.mark.parametrize("name", ["castling_deit_pico", "castling_levit_pico"])
def test_layers_are_called_the_same_in_a_feature_extractor(name):
    where = "blocks.[0-1].attn" if "deit" in name else "stages.0"
    model = timm.create_model(name, where=where, features_only=True)
    whole = timm.create_model(name, where=where)
    converted = [sum(isinstance(m, HostAttention) for m in x.modules()) for x in (model, whole)]
    assert converted[0] == converted[1] > 0


def test_hybrid_patch_embeddings_tell_their_stride():
    model = timm.create_model("vit_tiny_r_s16_p8_224", depth=1, img_size=64, num_classes=5).eval()
    linearize_(model, castling.LinearAngular())
    with castling.tap(model) as taps:
        assert torch.isfinite(model(torch.randn(1, 3, 64, 64))).all()
    assert taps["blocks.0.attn"][0].grid == (2, 2)


def test_parts_of_the_host_keep_their_own_precision():
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, qk_norm=True)
    model.bfloat16()
    model.blocks[0].attn.q_norm.float()
    linearize_(model, castling.LinearAngular())
    assert model.blocks[0].attn.q_norm.weight.dtype == torch.float32
    assert model.blocks[0].attn.dconv.weight.dtype == torch.bfloat16


def test_one_geometry_for_all_layers_of_levit():
    model = timm.create_model("castling_levit_pico")
    assert len(model.stem._forward_hooks) == 1
    geometries = {id(m.place.geometry) for m in model.modules() if isinstance(m, HostAttention)}
    assert len(geometries) == 1


def test_no_images_give_no_answers():
    attention = timm.create_model("castling_deit_pico").blocks[0].attn
    with token_grid(attention, (4, 4)):
        assert attention(torch.randn(0, 17, 64)).shape == (0, 17, 64)


@pytest.mark.parametrize(
    ("attention", "relative"),
    [
        (castling.LinearAngular(local="none"), True),
        (castling.QuadraticTaylor(form="exact"), True),
        ("relu_linear", False),
    ],
    ids=["angular", "taylor", "relu"],
)
def test_rotary_scores_depend_on_distances_where_the_feature_map_allows(attention, relative):
    model = timm.create_model("vit_small_patch16_dinov3", depth=1)
    linearize_(model, attention)
    layer = model.blocks[0].attn
    tokens = torch.randn(1, 5 + 4 * 4, 384, generator=torch.Generator().manual_seed(0))
    rope = model.rope.get_embed(shape=(8, 8)).unflatten(0, (8, 8))
    shifted = [rope[y : y + 4, y : y + 4].flatten(0, 1) for y in (0, 3)]
    with torch.no_grad():
        # Prefix tokens have no position: distances to them are the same only without them.
        layer.num_prefix_tokens = 0
        one, two = (layer(tokens[:, 5:], rope=part) for part in shifted)
    assert torch.allclose(one, two, atol=1e-5) is relative
