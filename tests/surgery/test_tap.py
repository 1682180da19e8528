"""``tap``: what goes in and comes out, for every host, and one layer alone on it."""

import copy

import pytest
import timm
import torch
from torch import nn

import castling
from castling.attention import Attention, ImageMixer
from castling.surgery import HostAttention, attention_layers, linearize_, token_grid

HOSTS = {
    "deit": ("deit_tiny_patch16_224", {"depth": 2, "img_size": 64}, (64, 64)),
    "vit_gap": (
        "vit_tiny_patch16_224",
        {"depth": 2, "class_token": False, "global_pool": "avg", "dynamic_img_size": True},
        (64, 96),
    ),
    "levit": ("levit_128s", {"img_size": (64, 128)}, (64, 128)),
    "levit_conv": ("levit_conv_128s", {"img_size": 96}, (96, 96)),
    "mvitv2": ("mvitv2_tiny", {"img_size": 64}, (64, 64)),
    "cas_vit": ("cas_vit_pico", {}, (32, 48)),
    "cas_vit_angular": ("cas_vit_pico", {"attention": "linear_angular"}, (32, 48)),
    "cas_vit_pooling": ("cas_vit_pico", {"attention": "pooling"}, (32, 48)),
    "qt_vit": ("qt_vit_pico", {}, (32, 48)),
}
CONVERTED = ("deit", "vit_gap", "levit", "levit_conv", "mvitv2")


def host(family):
    name, options, size = HOSTS[family]
    model = timm.create_model(name, num_classes=5, **options).eval()
    return model, torch.randn(2, 3, *size)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def tensors(output):
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
@pytest.mark.parametrize("family", HOSTS)
def test_every_layer_of_a_model_as_it_comes(family):
    model, x = host(family)
    expected, before = model(x), hooks(model)
    with castling.tap(model) as taps:
        assert torch.equal(model(x), expected)
    assert hooks(model) == before
    assert list(taps) == list(attention_layers(model))
    for name, calls in taps.items():
        (call,) = calls
        layer = model.get_submodule(name)
        assert torch.equal(tensors(call.replay(layer)), tensors(call.output))
        tokens = call.args[0].shape[-2] if call.args[0].dim() == 3 else None
        assert call.grid is not None
        prefix = getattr(model, "num_prefix_tokens", 0)
        if tokens is not None:
            assert tokens == call.grid[0] * call.grid[1] + prefix


@torch.no_grad()
@pytest.mark.parametrize("attention", ["linear_angular", "elu", "softmax"])
@pytest.mark.parametrize("family", CONVERTED)
def test_a_converted_layer_alone_gives_the_recorded_output(family, attention):
    """With grid2d in every layer that has it; after an image of another size, and in a copy."""
    model, x = host(family)
    linearize_(model, {"name": attention, "local": "grid2d"})
    with castling.tap(model) as taps:
        model(x)
    fresh = copy.deepcopy(model)  # has seen no image yet
    for name, (call,) in taps.items():
        assert torch.equal(tensors(call.replay(fresh.get_submodule(name))), tensors(call.output))


@torch.no_grad()
@pytest.mark.parametrize("family", CONVERTED)
def test_a_student_is_called_on_what_its_teacher_saw(family):
    teacher, x = host(family)
    student = copy.deepcopy(teacher)
    linearize_(student, castling.ReLULinear(local="grid2d"))
    with castling.tap(teacher, detach=True) as taps:
        teacher(x)
    for name, (call,) in taps.items():
        out = tensors(call.replay(student.get_submodule(name)))
        assert out.shape == tensors(call.output).shape
        assert out.isfinite().all()
    twin = copy.deepcopy(teacher)
    linearize_(twin, castling.Softmax())
    for name, (call,) in taps.items():
        out = tensors(call.replay(twin.get_submodule(name)))
        torch.testing.assert_close(out, tensors(call.output), rtol=1e-4, atol=1e-5)


def test_keyword_arguments_and_masks_are_kept():
    layer = Attention(16, 2, "linear_angular").eval()
    mask = torch.tensor([[True] * 5 + [False]])
    x = torch.randn(1, 6, 16)
    with castling.tap(layer) as taps:
        layer(x, (2, 3), key_mask=mask)
    (call,) = taps[""]
    assert call.kwargs == {"key_mask": mask}
    assert call.grid == (2, 3)
    assert torch.equal(call.replay(layer), call.output)
    feat_size = timm.create_model("mvitv2_tiny", img_size=64).eval()
    with castling.tap(feat_size, "stages.0.*") as taps:
        feat_size(torch.randn(1, 3, 64, 64))
    assert taps["stages.0.blocks.0.attn"][0].grid == (16, 16)


def test_several_forwards_and_a_layer_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = Attention(16, 2, "elu")

        def forward(self, x):
            return self.mixer(self.mixer(x))

    model, x = Twice(), torch.randn(1, 4, 16)
    with castling.tap(model) as taps:
        model(x)
        model(2 * x)
    calls = taps["mixer"]
    assert len(calls) == 4
    assert torch.equal(calls[1].args[0], calls[0].output)
    assert torch.equal(calls[2].args[0], 2 * x)


def test_gradients_flow_unless_detached():
    model, x = host("deit")
    with castling.tap(model) as taps:
        model(x)
    loss = sum(call.output.square().mean() for calls in taps.values() for call in calls)
    loss.backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    with castling.tap(model, detach=True) as taps:
        out = model(x)
    call = taps["blocks.1.attn"][0]
    assert not call.output.requires_grad
    assert not call.args[0].requires_grad
    assert out.requires_grad


def test_layers_are_chosen_as_in_linearize():
    model, x = host("deit")
    for where, expected in [
        ("blocks.1", ["blocks.1.attn"]),
        (["blocks.0.attn"], ["blocks.0.attn"]),
        (lambda name, module: name.startswith("blocks.1"), ["blocks.1.attn"]),
        ({"blocks.0": "elu", "blocks.1": None}, ["blocks.0.attn"]),
    ]:
        with castling.tap(model, where) as taps:
            model(x)
        assert list(taps) == expected
    with pytest.raises(ValueError, match="matches no attention"), castling.tap(model, "stages"):
        pass
    with pytest.raises(ValueError, match="holds no attention"), castling.tap(nn.Linear(2, 2)):
        pass


def test_nested_taps_and_exceptions_leave_no_hooks():
    model, x = host("deit")
    before = hooks(model)
    with castling.tap(model) as outer:
        with castling.tap(model, "blocks.0") as inner:
            model(x)
        model(x)
    assert [len(inner["blocks.0.attn"]), len(outer["blocks.0.attn"])] == [1, 2]
    with pytest.raises(RuntimeError), castling.tap(model):  # noqa: PT012
        model(x)
        raise RuntimeError
    assert hooks(model) == before


def test_layers_converted_inside_keep_their_grid():
    model, x = host("deit")
    with castling.tap(model):
        linearize_(model, castling.LinearAngular())
    assert model(x).isfinite().all()
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_a_model_wrapped_for_its_features():
    model = timm.create_model("cas_vit_pico", features_only=True).eval()
    with castling.tap(model) as taps:
        model(torch.randn(1, 3, 32, 32))
    assert next(iter(taps)).startswith("network.0.0.")


def test_a_block_alone_on_a_given_grid():
    model, x = host("levit")
    linearize_(model, castling.LinearAngular())
    with castling.tap(model) as taps:
        model(x)
    fresh = copy.deepcopy(model)
    places = [m.place for m in fresh.modules() if isinstance(m, HostAttention)]
    (call,) = taps["stages.1.blocks.0.attn"]
    with token_grid(fresh.stages[1], taps["stages.1.downsample.attn_downsample"][0].grid):
        with castling.tap(fresh) as inner:
            out = fresh.stages[1].blocks[0].attn(*call.args)
        assert inner["stages.1.blocks.0.attn"][0].grid == call.grid
    torch.testing.assert_close(out, call.output)
    with pytest.raises(RuntimeError), token_grid(fresh, (1, 1)):
        raise RuntimeError
    after = [m.place for m in fresh.modules() if isinstance(m, HostAttention)]
    assert all(one is other for one, other in zip(places, after, strict=True))


def test_replaying_leaves_the_layer_as_it_was():
    model, x = host("deit")
    linearize_(model, castling.LinearAngular())
    with castling.tap(model) as taps:
        expected = model(x)
    place = model.blocks[0].attn.place
    taps["blocks.0.attn"][0].replay(model.blocks[0].attn)
    assert model.blocks[0].attn.place is place
    assert torch.equal(model(x), expected)


def test_image_mixers_are_recorded_too():
    model, x = host("cas_vit_pooling")
    with castling.tap(model) as taps:
        model(x)
    assert all(isinstance(model.get_submodule(name), ImageMixer) for name in taps)
    assert next(iter(taps.values()))[0].grid == (16, 24)
