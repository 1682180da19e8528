"""CAS-ViT's ablation mixers: timm's blocks for the same weights, hosts, refusals, costs, export."""

import pytest
import timm
import torch
from timm.models.metaformer import Pooling as TimmPooling
from timm.models.mobilevit import LinearSelfAttention
from timm.models.swiftformer import EfficientAdditiveAttention
from torch import nn

import castling
from castling.attention import (
    Attention,
    AttentionInputs,
    MaskedSoftmax,
    Pooling,
    Separable,
    Swift,
    attention_config,
    image_mixer_class,
    kernel_class,
)

MIXERS = [Pooling(), Pooling(size=5), Separable(), Swift()]


def mixer(config, dim=8):
    return image_mixer_class(config)(dim, config).eval()


def test_pooling_is_timms():
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(mixer(Pooling())(x), TimmPooling()(x))


@torch.no_grad()
def test_separable_is_timms():
    """MobileViTv2 unfolds a map to (pixels, patches); here one pixel is a patch."""
    ours, theirs = mixer(Separable()), LinearSelfAttention(8)
    theirs.qkv_proj.load_state_dict(ours.qkv.state_dict())
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x = torch.randn(2, 8, 5, 7)
    expected = theirs(x.flatten(2).unsqueeze(2)).squeeze(2).unflatten(2, (5, 7))
    torch.testing.assert_close(ours(x), expected)


@torch.no_grad()
def test_swift_is_timms():
    ours, theirs = mixer(Swift(eps=1e-30)), EfficientAdditiveAttention(8, 8)
    for part, layer in enumerate((theirs.to_query, theirs.to_key)):
        layer.weight.copy_(ours.qkv.weight.flatten(1).chunk(2)[part])
        layer.bias.copy_(ours.qkv.bias.chunk(2)[part])
    theirs.w_g.copy_(ours.score.unsqueeze(1))
    theirs.proj.load_state_dict(ours.transform.state_dict())
    theirs.final.load_state_dict(ours.proj.state_dict())
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("config", MIXERS, ids=str)
def test_gradients_against_finite_differences(config):
    module = mixer(config, 4).double()
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)


@pytest.mark.parametrize("config", MIXERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(config, dtype):
    module = mixer(config, 16)
    x = torch.randn(2, 16, 15, 9, requires_grad=True)
    with torch.autocast("cpu", dtype):
        out = module(10 * x)
    out.float().square().mean().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    exact = module(10 * x)
    assert (out.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("config", MIXERS, ids=str)
def test_zero_maps_stay_finite_forward_and_backward(config):
    x = torch.zeros(1, 8, 4, 4, requires_grad=True)
    out = mixer(config)(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


def block_macs(config, dim, tokens):
    """Multiply-accumulates of a mixer, written out."""
    return {
        "pooling": 0,
        "separable": tokens * dim * (1 + 2 * dim) + tokens * dim + tokens * dim**2,
        "swift": tokens * 2 * dim**2 + 2 * tokens * dim + 2 * tokens * dim**2,
    }[config.name]


@pytest.mark.parametrize("config", [Pooling(), Separable(), Swift()], ids=str)
def test_costs_are_counted(config):
    assert castling.macs(mixer(config), (8, 6, 5)).total == block_macs(config, 8, 30)


@pytest.mark.parametrize("name", ["hedgehog", "elu"])
def test_costs_of_the_new_kernels_are_counted(name):
    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(8, 2, name)

        def forward(self, x):
            return self.attention(x.flatten(2).transpose(1, 2), grid=(6, 5))

    tokens, dim, heads = 30, 8, 2
    features = {"hedgehog": 2 * dim // heads, "elu": dim // heads}[name]
    maps = 2 * tokens * dim * dim // heads if name == "hedgehog" else 0
    products = heads * (2 * tokens * features * dim // heads + tokens * features)
    total = castling.macs(Images(), (8, 6, 5)).total
    assert total == 4 * tokens * dim**2 + maps + products


@pytest.mark.parametrize("config", [*MIXERS, *map(attention_config, ("elu", "hedgehog"))], ids=str)
def test_cas_vit_with_it_is_exported_for_any_size(config):
    model = timm.create_model("cas_vit_pico", num_classes=3, attention=config).eval()
    height, width = (
        4 * torch.export.Dim(f"{side}s", min=4, max=64) for side in ("height", "width")
    )
    program = torch.export.export(
        model, (torch.randn(2, 3, 32, 48),), dynamic_shapes=({2: height, 3: width},), strict=False
    )
    x = torch.randn(2, 3, 40, 64)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", MIXERS, ids=str)
def test_cas_vit_with_it_folds(config):
    model = timm.create_model("cas_vit_pico", num_classes=3, attention=config).eval()
    report = castling.fold_(model, torch.randn(2, 3, 32, 32))
    into_mixer = [entry for entry in report.folded if "norm1 into" in entry]
    assert bool(into_mixer) != isinstance(config, Pooling)


@pytest.mark.parametrize("name", ["pooling", "separable"])
def test_token_hosts_without_prefix_take_it(name):
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=2, class_token=False, global_pool="avg"
    )
    castling.linearize_(vit, name)
    out = vit(torch.randn(2, 3, 64, 64))
    out.square().sum().backward()
    assert out.isfinite().all()


def test_pooling_kernel_pools_the_values_and_minds_the_mask():
    kernel = kernel_class(Pooling())(Pooling(), 2, 3, 3)
    query, key, value = torch.randn(3, 2, 20, 2, 3)
    mask = torch.rand(2, 20) > 0.3
    masked = value.masked_fill(~mask[:, :, None, None], torch.nan)
    out = kernel(AttentionInputs(query, key, masked, key_mask=mask, grid=(4, 5)))
    assert out.isfinite().all()
    image = value.flatten(2).transpose(1, 2).unflatten(2, (4, 5))
    plain = kernel(AttentionInputs(query, key, value, grid=(4, 5)))
    expected = TimmPooling()(image).flatten(2).transpose(1, 2).unflatten(2, (2, 3))
    torch.testing.assert_close(plain, expected)


def test_separable_kernel_scores_keys_by_their_queries():
    kernel = kernel_class(Separable())(Separable(), 2, 3, 3)
    query, key, value = torch.randn(3, 2, 7, 2, 3)
    scores = torch.einsum("bnhd,hd->bnh", query, kernel.score).softmax(1)
    context = torch.einsum("bnh,bnhd->bhd", scores, key)
    out = kernel(AttentionInputs(query, key, value))
    torch.testing.assert_close(out, value.relu() * context[:, None])


def deit():
    return timm.create_model("deit_tiny_patch16_224", img_size=64, depth=1)


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        (lambda: castling.linearize_(deit(), "swift"), "swift mixes whole images.*CAS-ViT"),
        (lambda: Attention(8, 2, "swift"), "swift mixes whole images"),
        (lambda: pooled_with_class_token(), "pooling needs every token to lie on the grid"),
        (lambda: levit_with("separable"), "must be as wide as its keys"),
        (lambda: Pooling(size=2), "size must be odd"),
        (lambda: Pooling(local="grid2d"), 'leave local="none"'),
        (lambda: Swift(auxiliary=MaskedSoftmax()), "auxiliary=None"),
    ],
)
def test_refusals(refused, says):
    with pytest.raises(ValueError, match=says):
        refused()


def pooled_with_class_token():
    model = deit()
    castling.linearize_(model, "pooling")
    model(torch.randn(1, 3, 64, 64))


def levit_with(name):
    castling.linearize_(timm.create_model("levit_128s", img_size=64), name)
