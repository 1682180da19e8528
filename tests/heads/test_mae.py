"""The masked autoencoder: against transformers', and what hidden pixels must not change."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import castling
from castling.heads.masking import Masks, images_of, patches_of, random_masks, sincos_positions
from castling.surgery import token_grid
from castling.utils.randomness import keys

KEYS = keys(0, np.arange(3))
CASTLED = {"name": "linear_angular", "kv_scale": "tokens", "auxiliary": {"alpha": 0.5}}
MEAN = {"name": "linear_angular", "constant": "mean", "normalize": "rowsum"}


def autoencoder(attention=None, depth=2, **head):
    torch.manual_seed(0)
    options = {"width": 32, "depth": 1, "attention_heads": 2, **head}
    return castling.create_model("mae/deit_pico", attention=attention, head=options, depth=depth)


# transformers' model: a decoder of its own names, an encoder of its own names.
_LAYER = {
    "attention.o_proj": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_DECODER = {"decoder_embed": "embed", "decoder_norm": "norm", "decoder_pred": "pixels"}


def from_transformers(theirs):
    """Our state with the weights of transformers' model; its position tables are not taken."""
    state = {}

    def layer(source, target):
        for kind in ("weight", "bias"):
            parts = [theirs[f"{source}.attention.{x}_proj.{kind}"] for x in "qkv"]
            state[f"{target}.attn.qkv.{kind}"] = torch.cat(parts)
            for a, b in _LAYER.items():
                state[f"{target}.{b}.{kind}"] = theirs[f"{source}.{a}.{kind}"]

    for index in range(2):
        layer(f"vit.layers.{index}", f"backbone.body.blocks.{index}")
    layer("decoder.decoder_layers.0", "decoder.blocks.0")
    embed = "vit.embeddings.patch_embeddings.projection"
    for kind in ("weight", "bias"):
        state[f"backbone.body.patch_embed.proj.{kind}"] = theirs[f"{embed}.{kind}"]
        state[f"backbone.body.norm.{kind}"] = theirs[f"vit.layernorm.{kind}"]
        for a, b in _DECODER.items():
            state[f"decoder.{b}.{kind}"] = theirs[f"decoder.{a}.{kind}"]
    state["backbone.body.cls_token"] = theirs["vit.embeddings.cls_token"]
    state["decoder.mask_token"] = theirs["decoder.mask_token"]
    return state


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_transformers_model_with_the_same_weights_and_mask(norm_pixels):
    """Same pixels, losses and gradients; position tables are each library's own."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 256, "image_size": 32, "patch_size": 4, "layer_norm_eps": 1e-6},
        **{"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1},
        **{"decoder_num_attention_heads": 2, "decoder_intermediate_size": 128},
        norm_pix_loss=norm_pixels,
    )
    theirs = transformers.ViTMAEForPreTraining(config)
    # Version 5.24 leaves its positions at zero unless asked once more.
    theirs.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    theirs.vit.embeddings.initialize_weights()
    theirs.decoder.initialize_weights(64)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    ours = autoencoder(norm_pixels=norm_pixels)
    missing, unexpected = ours.load_state_dict(from_transformers(theirs.state_dict()), strict=False)
    assert missing == ["backbone.body.pos_embed"]
    assert not unexpected
    images = torch.randn(3, 3, 32, 32)
    masks = ours.masks(images, KEYS)
    noise = masks.hidden.float() + torch.arange(64) * 1e-3
    expected = theirs(images, noise=noise)
    assert torch.equal(expected.mask.bool(), masks.hidden)
    torch.testing.assert_close(ours.predicted(images, masks), expected.logits, rtol=1e-4, atol=1e-4)
    loss = ours.image_losses(images, KEYS).mean()
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.loss.backward()
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    grads |= {n: torch.zeros_like(p) for n, p in theirs.named_parameters() if p.grad is None}
    own = dict(ours.named_parameters())
    for name, grad in from_transformers(grads).items():
        torch.testing.assert_close(own[name].grad, grad, rtol=1e-3, atol=1e-5, msg=name)


def test_published_numbers_of_parameters():
    """ViT-B with the published decoder: 85.647 + 26.008 million that are trained."""
    with torch.device("meta"):
        model = castling.create_model(
            "mae/vit_base_patch16_224", head={"width": 512, "depth": 8, "attention_heads": 16}
        )
    trained = {
        part: sum(p.numel() for p in getattr(model, part).parameters() if p.requires_grad)
        for part in ("backbone", "decoder")
    }
    assert trained == {"backbone": 85_647_360, "decoder": 26_008_320}


@pytest.mark.parametrize("attention", [None, CASTLED, MEAN], ids=["softmax", "castled", "mean"])
def test_visible_only_equals_the_whole_grid_with_a_key_mask(attention):
    """The encoder's tokens and all gradients, against timm's blocks with a mask; float64."""
    model = autoencoder(attention).double()
    vit = model.backbone.body
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    masks = model.masks(images, KEYS)
    allowed = torch.cat([torch.ones(3, 1, dtype=torch.bool), ~masks.hidden], 1)
    weight = torch.randn(3, 17, 64, dtype=torch.float64)

    tokens = vit._pos_embed(vit.patch_embed(images))
    with token_grid(vit.blocks, (8, 8)):
        for block in vit.blocks:
            tokens = block(tokens, attn_mask=allowed[:, None, None])
    reference = vit.norm(tokens)[allowed].view(3, 17, 64)
    found = model.encode(images, masks)
    torch.testing.assert_close(found, reference, rtol=1e-8, atol=1e-9)
    parameters = [p for p in vit.parameters() if p.requires_grad]
    expected = torch.autograd.grad((reference * weight).sum(), parameters)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), parameters), expected, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("attention", [None, CASTLED], ids=["softmax", "castled"])
def test_hidden_pixels_and_the_order_of_tokens_change_nothing(attention):
    """Hidden pixels may be NaN: neither tokens nor gradients see them."""
    model = autoencoder(attention).double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    masks = model.masks(images, KEYS)
    expected = model.encode(images, masks)
    expected.square().sum().backward()
    grad = model.backbone.body.patch_embed.proj.weight.grad.clone()
    model.zero_grad()
    patches = patches_of(images, 4)
    patches[masks.hidden] = float("nan")
    found = model.encode(images_of(patches, (8, 8), 4), masks)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    assert torch.equal(model.backbone.body.patch_embed.proj.weight.grad, grad)

    order = torch.randperm(16)
    turned = Masks(masks.hidden, masks.visible[:, order])
    permuted = model.encode(images, turned)
    torch.testing.assert_close(permuted[:, 1:], expected[:, 1:][:, order], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(permuted[:, 0], expected[:, 0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        model.predicted(images, turned), model.predicted(images, masks), rtol=1e-6, atol=1e-6
    )


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    unit=st.sampled_from([1, 2]),
    ratio=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_masks_follow_from_the_key_alone(height, width, unit, ratio, seed):
    grid = height * unit, width * unit
    if height * width == 1:
        with pytest.raises(ValueError, match="cannot be masked"):
            random_masks(KEYS, grid, ratio, unit, torch.device("cpu"))
        return
    own = keys(seed, np.arange(5))
    hidden, visible = random_masks(own, grid, ratio, unit, torch.device("cpu"))
    cells = height * width
    seen = visible.shape[1] // unit**2
    assert 1 <= seen <= cells - 1
    assert seen in (1, cells - 1) or abs(seen - cells * (1 - ratio)) < 1.000001
    for row in range(5):
        alone = random_masks(own[row : row + 1], grid, ratio, unit, torch.device("cpu"))
        assert torch.equal(alone.hidden[0], hidden[row])
        there = (~hidden[row]).nonzero().flatten()
        assert torch.equal(there, visible[row])
        blocks = hidden[row].view(height, unit, width, unit)
        assert torch.equal(blocks.amin((1, 3)), blocks.amax((1, 3)))


def test_every_cell_is_hidden_equally_often():
    hidden = random_masks(keys(1, np.arange(4000)), (4, 4), 0.75, 1, torch.device("cpu")).hidden
    share = hidden.double().mean(0)
    assert (share - 0.75).abs().max() < 0.03


def test_positions_count_columns_first():
    table = sincos_positions((2, 3), 8)
    x, y = 2, 1
    rates = np.array([1.0, 1e-2])
    expected = [*np.sin(x * rates), *np.cos(x * rates), *np.sin(y * rates), *np.cos(y * rates)]
    np.testing.assert_allclose(table[y * 3 + x].numpy(), expected, atol=1e-6)


def test_auxiliary_branches_keep_their_threshold():
    """Whatever training progress is: α/N of the visible tokens and the class token."""
    model = autoencoder(CASTLED)
    castling.attention.set_progress(model, 1.0)
    branches = castling.attention.auxiliaries(model).values()
    assert branches
    for branch in branches:
        assert not branch.empty
        assert float(branch.threshold(17)) == pytest.approx(0.5 / 17)
    assert model.backbone.body.blocks[0].attn.config.auxiliary.schedule == "constant"


def test_images_of_several_sizes_and_whole_ones_in_turn():
    model = autoencoder(CASTLED)
    for size in ((32, 32), (48, 32), (32, 48), (32, 32)):
        images = torch.randn(3, 3, *size)
        model.image_losses(images, KEYS).mean().backward()
        assert model(images)["features"].shape == (3, 64, size[0] // 4, size[1] // 4)


def test_visible_patches_of_a_reconstruction_are_the_image():
    model = autoencoder()
    images = torch.randn(3, 3, 32, 32)
    masks = model.masks(images, KEYS)
    found = model.pictures(images, KEYS)
    same = (patches_of(found["reconstruction"], 4) == patches_of(images, 4)).all(-1)
    assert torch.equal(same, ~masks.hidden)
    assert not patches_of(found["masked"], 4)[masks.hidden].any()


@pytest.mark.parametrize(
    ("name", "head", "says"),
    [
        ("mae/cas_vit_pico", {}, "use the head simmim"),
        ("mae/vit_tiny_r_s16_p8_224", {}, "square patches"),
        ("mae/deit_pico", {"width": 30}, "multiple of 4"),
        ("mae/deit_pico", {"mask_ratio": 1.0}, "mask_ratio"),
    ],
)
def test_what_cannot_work_is_refused(name, head, says):
    with pytest.raises(ValueError, match=says):
        castling.create_model(name, head=head)
    with pytest.raises(ValueError, match="whole number of 4-pixel"):
        autoencoder().image_losses(torch.randn(3, 3, 30, 32), KEYS)
