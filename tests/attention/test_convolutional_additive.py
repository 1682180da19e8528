"""Convolutional additive attention, as CAS-ViT's mixer and as a kernel inside other hosts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from castling.attention import (
    AdditiveTokenMixer,
    Attention,
    ConvolutionalAdditive,
    LinearAngular,
    MaskedSoftmax,
    attention_config,
    config_to_dict,
)


def randomise(module: nn.Module) -> nn.Module:
    """Eval mode, with BatchNorm statistics that do something."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, 0, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
    return module.eval()


def by_hand(mixer: AdditiveTokenMixer, x: torch.Tensor) -> torch.Tensor:
    """The formula written out, from the weights alone."""
    state = mixer.state_dict()
    dim = x.shape[1]

    def depthwise(image: torch.Tensor, name: str) -> torch.Tensor:
        return F.conv2d(
            image, state[f"{name}.weight"], state[f"{name}.bias"], padding=1, groups=dim
        )

    def gates(image: torch.Tensor, name: str) -> torch.Tensor:
        hidden = depthwise(image, f"{name}.0.block.0")
        norm = [
            state[f"{name}.0.block.1.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        ]
        hidden = (hidden - norm[0]) / (norm[1] + 1e-5).sqrt() * norm[2] + norm[3]
        weight = state[f"{name}.0.block.3.weight"].flatten()
        scores = torch.einsum("c,bchw->bhw", weight, hidden.clamp(min=0))
        image = image * torch.sigmoid(scores)[:, None]
        weight = state[f"{name}.1.block.1.weight"].flatten(1)
        return image * torch.sigmoid(image.mean((2, 3)) @ weight.T)[:, :, None, None]

    qkv = torch.einsum("oc,bchw->bohw", state["qkv.weight"].flatten(1), x)
    query, key, value = qkv.split(dim, dim=1)
    context = depthwise(gates(query, "oper_q") + gates(key, "oper_k"), "dwc")
    return depthwise(context * value, "proj")


@torch.no_grad()
def test_mixer_is_the_formula() -> None:
    mixer = randomise(AdditiveTokenMixer(12)).double()
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_hand(mixer, x))


@torch.no_grad()
def test_kernel_shares_the_mixing() -> None:
    dim, grid = 12, (5, 7)
    mixer = randomise(AdditiveTokenMixer(dim))
    attention = Attention(dim, 3, ConvolutionalAdditive()).eval()
    own = {n: t for n, t in mixer.state_dict().items() if not n.startswith("qkv")}
    attention.kernel.mixing.load_state_dict(own)
    attention.qkv.weight.copy_(mixer.qkv.weight.flatten(1))
    attention.proj = nn.Identity()
    x = torch.randn(2, dim, *grid)
    tokens = attention(x.flatten(2).transpose(1, 2), grid=grid)
    torch.testing.assert_close(tokens.transpose(1, 2).unflatten(2, grid), mixer(x))


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({"spatial": False}, "block.3"),
        ({"channel": False}, "oper_q.1"),
        ({"gamma": False}, "dwc"),
    ],
)
@torch.no_grad()
def test_ablations_leave_their_part_out(options: dict, gone: str) -> None:
    mixer = AdditiveTokenMixer(8, ConvolutionalAdditive(**options)).eval()
    assert not any(gone in name for name in mixer.state_dict())
    assert mixer(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)


@torch.no_grad()
def test_order_of_gates_matters() -> None:
    first = randomise(AdditiveTokenMixer(8))
    second = AdditiveTokenMixer(8, ConvolutionalAdditive(order="channel_first")).eval()
    swap = {"oper_q.0": "oper_q.1", "oper_q.1": "oper_q.0"}
    swap |= {key.replace("_q", "_k"): value.replace("_q", "_k") for key, value in swap.items()}
    second.load_state_dict(
        {swap.get(n[:8], n[:8]) + n[8:]: tensor for n, tensor in first.state_dict().items()}
    )
    x = torch.randn(1, 8, 6, 6)
    difference = (first(x) - second(x)).abs().max()
    assert 1e-6 < difference < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype: torch.dtype) -> None:
    mixer = AdditiveTokenMixer(16).eval()
    x = torch.randn(2, 16, 14, 14, requires_grad=True)
    with torch.autocast("cpu", dtype):
        out = mixer(x)
    out.float().square().sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    with torch.no_grad():
        reference = mixer(x)
    torch.testing.assert_close(out.float(), reference, atol=2e-2, rtol=5e-2)


def test_gradients_against_finite_differences() -> None:
    mixer = randomise(AdditiveTokenMixer(4)).double()
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x,))


def call(**options: object) -> torch.Tensor:
    attention = Attention(8, 2, ConvolutionalAdditive()).eval()
    tokens = options.pop("tokens", 6)
    return attention(torch.randn(1, tokens, 8), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs to know the grid"),
        ({"grid": (2, 3), "num_prefix_tokens": 1, "tokens": 7}, "class_token=False"),
        ({"grid": (2, 2)}, "does not make 6 tokens"),
        ({"grid": (2, 3), "key_mask": torch.ones(1, 6, dtype=torch.bool)}, "masked tokens"),
    ],
)
def test_refusals(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(**options)


def test_refuses_queries_elsewhere_than_keys() -> None:
    attention = Attention(8, 2, ConvolutionalAdditive()).eval()
    query, key = torch.randn(1, 2, 2, 4), torch.randn(1, 6, 2, 4)
    with pytest.raises(ValueError, match="2 queries and 6 keys"):
        attention.attend(query, key, key, grid=(2, 3))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"local": "grid2d"}, 'leave local="none"'),
        ({"auxiliary": MaskedSoftmax()}, "auxiliary=None"),
        ({"order": "sideways"}, "spatial_first"),
    ],
)
def test_refused_configurations(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ConvolutionalAdditive(**options)


def test_configuration_survives_being_written() -> None:
    config = ConvolutionalAdditive(channel=False, order="channel_first")
    assert attention_config(config_to_dict(config)) == config
    assert attention_config("convolutional_additive") != LinearAngular()
