"""Multiply-accumulates: against hand counts and the measured figures of the field's models."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import castling
from castling.attention import Attention, LinearAngular, QuadraticTaylor
from castling.ops import native
from castling.ops.macs import macs, register_macs


class TinyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.norm(self.depthwise(self.conv(x)))
        tokens = x.flatten(2).transpose(1, 2)
        scores = torch.einsum("bnd,bmd->bnm", tokens, tokens)
        return self.head(self.drop((scores @ tokens).mean(1)))


def test_hand_count_per_layer():
    report = macs(TinyNet(), (3, 16, 12), batch=2)
    tokens = 8 * 6
    assert report.per_layer == {
        "conv": 2 * tokens * 8 * 3 * 9,
        "depthwise": 2 * tokens * 8 * 9,
        "head": 2 * 8 * 5,
        "": 2 * 2 * tokens * tokens * 8,
    }
    assert report.total == sum(report.per_layer.values())
    assert report.parameters == sum(p.numel() for p in TinyNet().parameters())
    assert "softmax" in report.convention


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("deit_tiny_patch16_224", 224, 1.2537),
        ("levit_128s", 224, 0.3047),
        ("efficientvit_b1", 224, 0.5192),
        ("mvitv2_tiny", 224, 4.677),
    ],
)
def test_measured_figures(name, size, expected):
    report = macs(timm.create_model(name), (3, size, size))
    assert report.total / 1e9 == pytest.approx(expected, rel=0.01)


def test_fused_and_plain_attention_count_the_same():
    class Attend(nn.Module):
        def __init__(self, fused):
            super().__init__()
            self.fused = fused

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2).unsqueeze(1)
            if self.fused:
                return F.scaled_dot_product_attention(tokens, tokens, tokens)
            return (tokens @ tokens.transpose(-1, -2)).softmax(-1) @ tokens

    fused, plain = (macs(Attend(flag), (4, 8, 8)) for flag in (True, False))
    assert fused.total == plain.total == 2 * 64 * 64 * 4


def test_multihead_attention_is_not_hidden_by_its_fast_path():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    assert macs(Attend(), (8, 4, 4)).total == 16 * 8 * 8 * 4 + 2 * 16 * 16 * 8


@pytest.mark.parametrize("real", [False, True])
def test_model_is_left_as_it_was(real):
    model = TinyNet().train()
    model.norm.eval()
    if real:  # an attribute that is neither parameter nor buffer forces a real forward pass
        model.extra = torch.ones(1)
        inner = model.forward
        model.forward = lambda x: inner(x) * model.extra if x.device.type == "cpu" else 1 / 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total = macs(model, (3, 16, 12)).total
    assert total == macs(TinyNet(), (3, 16, 12)).total
    assert model.training
    assert model.conv.training
    assert not model.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
    assert not model.conv._forward_hooks


def test_stale_caches_are_not_left_behind():
    model = timm.create_model("levit_128s", img_size=64).train()
    macs(model, (3, 64, 64))
    attention = model.stages[0].blocks[0].attn
    with torch.no_grad():
        attention.attention_biases.add_(1)
    fresh = attention.attention_biases[:, attention.attention_bias_idxs]
    assert torch.equal(model.eval().stages[0].blocks[0].attn.get_attention_biases("cpu"), fresh)


def test_registered_operator_is_counted():
    @torch.library.custom_op("castling_test::twice", mutates_args=())
    def twice(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x @ weight * 2

    @twice.register_fake
    def _(x, weight):
        return x.new_empty(x.shape[0], weight.shape[1])

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 7))

        def forward(self, x):
            return torch.ops.castling_test.twice(x.flatten(1), self.weight)

    register_macs(
        torch.ops.castling_test.twice,
        lambda x, weight, out_shape=None, **_: x[0] * x[1] * weight[1],
    )
    assert macs(Net(), (3, 2, 2), batch=5).total == 5 * 12 * 7
    with pytest.raises(TypeError, match="operator packet"):
        register_macs(torch.ops.castling_test.twice.default, lambda: 0)


@pytest.mark.skipif(not native.available(), reason="the native operators are not built")
@pytest.mark.parametrize("config", [LinearAngular(local="token1d"), QuadraticTaylor(form="exact")])
def test_gradients_of_fused_attention_are_counted(config):
    attention = Attention(32, 2, config)
    tokens = torch.randn(1, 300, 32)

    def count(backend):
        with castling.attention_backend(backend), FlopCounterMode(display=False) as counter:
            out = attention(tokens, grid=(15, 20))
            forward = counter.get_total_flops()
            out.sum().backward()
        return forward, counter.get_total_flops() - forward

    (forward, backward), (plain, plain_backward) = count("native"), count("naive")
    assert forward == plain
    # Ours computes rows or similarities once more instead of keeping them.
    assert plain_backward <= backward < 1.5 * plain_backward


def test_bad_input():
    with pytest.raises(ValueError, match="input_size"):
        macs(TinyNet(), (3, 224))
    with pytest.raises(ValueError, match="batch"):
        macs(TinyNet(), (3, 16, 16), batch=0)


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_dynamically_quantised_linear_layers_count_as_before(dtype):
    model = timm.create_model("castling_deit_pico", num_classes=10).eval()
    expected = macs(model, (3, 32, 32), batch=2)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=dtype)
    found = macs(quantised, (3, 32, 32), batch=2)
    assert found.total == expected.total
    assert found.per_layer == expected.per_layer


def test_the_inference_of_a_model_is_counted_where_it_differs_from_its_forward_pass():
    class Two(nn.Module):
        """Dense outputs, and what follows from them: a layer and a product of its own."""

        def __init__(self):
            super().__init__()
            self.dense, self.further = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

        def forward(self, images):
            return self.dense(images)

        def inference(self, images):
            found = self.further(self(images).mean((2, 3)))
            return found @ found.T

    report = castling.macs(Two(), (3, 2, 2))
    assert report.per_layer == {"dense": 3 * 4 * 4, "further": 4 * 5, "": 5}
    assert report.total == 73
