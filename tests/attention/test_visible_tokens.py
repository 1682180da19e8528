"""Attention of the visible tokens of an image, as masked pre-training needs it."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import castling
from castling.attention import Attention, MaskedSoftmax
from castling.attention.linear_angular import LinearAngular
from castling.attention.local import GridConv, TokenConv
from castling.surgery import visible_tokens

CONSTANT = MaskedSoftmax(schedule="constant")
CONFIGS = {
    "tokens": LinearAngular(kv_scale="tokens"),
    "mean": LinearAngular(constant="mean", normalize="rowsum"),
    "auxiliary": LinearAngular(constant="mean", auxiliary=CONSTANT),
    "taps": LinearAngular(local="token1d"),
    "softmax": {"name": "softmax", "local": "grid2d"},
    "relu": {"name": "relu_linear", "local": "grid2d", "local_kernel_size": 5},
    "taylor": {"name": "quadratic_taylor", "local": "grid2d", "auxiliary": CONSTANT},
}
DIM, HEADS = 8, 2


@st.composite
def scenes(draw):
    """Grid, prefix, and distinct places (2, V) in any order."""
    height, width, prefix = (
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
        draw(st.integers(0, 2)),
    )
    count = draw(st.integers(0 if prefix else 1, height * width))
    order = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(order)
    places = np.stack([generator.permutation(height * width)[:count] for _ in range(2)])
    return (height, width), prefix, torch.from_numpy(places)


def rows(places, prefix):
    first = torch.arange(prefix).expand(2, prefix)
    return torch.cat([first, places + prefix], 1)


def gathered(x, index):
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def mixer(config):
    torch.manual_seed(0)
    return Attention(DIM, HEADS, config).double()


@pytest.mark.parametrize("name", CONFIGS)
@given(scene=scenes())
@settings(max_examples=8, deadline=None)
def test_visible_tokens_equal_all_tokens_with_a_key_mask(name, scene):
    """Outputs and all gradients; hidden tokens hold other values in each."""
    grid, prefix, places = scene
    layer = mixer(CONFIGS[name])
    index = rows(places, prefix)
    tokens = prefix + grid[0] * grid[1]
    everything = torch.randn(2, tokens, DIM, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(2, tokens, dtype=torch.bool).scatter(1, index, True)
    weight = torch.randn(2, index.shape[1], DIM, dtype=torch.float64)

    reference = gathered(layer(everything, grid, prefix, key_mask=mask), index)
    (reference * weight).sum().backward()
    expected = [everything.grad.clone(), *(p.grad.clone() for p in layer.parameters())]
    layer.zero_grad()
    everything.grad = None
    found = layer(gathered(everything, index), grid, prefix, positions=places)
    (found * weight).sum().backward()

    torch.testing.assert_close(found, reference, rtol=1e-9, atol=1e-10)
    for one, other in zip(
        [everything.grad, *(p.grad for p in layer.parameters())], expected, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
@given(scene=scenes(), seed=st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_the_order_of_visible_tokens_changes_nothing(name, scene, seed):
    grid, prefix, places = scene
    layer = mixer(CONFIGS[name])
    x = torch.randn(2, prefix + places.shape[1], DIM, dtype=torch.float64)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(places.shape[1]))
    whole = torch.cat([torch.arange(prefix), order + prefix])
    expected = layer(x, grid, prefix, positions=places)[:, whole]
    found = layer(x[:, whole], grid, prefix, positions=places[:, order])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@given(scene=scenes())
@settings(max_examples=20, deadline=None)
def test_the_local_residual_tap_by_tap(scene):
    """A loop over the taps of every visible token; a prefix gets none."""
    grid, prefix, places = scene
    conv = GridConv(HEADS * 4, 3).double()
    value = torch.randn(2, prefix + places.shape[1], HEADS, 4, dtype=torch.float64)
    found = conv(value, grid, prefix, places).detach().numpy()
    weight = conv.weight.detach().numpy().reshape(HEADS, 4, 3, 3)
    for image in range(2):
        there = {place: row for row, place in enumerate(places[image].tolist(), prefix)}
        assert not found[image, :prefix].any()
        for place, row in there.items():
            total = np.zeros((HEADS, 4))
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    y, x = place // grid[1] + down, place % grid[1] + right
                    other = there.get(y * grid[1] + x)
                    if 0 <= y < grid[0] and 0 <= x < grid[1] and other is not None:
                        tap = weight[:, :, down + 1, right + 1]
                        total += tap * value[image, other].numpy()
            np.testing.assert_allclose(found[image, row], total, atol=1e-12)


def test_the_threshold_follows_the_visible_tokens():
    layer = mixer(CONFIGS["auxiliary"])
    seen = []
    layer.auxiliary.threshold = lambda count: seen.append(count) or torch.full((), 0.1)
    layer(torch.randn(2, 1 + 4, DIM).double(), (4, 4), 1, positions=torch.arange(4).expand(2, 4))
    assert seen == [5]


@pytest.mark.parametrize("local", ["grid2d", "none"])
def test_a_converted_vit_sees_visible_tokens_alone(local):
    """Blocks of timm's ViT: the same as all tokens with timm's mask, and places are forgotten."""
    vit = timm.create_model("deit_pico", depth=2).double().eval()
    castling.linearize_(vit, LinearAngular(kv_scale="tokens", local=local))
    tokens = vit._pos_embed(vit.patch_embed(torch.randn(2, 3, 16, 24).double()))
    places = torch.stack([torch.randperm(24)[:6] for _ in range(2)])
    index = rows(places, 1)
    mask = torch.zeros(2, 25, dtype=torch.bool).scatter(1, index, True)
    expected = tokens
    with castling.surgery.token_grid(vit.blocks, (4, 6)):
        for block in vit.blocks:
            expected = block(expected, attn_mask=mask[:, None, None])
    with visible_tokens(vit.blocks, (4, 6), places):
        found = vit.blocks(gathered(tokens, index))
    torch.testing.assert_close(found, gathered(expected, index), rtol=1e-9, atol=1e-10)
    assert all(block.attn.place.positions is None for block in vit.blocks)


def test_what_does_not_fit_is_refused():
    places = torch.arange(4).expand(2, 4)
    x = torch.randn(2, 4, DIM).double()
    with pytest.raises(ValueError, match="every token of the grid"):
        mixer("pooling")(x, (2, 4), positions=places)
    with pytest.raises(ValueError, match="one place for each"):
        mixer(CONFIGS["tokens"])(x, (2, 4), 1, positions=places)
    with pytest.raises(ValueError, match="pass grid"):
        TokenConv(HEADS, 9)(x.view(2, 4, HEADS, 4), None, 0, places)
    levit = timm.create_model("castling_levit_pico")
    with pytest.raises(ValueError, match="plain vision"), visible_tokens(levit, (8, 8), places):
        pass
