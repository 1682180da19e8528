"""What every segmenter keeps to: shapes, ignored pixels, backbones, files, the switch, folding."""

import functools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.heads.segmenting import HEADS, build, labels
from torch import nn

import castling
from castling.attention import auxiliaries
from castling.heads import IGNORED
from castling.heads.segmenter import Segmenter
from castling.heads.simple_pyramid import SimplePyramid
from castling.models.card import ModelCard
from castling.models.dense import head_config, head_to_dict, list_heads
from castling.models.dense_weights import class_layers
from castling.models.saved import open_model, save_model

K = 5
#: Stride of the scores.
FINEST = {"semantic_fpn": 4, "efficientvit_head": 8, "upernet": 4, "mask2former": 4}
built = functools.cache(build)


@pytest.fixture(autouse=True)
def _transformers(request):
    if "mask2former" in request.node.name:
        pytest.importorskip("transformers")


def total(parts):
    return torch.stack([*parts.values()]).sum()


def test_all_heads_are_here():
    heads = list_heads("segmentation")
    assert set(heads) == {name for head in HEADS for name in (head, f"{head}_pico")}


@pytest.mark.parametrize("head", HEADS)
@settings(deadline=None, max_examples=3)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(2, 4),
    columns=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_outputs_of_any_size(head, batch, rows, columns, seed):
    model, size = built(head).eval(), (32 * rows, 32 * columns)
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        raw, again = model(images), model(images + 1e-6)
        scores, found = model.scores(raw), model.inference(images)
        alone = model.scores(model(images[-1:]))
    for key, value in raw.items():
        assert value.dtype == torch.float32
        assert len(value) == batch
        assert (value - again[key]).abs().max() < 1e-3  # continuous
        assert torch.equal(found[key], value)
    assert scores.shape == (batch, K, size[0] // FINEST[head], size[1] // FINEST[head])
    torch.testing.assert_close(alone[0], scores[-1], rtol=1e-4, atol=1e-4)
    assert found["mask"].shape == (batch, *size)
    assert found["mask"].dtype == torch.int64
    probabilities = model.probabilities(scores)
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(batch, *scores.shape[2:]))
    assert torch.equal(probabilities.argmax(1), scores.argmax(1))


#: Backbone, options and keyword arguments; plain ones get a simple pyramid.
BACKBONES = {
    "test_resnet": ({}, {}),
    "castling_levit_s8_pico": ({"strides": [8, 16, 32]}, {"attention": "quadratic_taylor"}),
    "test_vit": ({}, {}),
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_learns_on_any_backbone(head, backbone):
    options, kwargs = BACKBONES[backbone]
    model = castling.create_model(
        f"{head}_pico/{backbone}", num_classes=K, head={**HEADS[head], **options}, **kwargs
    ).train()
    assert isinstance(model, Segmenter)
    assert model.multiple == 32
    assert isinstance(model.neck, SimplePyramid) == (backbone == "test_vit")
    images, masks = torch.randn(2, 3, 64, 96), labels()
    weights = torch.linspace(0.5, 2, K)
    for given_weights in (None, weights):
        parts = model.losses(images, masks, given_weights)
        assert all(part.ndim == 0 and part.isfinite() and part > 0 for part in parts.values())
    total(parts).backward()
    lacking = [n for n, p in model.named_parameters() if p.grad is None and "biases" not in n]
    assert not lacking
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad.any() for n, p in model.named_parameters() if n.startswith("head."))


@pytest.mark.parametrize("head", HEADS)
def test_a_single_image_can_be_learnt(head):
    model = built(head).train()
    parts = model.losses(torch.randn(1, 3, 64, 64), labels(1, 64, 64))
    assert total(parts) > 0


@pytest.mark.parametrize("head", HEADS)
def test_without_labels_there_is_nothing_to_learn(head):
    model = build(head).train()
    images, masks = torch.randn(2, 3, 64, 64), torch.full((2, 64, 64), IGNORED)
    parts = model.losses(images, masks, torch.rand(K))
    total(parts).backward()
    assert all(part == 0 for part in parts.values())
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    # Beside an image with labels, one without changes nothing.
    model.eval()
    masks[0] = labels(1, 64, 64)[0]
    results = []
    for count in (1, 2):
        torch.manual_seed(3)
        results.append(total(model.losses(images[:count], masks[:count])).item())
    assert results[0] == pytest.approx(results[1], rel=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_class_weights_weigh(head):
    model = built(head).eval()
    images, masks = torch.randn(2, 3, 64, 64), labels(2, 64, 64, ignored=0.0)
    losses = []
    for weights in (None, torch.ones(K), torch.tensor([9.0, 1, 1, 1, 1])):
        torch.manual_seed(3)
        with torch.no_grad():
            losses.append(model.losses(images, masks, weights)["class"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_autocast_keeps_losses_in_float32(head):
    model = built(head).eval()
    images, masks = torch.randn(1, 3, 64, 64), labels(1, 64, 64)
    results = []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(model.losses(images, masks))
    for name, exact in results[0].items():
        assert results[1][name].dtype == torch.float32
        assert results[1][name].item() == pytest.approx(exact.item(), rel=0.1)


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_opens_by_name(head, tmp_path):
    name = f"{head}_pico"
    model = build(head)
    card = ModelCard(
        name=f"{name}/test_resnet",
        classes=[f"class {i}" for i in range(K)],
        head=head_to_dict(name, head_config(name, HEADS[head])),
        preprocessing={"image_size": [64, 64], "mean": [0.5] * 3, "std": [0.25] * 3},
        kwargs={"num_classes": K},
    )
    save_model(model, tmp_path, card)
    opened, _ = open_model(tmp_path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for key, value in model.eval()(images).items():
            assert torch.equal(opened(images)[key], value)
    written = json.loads((tmp_path / "model.json").read_text())["head"]
    assert written["name"] == name
    # Layers whose size follows from the number of classes start afresh for another data set.
    layers = {
        "semantic_fpn": ("head.classifier.conv",),
        "efficientvit_head": ("head.classifier.conv",),
        "upernet": ("head.classifier.conv", "auxiliary_head.1.conv"),
        "mask2former": ("query_decoder.classifier",),
    }
    assert class_layers(model) == layers[head]


@pytest.mark.parametrize("head", HEADS)
def test_frozen_batchnorm(head):
    model = build(head, freeze_batchnorm=True).train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    total(model.losses(torch.randn(2, 3, 64, 64), labels(2, 64, 64))).backward()
    norms = [each for each in model.backbone.modules() if isinstance(each, nn.BatchNorm2d)]
    assert norms
    assert not any(each.training for each in norms)
    assert all(p.grad is None for each in norms for p in each.parameters())
    assert all(torch.equal(v, before[n]) for n, v in model.backbone.state_dict().items())


@pytest.mark.parametrize("head", HEADS)
def test_folding_keeps_what_is_said(head):
    model = build(head).train()
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))  # statistics of BatchNorm that are not 0 and 1
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        before = model.eval().inference(images)
        report = castling.fold_(model, images)
        after = model.inference(images)
    # An auxiliary head does not run in inference, so it keeps its own.
    assert report.batch_norms_before > report.batch_norms_after == int(head == "upernet")
    assert (before["mask"] == after["mask"]).float().mean() > 0.999


@pytest.mark.parametrize("head", ["semantic_fpn", "mask2former"])
def test_the_switch_reaches_the_backbone(head):
    model = castling.create_model(f"{head}_pico/test_vit", num_classes=K).eval()
    attention = castling.LinearAngular(auxiliary=castling.MaskedSoftmax(schedule="ramp"))
    castling.linearize_(model, attention, where=["*blocks.1*"])
    assert len(auxiliaries(model)) == 1
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        before = model(images)
        report = castling.switch_(model, images, tolerance=0.5, repeats=1)
        after = model(images)
    assert not auxiliaries(model)
    assert report.images == 2
    difference = max((after[name] - value).abs().max().item() for name, value in before.items())
    assert report.max_difference == pytest.approx(difference, rel=1e-3)
    assert difference > 0
    assert castling.macs(model, (3, 64, 96)).total == report.macs_after


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("semantic_fpn", {"width": 0}, "width is 0; it must be a whole number of at least 1"),
        ("semantic_fpn", {"dropout": 1.0}, r"dropout is 1.0; it must be a number in \[0, 1\)"),
        ("semantic_fpn", {"strides": [4]}, r"strides is \[4\]; it must be two strides or more"),
        ("upernet", {"strides": [4, 16]}, r"strides is \[4, 16\]; .* each twice the one before"),
        ("upernet", {"auxiliary": "no"}, "auxiliary is 'no'"),
        ("efficientvit_head", {"block": "plain"}, "block is 'plain'"),
        ("efficientvit_head", {"depth": -1}, "depth is -1"),
        ("mask2former", {"strides": [8, 16]}, r"strides is \[8, 16\]; it must be three strides"),
        ("mask2former", {"width": 48}, "width is 48; it must be a multiple of 32"),
        ("mask2former", {"attention_heads": 5}, "multiple of attention_heads = 5"),
        ("mask2former", {"layers": 2}, "no option 'layers' in model.head"),
    ],
)
def test_options_without_a_meaning(head, options, message):
    with pytest.raises(ValueError, match=message):
        head_config(head, options)


@pytest.mark.parametrize("head", ["semantic_fpn", "efficientvit_head", "upernet", "mask2former"])
def test_a_backbone_without_a_stride(head):
    with pytest.raises(ValueError, match=r"no feature map of stride 2, only of 8, 16, 32.*strides"):
        castling.create_model(
            f"{head}_pico/castling_levit_pico", head={"strides": [2, 4, 8, 16, 32]}
        )
