"""Attentions that call PyTorch's function or transformers' interface: converted around it."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

import castling
from castling import linearize_, switch_
from castling.attention import set_progress
from castling.surgery.hosts.functional import FunctionalAttention
from castling.surgery.hosts.reading import calls_function

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
}
#: Class and options beside the sizes; how many tokens stand in front of the patches.
TRANSFORMERS = {
    "ViT": ({}, 1),
    "DeiT": ({}, 2),
    "Dinov2": ({}, 1),
    "Dinov2WithRegisters": ({}, 5),
    "DINOv3ViT": ({"num_register_tokens": 3}, 4),
    "CLIPVision": ({}, 1),
    "SiglipVision": ({}, 0),
    "Beit": ({"use_relative_position_bias": True}, 1),
    "IJepa": ({}, 0),
    "ViTMSN": ({}, 1),
    "ViTMAE": ({"mask_ratio": 0.0}, 1),
}


def randomised(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1 or not bool(parameter.any()):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def from_transformers(kind):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**SIZES, **TRANSFORMERS[kind][0])
    torch.manual_seed(0)
    return randomised(getattr(transformers, f"{kind}Model")(config))


def tokens_of(model, size=(64, 64)):
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    # ViTMAE orders its patches by noise, which it draws anew for each call.
    order = {"noise": torch.arange(16.0).expand(2, 16)} if "MAE" in type(model).__name__ else {}
    with torch.no_grad():
        return model(pixel_values=image, **order).last_hidden_state


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_softmax_in_transformers_returns_the_host(kind):
    model = from_transformers(kind)
    expected, keys = tokens_of(model), list(model.state_dict())
    names = linearize_(model, "softmax")
    assert len(names) == 2
    torch.testing.assert_close(tokens_of(model), expected, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == keys
    linearize_(model, castling.LinearAngular(local="grid2d"))
    assert not torch.allclose(tokens_of(model), expected, atol=1e-2)
    layer = model.get_submodule(names[0])
    assert layer.place.num_prefix_tokens == TRANSFORMERS[kind][1]
    linearize_(model, "softmax")
    torch.testing.assert_close(tokens_of(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["ViT", "Beit", "DINOv3ViT", "CLIPVision"])
def test_transformers_compiled_exported_and_trained(kind):
    model = from_transformers(kind)
    attention = castling.LinearAngular(local="grid2d", auxiliary=castling.MaskedSoftmax())
    linearize_(model, attention)
    image = torch.randn(2, 3, 64, 64, requires_grad=True)
    model.train()(pixel_values=image).last_hidden_state.square().mean().backward()
    projections = [n for n, _ in model.named_parameters() if "v_proj.weight" in n or "dconv" in n]
    assert len(projections) >= 4
    assert all(bool(model.get_parameter(name).grad.any()) for name in projections)
    model.eval()
    expected = tokens_of(model)
    program = torch.export.export(model, (), {"pixel_values": image.detach()}, strict=False)
    output = program.module()(pixel_values=image.detach()).last_hidden_state
    torch.testing.assert_close(output, model(pixel_values=image).last_hidden_state)
    assert torch.equal(tokens_of(model), expected)
    report = switch_(model, [image.detach()], force=True, repeats=1)
    assert report.max_gap > 0


def test_copies_and_pickles_run_on_their_own_weights():
    model = from_transformers("ViT")
    names = linearize_(model, "relu_linear")
    before = tokens_of(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(tokens_of(other), before)
        with torch.no_grad():
            other.get_submodule(names[0]).v_proj.weight.zero_()
        assert not torch.equal(tokens_of(other), before)
        assert torch.equal(tokens_of(model), before)


def test_weights_are_loaded_moved_and_replaced():
    model = from_transformers("ViT")
    names = linearize_(model, "relu_linear")
    other = from_transformers("ViT")
    linearize_(other, "relu_linear")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    model.load_state_dict(other.state_dict())
    assert torch.equal(tokens_of(model), tokens_of(other))
    model.get_submodule(names[0]).q_proj = nn.Linear(64, 64)
    assert not torch.equal(tokens_of(model), tokens_of(other))
    model.double()
    assert model(pixel_values=torch.randn(1, 3, 64, 64).double()).last_hidden_state.dtype == (
        torch.float64
    )


def test_text_towers_stay():
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        vision_config=dict(SIZES), text_config={**text, "intermediate_size": 96, "vocab_size": 99}
    )
    model = transformers.CLIPModel(config)
    report = linearize_(model, "relu_linear")
    assert len(report) == 2
    assert all(name.startswith("vision_model") for name in report)
    assert set(report.left.values()) == {"of a text model"}


def test_siglip_in_patches_of_any_number():
    transformers = pytest.importorskip("transformers")
    sizes = {n: v for n, v in SIZES.items() if n != "image_size"}
    model = transformers.Siglip2VisionModel(
        transformers.Siglip2VisionConfig(**sizes, num_patches=16)
    )
    randomised(model)
    inputs = {
        "pixel_values": torch.randn(2, 16, 3 * 16 * 16),
        "pixel_attention_mask": (torch.arange(16) < torch.tensor([[16], [12]])).long(),
        "spatial_shapes": torch.tensor([[4, 4], [3, 4]]),
    }
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        linearize_(model, "softmax")
        torch.testing.assert_close(model(**inputs).last_hidden_state, expected)
        linearize_(model, "relu_linear")
        one = model(**inputs).last_hidden_state[1, :12]
        inputs["pixel_values"][1, 12:] = 7.0
        assert torch.equal(model(**inputs).last_hidden_state[1, :12], one)


TIMM = {
    "beit": (
        "beit_base_patch16_224",
        {"img_size": 64, "embed_dim": 96, "num_heads": 3, "depth": 2},
        True,
    ),
    "relative_positions": ("vit_relpos_small_patch16_224", {"img_size": 64, "depth": 2}, True),
    "parallel_block": ("vit_pwee_patch16_reg1_gap_256", {"img_size": 64, "depth": 2}, True),
    "caformer": ("caformer_s18", {}, True),
    "coatnet": ("coatnet_pico_rw_224", {"img_size": 64}, True),
    "segment_anything": (
        "samvit_base_patch16_224",
        {"embed_dim": 96, "num_heads": 3, "depth": 2, "img_size": 64},
        False,
    ),
    "windows": ("swin_tiny_patch4_window7_224", {"depths": (2, 2), "img_size": 56}, False),
    "mask_units": ("hiera_tiny_224", {"stages": (1, 1, 1, 1)}, False),
    "twins": ("twins_svt_small", {"depths": (1, 1, 1, 1), "img_size": 64}, False),
}
#: Where it is not 64 by 64.
IMAGE = {"windows": (56, 56), "mask_units": (224, 224)}


@pytest.mark.parametrize("family", TIMM)
def test_softmax_in_timm_returns_the_host(family):
    name, options, proved = TIMM[family]
    torch.manual_seed(0)
    model = randomised(timm.create_model(name, num_classes=5, **options))
    where = None
    if not proved:
        where = [n for n, _ in model.named_modules() if n.endswith("attn")]
        assert not castling.surgery.convertible(model)
    image = torch.randn(2, 3, *IMAGE.get(family, (64, 64)))
    with torch.no_grad():
        expected = model(image)
        names = linearize_(model, "softmax", where)
        assert all(isinstance(model.get_submodule(n), FunctionalAttention) for n in names)
        torch.testing.assert_close(model(image), expected, rtol=1e-5, atol=1e-5)


def test_the_switch_casts_position_tables_away():
    name, options, _ = TIMM["beit"]
    model = randomised(timm.create_model(name, num_classes=5, **options))
    linearize_(model, castling.ReLULinear(auxiliary=castling.MaskedSoftmax(schedule="ramp")))
    set_progress(model, 1.0)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(image)
    table = "blocks.0.attn.relative_position_bias_table"
    assert table in model.state_dict()
    assert switch_(model, [image], repeats=1).max_gap == 0
    assert table not in model.state_dict()
    with torch.no_grad():
        assert torch.equal(model(image), before)


class Block(nn.Module):
    """Somebody's own attention."""

    def __init__(self):
        super().__init__()
        self.heads, self.head_dim = 2, 8
        self.qkv = nn.Linear(16, 48)
        self.function = "F"

    def forward(self, x, bias=None, *, causal=False, scale=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).transpose(1, 3).unbind(2)
        if self.function == "F":
            out = F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, scale=scale)
        elif self.function == "nn":
            out = nn.functional.scaled_dot_product_attention(q, k, v, bias, scale=scale)
        elif self.function == "torch":
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, scale=scale)
        elif self.function == "merged":
            out = F.scaled_dot_product_attention(*(t.flatten(0, 1) for t in (q, k, v)))
            out = out.unflatten(0, (-1, 2))
        elif self.function == "grouped":
            out = F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)
        else:
            out = scaled_dot_product_attention(q, k, v, bias, scale=scale)
        return out.transpose(1, 2).flatten(2)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x, **options):
        return self.block(x, **options)


@pytest.mark.parametrize("function", ["F", "nn", "torch", "merged", "grouped", "imported"])
@pytest.mark.parametrize("options", [{}, {"scale": 0.7}], ids=["default", "scale"])
def test_own_attentions_are_converted_where_they_are_named(function, options):
    if function in ("merged", "grouped") and options:
        options = {}
    model, x = Own(), torch.randn(3, 5, 16)
    model.block.function = function
    with pytest.raises(ValueError, match=r"where= names the layer|no adapter"):
        linearize_(model, "softmax")
    expected = model(x, **options)
    assert linearize_(model, "softmax", where="block") == ["block"]
    torch.testing.assert_close(model(x, **options), expected)
    linearize_(model, "relu_linear")
    linear = model(x, **options)
    assert not torch.allclose(linear, expected, atol=1e-3)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, **options), linear)


def test_what_linear_attention_cannot_do_is_refused():
    model, x = Own(), torch.randn(3, 5, 16)
    linearize_(model, "relu_linear", where="block")
    with pytest.raises(ValueError, match="both directions"):
        model(x, causal=True)
    shifted = torch.full((5, 5), -100.0).triu(1).expand(3, 2, 5, 5)
    for mask in (shifted, 1e7 * shifted, shifted[:, :1], shifted[0, 0], shifted[0, 0] == 0):
        assert torch.equal(model(x, bias=torch.zeros(3, 2, 5, 5)), model(x))
        with pytest.raises(ValueError, match="different keys"):
            model(x, bias=mask)
    with pytest.raises(ValueError, match="a bias and hides keys"):
        model(x, bias=shifted + torch.randn(3, 2, 5, 5).clamp(-1, 1))
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(Exception, match="pass a boolean mask"):
        compiled(x, bias=shifted)
    with pytest.raises(ValueError, match="different keys"):
        model(x, bias=torch.ones(5, 5).tril().bool()[None, None])
    keys = torch.tensor([True, True, False, True, True])
    masked = model(x, bias=keys.expand(3, 1, 5, 5))
    for hidden in (-1e4, -100.0, float("-inf")):
        added = torch.where(keys, 0.0, hidden)
        assert torch.equal(model(x, bias=added.expand(3, 1, 5, 5)), masked)
        assert torch.equal(model(x, bias=added.expand(1, 2, 5, 5)), masked)
    changed = x.clone()
    changed[:, 2] = 9.0
    kept = masked[:, keys]
    assert torch.equal(model(changed, bias=keys.expand(3, 1, 5, 5))[:, keys], kept)
    # A bias that hides nothing has no place in a linear kernel, and changes nothing.
    assert torch.equal(model(x, bias=torch.randn(1, 2, 5, 5)), model(x))
    other = Own()
    other.block.heads = 3
    linearize_(other, "softmax", where="block")
    with pytest.raises(ValueError, match="3 heads of 8"):
        other(x)


def test_sizes_that_nobody_tells_are_refused_at_once():
    model = Own()
    del model.block.heads
    with pytest.raises(ValueError, match="heads of Block cannot be read off it"):
        linearize_(model, "softmax", where="block")
    assert isinstance(model.block, Block)


def test_channel_attention_is_linear_already():
    model = timm.create_model("xcit_nano_12_p8_224", depth=1, img_size=32)
    with pytest.raises(ValueError, match="XCA is linear already: it attends across channels"):
        linearize_(model, "softmax", where="blocks.0.attn")


def test_tapped_calls_replay():
    teacher, student = from_transformers("Dinov2"), from_transformers("Dinov2")
    names = linearize_(student, castling.LinearAngular(local="grid2d"))
    with castling.tap(student) as taps:
        tokens_of(student, (64, 32))
    with castling.tap(teacher, names) as of_teacher:
        tokens_of(teacher, (64, 32))
    for name in names:
        layer = student.get_submodule(name)
        call = taps[name][0]
        assert call.grid == of_teacher[name][0].grid == (4, 2)
        with torch.no_grad():
            assert torch.equal(call.replay(layer)[0], call.output[0])
            replayed = of_teacher[name][0].replay(teacher.get_submodule(name))
        assert torch.equal(replayed[0], of_teacher[name][0].output[0])


def test_own_attentions_are_tapped_where_they_are_named():
    model, x = Own(), torch.randn(3, 5, 16)
    with pytest.raises(ValueError, match="holds no attention"), castling.tap(model):
        model(x)
    with castling.tap(model, "block") as taps:
        out = model(x)
    assert torch.equal(taps["block"][0].output, out)


def test_saved_models_are_opened_as_what_they_are(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, num_labels=7, id2label={i: f"c{i}" for i in range(7)})
    )
    randomised(model)
    attention = castling.ReLULinear(auxiliary=castling.MaskedSoftmax(schedule="ramp"))
    linearize_(model, attention, where="vit.layers.1")
    set_progress(model, 0.5)
    image = torch.randn(2, 3, 64, 64)
    copied = copy.deepcopy(model)
    for name, each in {"early": model, "copy": copied}.items():
        each.save_pretrained(tmp_path / name)
        opened = castling.load_transformers(tmp_path / name)
        with torch.no_grad():
            assert torch.equal(opened(image).logits, model(image).logits)
        assert opened.config.id2label == model.config.id2label
        with pytest.raises(OSError, match=r"model\.safetensors"):
            transformers.ViTForImageClassification.from_pretrained(tmp_path / name)
    set_progress(model, 1.0)
    switch_(model, [image], repeats=1)
    model.half().save_pretrained(tmp_path / "switched")
    opened = castling.load_transformers(tmp_path / "switched")
    assert opened.dtype == torch.float16
    assert opened.state_dict().keys() == model.state_dict().keys()
    assert castling.load_transformers(tmp_path / "switched", torch.float32).dtype == torch.float32


def test_other_folders_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.ViTModel(transformers.ViTConfig(**SIZES))
    model.save_pretrained(tmp_path / "softmax")
    with pytest.raises(ValueError, match="Open other folders with transformers"):
        castling.load_transformers(tmp_path / "softmax")
    linearize_(model, "relu_linear")
    with pytest.raises(FileExistsError, match="choose another folder"):
        model.save_pretrained(tmp_path / "softmax")
    with pytest.raises(ValueError, match="without push_to_hub"):
        model.save_pretrained(tmp_path / "linear", push_to_hub=True)
    model.save_pretrained(tmp_path / "linear")
    weights = tmp_path / "linear" / "castling.safetensors"
    state = load_file(weights)
    state.pop("layers.0.attention.q_proj.weight")
    save_file(state, weights)
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.q_proj\.weight is missing"):
        castling.load_transformers(tmp_path / "linear")


def test_plans_and_exports_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = randomised(transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)))
    plan = castling.plan(model, "relu_linear", image_size=(64, 64), rounds=1, seconds=0.1)
    assert [layer.heads for layer in plan.layers] == [4, 4]
    plan.require_fits(castling.surgery.convertible(model), castling.ReLULinear())
    linearize_(model, "relu_linear", where=["vit.layers.0.attention"])
    assert castling.macs(model, (3, 64, 64)).total > 0
    report = castling.export(model, tmp_path / "model.onnx", (64, 64))
    assert report.max_difference < 1e-4


def test_a_square_boolean_mask_is_one_of_queries_and_keys():
    model, x = Own(), torch.randn(5, 5, 16)
    causal = torch.ones(5, 5).tril().bool()
    keys = torch.tensor([True, True, False, True, True]).expand(5, 5)
    expected = model(x, bias=keys)
    linearize_(model, "softmax", where="block")
    torch.testing.assert_close(model(x, bias=keys), expected)
    with pytest.raises(ValueError, match="different keys"):
        model(x, bias=causal)


def test_masks_of_padding_are_not_taken_for_biases_in_graphs():
    model = from_transformers("ViT")
    linearize_(model, "relu_linear")
    layer, tokens = model.layers[0].attention, torch.randn(2, 17, 64)
    padding = torch.zeros(2, 1, 1, 17)
    padding[..., 12:] = torch.finfo(torch.float32).min
    changed = tokens.clone()
    changed[:, 12:] = 9.0
    with torch.no_grad():
        assert torch.equal(layer(tokens, padding)[0][:, :12], layer(changed, padding)[0][:, :12])
    with pytest.raises(Exception, match="pass a boolean mask"):
        torch.compile(layer, backend="eager")(tokens, padding)


def test_causal_modules_of_transformers_are_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTBigCodeConfig(
        vocab_size=50, n_embd=64, n_layer=1, n_head=4, multi_query=False
    )
    model = transformers.GPTBigCodeModel(config).eval()
    linearize_(model, "softmax", where=["h.0.attn"])
    with pytest.raises(ValueError, match="both directions"):
        model(torch.randint(3, 50, (2, 9)), use_cache=False)


def test_parts_of_a_converted_model_are_saved_as_converted(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = randomised(transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)))
    holder = nn.Sequential(model)
    linearize_(holder, "relu_linear")
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for name, part in {"whole": model, "body": model.vit}.items():
            part.save_pretrained(tmp_path / name)
            assert not (tmp_path / name / "model.safetensors").exists()
            opened = castling.load_transformers(tmp_path / name)
            assert torch.equal(opened(image)[0], part(image)[0])


def test_what_a_folder_keeps(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = randomised(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SIZES)))
    model.model.layer[1] = model.model.layer[0]
    linearize_(model, "relu_linear")
    model.bfloat16()
    model.norm.float()
    model.save_pretrained(tmp_path / "mixed")
    opened = castling.load_transformers(tmp_path / "mixed")
    assert opened.norm.weight.dtype == torch.float32
    assert opened.model.layer[0].attention.q_proj.weight.dtype == torch.bfloat16
    assert opened.rope_embeddings.inv_freq.dtype == torch.float32

    windows = transformers.SwinModel(
        transformers.SwinConfig(
            image_size=56, embed_dim=32, depths=(1,), num_heads=(2,), window_size=7
        )
    )
    named = [n for n, m in windows.named_modules() if calls_function(m)]
    assert linearize_(windows, "relu_linear", named) == named
    windows.save_pretrained(tmp_path / "windows")
    opened = castling.load_transformers(tmp_path / "windows")
    assert list(castling.surgery.convertible(opened)) == named

    class Own(transformers.ViTModel):
        pass

    own = Own(transformers.ViTConfig(**SIZES))
    linearize_(own, "relu_linear")
    with pytest.raises(ValueError, match="Own is no class of transformers"):
        own.save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_tables_cast_away_cannot_come_back():
    name, options, _ = TIMM["beit"]
    model = randomised(timm.create_model(name, num_classes=5, **options))
    linearize_(model, castling.ReLULinear(auxiliary=castling.MaskedSoftmax(schedule="ramp")))
    set_progress(model, 1.0)
    switch_(model, [torch.randn(2, 3, 64, 64)], repeats=1)
    linearize_(model, "elu")
    with pytest.raises(ValueError, match="has lost relative_position_bias_table in an earlier"):
        linearize_(model, "softmax")
