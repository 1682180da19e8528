"""The token mixer, its local residuals and its configurations."""

import pytest
import torch
from torch import nn

from castling.attention import (
    Attention,
    AttentionCore,
    LinearAngular,
    MaskedSoftmax,
    attention_config,
    config_from_dict,
    config_to_dict,
    list_attentions,
    list_kernels,
)
from castling.attention.local import GridConv, TokenConv


@pytest.mark.parametrize("name", list_kernels())
@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (1, 1)])
def test_all_attentions_mix_any_grid(name, grid):
    model = Attention(32, 4, name)
    x = torch.randn(2, grid[0] * grid[1], 32, requires_grad=True)
    out = model(x, grid=grid)
    assert out.shape == x.shape
    out.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", list_attentions())
def test_configurations_survive_their_written_form(name):
    config = attention_config(name)
    assert config_from_dict(config_to_dict(config)) == config


def test_auxiliary_survives_its_written_form():
    config = LinearAngular(auxiliary=MaskedSoftmax(alpha=3.0), constant="mean")
    assert config_from_dict(config_to_dict(config)) == config
    assert hash(config) is not None


def test_presets():
    official = LinearAngular(preset="official")
    assert (official.eps, official.local, official.constant) == (0.0, "token1d", "identity")
    assert LinearAngular().local == "grid2d"
    assert LinearAngular(preset="official", local="none").local == "none"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nope", "unknown attention 'nope'; known: "),
        ({"name": "mean", "colour": 1}, "has no option colour"),
        ({"name": "mean", "local": "grid3d"}, "grid2d"),
        ({"name": "mean", "local_kernel_size": 4}, "odd"),
        ({"name": "linear_angular", "normalize": "rowsum"}, 'constant="mean"'),
        ({"name": "linear_angular", "normalize": "softmax"}, "normalize one of l2, rowsum, none"),
        ({"name": "linear_angular", "constant": "half"}, "constant is one of identity, mean"),
        ({"name": "linear_angular", "kv_scale": 0}, "kv_scale must be positive"),
        ({"name": "linear_angular", "eps": -1e-6}, "cannot be negative"),
        ({"name": "linear_angular", "preset": "best"}, "official"),
    ],
)
def test_wrong_configurations_say_what_is_known(wrong, message):
    with pytest.raises(ValueError, match=message):
        attention_config(wrong)


def test_a_number_is_no_attention():
    with pytest.raises(TypeError, match="configuration"):
        attention_config(3)


def test_heads_must_divide():
    with pytest.raises(ValueError, match="divisible"):
        Attention(30, 4)


def test_token_conv_is_the_reference_convolution():
    conv = TokenConv(num_heads=4, kernel_size=9)
    reference = nn.Conv2d(4, 4, (9, 1), padding=(4, 0), groups=4, bias=False)
    reference.load_state_dict(conv.state_dict())
    value = torch.randn(2, 33, 4, 8)
    expected = reference(value.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(conv(value, None, 0), expected)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_grid_conv_sees_neighbours_on_the_grid_only(prefix):
    """An impulse reaches its 3×3 neighbours, no row end, no prefix token."""
    height, width = 5, 7
    conv = GridConv(channels=6, kernel_size=3)
    nn.init.ones_(conv.weight)
    value = torch.zeros(1, prefix + height * width, 2, 3)
    value[0, prefix + 2 * width + 6] = 1.0  # row 2, last column
    out = conv(value, (height, width), prefix)
    assert not out[:, :prefix].any()
    image = out[0, prefix:, 0, 0].reshape(height, width)
    expected = torch.zeros(height, width)
    expected[1:4, 5:7] = 1.0
    torch.testing.assert_close(image, expected)
    if prefix:
        value = torch.zeros_like(value)
        value[:, :prefix] = 5.0
        assert not conv(value, (height, width), prefix).any()


def test_grid_conv_says_what_it_misses():
    conv = GridConv(6, 3)
    with pytest.raises(ValueError, match="needs to know the grid"):
        conv(torch.randn(1, 12, 2, 3), None, 0)
    with pytest.raises(ValueError, match="does not make"):
        conv(torch.randn(1, 13, 2, 3), (3, 4), 0)


def test_masked_tokens_do_not_reach_their_neighbours():
    model = Attention(32, 4, LinearAngular()).eval()
    x = torch.randn(1, 16, 32)
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, 12:] = False
    first = model(x, grid=(4, 4), key_mask=mask)
    x[0, 12:] = 100.0
    torch.testing.assert_close(model(x, grid=(4, 4), key_mask=mask)[:, :12], first[:, :12])


@pytest.mark.parametrize("name", list_kernels())
def test_bfloat16_autocast(name):
    model = Attention(32, 4, name)
    x = torch.randn(2, 16, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x, grid=(4, 4))
    assert out.dtype == torch.bfloat16
    assert (out - model(x, grid=(4, 4))).abs().max() < 0.1 * model(x, grid=(4, 4)).abs().max()


def test_a_local_residual_needs_to_know_where_the_queries_stand():
    core = AttentionCore(LinearAngular(constant="mean", local="token1d"), num_heads=2, head_dim=4)
    query, key = torch.randn(1, 3, 2, 4), torch.randn(1, 6, 2, 4)
    with pytest.raises(ValueError, match="pass to_queries"):
        core.attend(query, key, key)
    assert core.attend(query, key, key, to_queries=lambda t: t[:, ::2]).shape == query.shape
