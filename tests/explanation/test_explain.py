"""``castling.explain`` on whole models."""

import dataclasses
import json
import logging

import pytest
import timm
import torch
from tests.conversion.pretrained_vit import transformers_vit
from torch import nn
from torch.nn import functional as F

import castling
from castling.explanation import Explanation
from castling.explanation.recording import Recorder
from castling.explanation.result import FIGURES, PAGE

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vit(attention=None, **options):
    torch.manual_seed(0)
    model = timm.create_model("deit_pico", num_classes=5, **options).eval()
    with torch.no_grad():  # sharper than at random: nearly uniform maps are all alike
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)
    if attention is not None:
        castling.linearize_(model, attention)
    return model


def weights_of(block, x):
    """softmax(q kᵀ/√d) of a block of timm's ViT, computed here."""
    attn = block.attn
    q, k, _ = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return (q @ k.mT * attn.head_dim**-0.5).softmax(dim=-1)


def test_figures_of_a_softmax_model_are_those_of_its_own_weights():
    model = vit()
    found = castling.explain(model, IMAGES, names=["a", "b"])
    with castling.tap(model) as taps, torch.no_grad():
        logits = model(IMAGES)
    assert [layer.name for layer in found.model.layers] == list(taps)
    for layer in found.model.layers:
        block = model.get_submodule(layer.name.removesuffix(".attn"))
        p = weights_of(block, taps[layer.name][0].args[0]).detach().double()
        entropy = -(p * p.log()).sum(-1).mean(dim=(0, 2)) / torch.tensor(65.0).log()
        assert layer.entropy == pytest.approx(entropy.tolist(), rel=1e-4)
        assert layer.own_weight == pytest.approx(
            p.diagonal(dim1=-2, dim2=-1).mean(dim=(0, 2)).tolist(), rel=1e-4
        )
        patches = F.normalize(p[..., 1:, 1:], p=1, dim=-1)
        places = (torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)) + 0.5) * 4
        far = (patches * torch.cdist(places, places)).sum(-1).mean(dim=(0, 2))
        assert layer.distance == pytest.approx(far.tolist(), rel=1e-4)
        assert (layer.queries, layer.keys, layer.prefix, layer.grid) == (65, 65, 1, (8, 8))
        assert layer.exact
        assert set(layer.negative_mass) == {0.0}
        assert set(layer.kernel_share) == {1.0}
        assert (layer.attention, layer.note) == ("softmax", "")
        for number, image in enumerate(found.model.images):
            row = p[number, :, 0].mean(dim=0)[1:].reshape(8, 8)
            torch.testing.assert_close(image.query[layer.name], row, rtol=1e-4, atol=1e-6)
    said = logits.softmax(dim=-1)
    assert [image.name for image in found.model.images] == ["a", "b"]
    assert [image.predicted for image in found.model.images] == logits.argmax(-1).tolist()
    assert [i.probability for i in found.model.images] == pytest.approx(said.amax(-1).tolist())


def test_rollout_is_the_product_of_all_layers():
    model = vit()
    found = castling.explain(model, IMAGES[:1]).model.images[0]
    with castling.tap(model) as taps, torch.no_grad():
        model(IMAGES[:1])
    rollout = torch.eye(65)
    for block in model.blocks:
        name = f"blocks.{list(model.blocks).index(block)}.attn"
        weights = weights_of(block, taps[name][0].args[0])[0].mean(dim=0)
        rollout = (weights + torch.eye(65)) / 2 @ rollout
    wanted = rollout[0, 1:].reshape(8, 8).double()
    torch.testing.assert_close(found.rollout, wanted, rtol=1e-3, atol=1e-6, check_dtype=False)
    some = castling.explain(model, IMAGES[:1], layers="blocks.[0-2].attn").model.images[0]
    assert some.rollout is None


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("castling_deit_pico", 32, 4),
        ("castling_levit_pico", 64, 5),
        ("castling_mvitv2_pico", 64, 4),
        ("qt_vit_pico", 64, 2),
        ("levit_s8_pico", 64, None),
    ],
)
def test_our_models(name, size, layers):
    model = timm.create_model(name, num_classes=4).eval()
    found = castling.explain(model, torch.randn(1, 3, size, size)).model
    assert not found.missing
    assert layers is None or len(found.layers) == layers
    for layer in found.layers:
        shares = zip(layer.kernel_share, layer.local_share, layer.auxiliary_share, strict=True)
        assert [sum(each) for each in shares] == pytest.approx([1.0] * len(layer.kernel_share))
        assert layer.distance is not None
        assert all(0 <= far < size * 2**0.5 for far in layer.distance)
        assert (layer.own_weight is None) == (layer.queries != layer.keys)
    assert found.images[0].activation is not None


def test_mixers_without_a_matrix_are_listed_and_still_have_pictures():
    model = timm.create_model("cas_vit_pico", num_classes=4).eval()
    found = castling.explain(model, IMAGES).model
    assert not found.layers
    assert len(found.missing) == 5 == len(found.fields)
    assert all("convolutional_additive" in reason for reason in found.missing.values())
    assert found.images[0].activation.shape == (2, 2)


def test_attentions_that_no_adapter_knows_are_listed():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3, global_pool="map"
    ).eval()
    found = castling.explain(model, IMAGES).model
    assert [layer.name for layer in found.layers] == ["blocks.0.attn"]
    assert list(found.missing) == ["attn_pool"]
    assert "one query" in found.missing["attn_pool"]
    assert found.images[0].rollout is None


def test_models_without_any_adapter_have_receptive_fields_and_class_activation():
    model = timm.create_model("efficientvit_b0", num_classes=3).eval()
    found = castling.explain(model, torch.randn(1, 3, 64, 64)).model
    assert not found.layers
    assert list(found.missing) == list(found.attentions)
    assert all("ReLU feature maps" in reason for reason in found.missing.values())
    assert len(found.fields) == 4
    assert found.images[0].activation.shape == (2, 2)


def test_a_host_that_does_not_tell_its_grid():
    model = timm.create_model(
        "beit_base_patch16_224",
        img_size=(32, 64),
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=3,
    ).eval()
    found = castling.explain(model, torch.randn(1, 3, 32, 64)).model
    layer = found.layers[1]
    assert (layer.grid, layer.prefix) == ((4, 8), 1)
    assert "proportions" in layer.note
    # Nearly uniform at random weights: the mean distance of two patches of 4×8.
    places = (torch.cartesian_prod(torch.arange(4.0), torch.arange(8.0)) + 0.5) * 8
    wanted = torch.cdist(places, places).mean().item()
    assert layer.distance == pytest.approx([wanted] * 2, rel=0.02)
    assert found.images[0].activation.shape == (4, 8)
    assert len(found.fields) == 2


def test_windows_are_no_grid_of_the_image():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(2, 2),
        num_classes=3,
    ).eval()
    name = "layers.0.blocks.0.attn"
    found = castling.explain(model, torch.randn(1, 3, 32, 32), layers=[name]).model
    (layer,) = found.layers
    assert (layer.keys, layer.grid, layer.distance) == (16, None, None)
    assert "not known" in layer.note
    assert len(layer.entropy) == 2


def test_a_model_of_transformers():
    model = transformers_vit(3)
    before = castling.explain(model, IMAGES)
    assert [layer.attention for layer in before.model.layers] == ["softmax"] * 2
    assert before.model.layers[0].grid == (4, 4)
    assert before.model.images[0].activation.shape == (4, 4)
    castling.linearize_(model, "relu_linear")
    after = castling.explain(model, IMAGES).model
    assert [layer.attention for layer in after.layers] == ["relu_linear"] * 2
    assert len(after.layers[0].distance) == 2


def test_the_model_is_as_it_was():
    model = vit(castling.LinearAngular(auxiliary=castling.MaskedSoftmax())).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(m._forward_hooks) for m in model.modules()]
    with torch.inference_mode():
        castling.explain(model, IMAGES)
    assert model.training
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())
    assert not any("attend" in vars(m) for m in model.modules())


def test_auxiliary_and_local_shares():
    config = castling.LinearAngular(local="grid2d", auxiliary=castling.MaskedSoftmax())
    model = vit(config)
    first = castling.explain(model, IMAGES).model.layers[0]
    assert not first.exact
    assert min(*first.kernel_share, *first.local_share, *first.auxiliary_share) > 0
    castling.attention.set_progress(model, 1.0)
    closed = castling.explain(model, IMAGES).model.layers[0]
    assert set(closed.auxiliary_share) == {0.0}


def test_a_teacher_stands_beside():
    teacher = vit()
    student = vit("relu_linear")
    found = castling.explain(
        student, IMAGES, teacher=teacher, model_name="student", teacher_name="teacher"
    )
    assert found.teacher == dataclasses.replace(
        castling.explain(teacher, IMAGES, model_name="teacher").model,
        fields=found.teacher.fields,
        images=found.teacher.images,
    )
    assert {layer.attention for layer in found.model.layers} == {"relu_linear"}
    text = str(found)
    assert text.index("student") < text.index("teacher")
    # Of a host that calls its layers otherwise, all are shown.
    other = timm.create_model("castling_levit_pico", num_classes=4).eval()
    images = torch.randn(1, 3, 64, 64)
    wide = vit(img_size=64)
    beside = castling.explain(wide, images, teacher=other, layers="blocks.0.attn")
    assert len(beside.model.layers) == 1
    assert len(beside.teacher.layers) == 5


def test_a_field_of_the_first_layer_is_its_patch_without_mixing():
    """Attention whose output is the token's own value sees one patch of 4×4 pixels."""
    model = vit(castling.LinearAngular(constant="identity", normalize="none", local="none"))
    with torch.no_grad():
        for block in model.blocks:
            qkv = block.attn.qkv
            qkv.weight[: 2 * qkv.in_features].zero_()  # no query matches a key
            qkv.bias[: 2 * qkv.in_features].zero_()
    found = castling.explain(model, IMAGES).model
    first = found.fields[0].field
    inside = first[16:20, 16:20]
    assert (inside > 0).all()
    assert first.sum() == inside.sum()
    assert found.fields[0].half_area <= 16 / 1024
    assert found.layers[0].distance == pytest.approx([0.0] * len(found.layers[0].distance))
    assert found.layers[0].own_weight == pytest.approx([1.0] * len(found.layers[0].own_weight))


class Pooled(nn.Module):
    """A classifier whose class 1 is the mean of the first channel in front of its attention."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.attn = castling.attention.Attention(3, 1, "relu_linear", proj_bias=False)
        nn.init.zeros_(self.attn.proj.weight)

    def forward(self, images):
        tokens = F.avg_pool2d(images, 4)
        mixed = tokens.flatten(2).transpose(1, 2)
        out = mixed + self.attn(mixed, grid=tokens.shape[-2:])
        return torch.stack([out[..., 0].mean(1) * 0 - 1, out[..., 0].mean(1)], dim=1)


def test_class_activation_where_the_answer_is_known():
    images = -torch.ones(1, 3, 16, 24)
    images[:, 0, 4:8, 8:12] = 40.0  # the second patch row, third column
    found = castling.explain(Pooled(), images, classes=["no", "yes"]).model.images[0]
    assert (found.predicted, found.label) == (1, "yes")
    wanted = torch.zeros(4, 6, dtype=torch.float64)
    wanted[1, 2] = 1
    assert torch.equal(found.activation, wanted)
    assert found.activation_layer == "attn"


def test_a_model_without_classes_has_no_class_activation():
    model = vit().eval()
    model.reset_classifier(0)
    found = castling.explain(model, IMAGES).model
    assert found.images[0].activation is None
    assert any("no scores of classes" in note for note in found.notes)
    assert found.images[0].predicted is None


def test_outputs_that_say_nothing_are_noted():
    model = vit()
    nn.init.zeros_(model.blocks[0].attn.proj.weight)  # as LeViT starts
    nn.init.constant_(model.head.bias, float("inf"))
    found = castling.explain(model, IMAGES).model
    assert [field.layer for field in found.fields] == [f"blocks.{i}.attn" for i in (1, 2, 3)]
    assert "blocks.0.attn (no pixel moves its output)" in found.notes[0]
    assert "not finite" in found.notes[1]
    assert found.images[0].probability is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_too_many_tokens():
    found = castling.explain(vit(), IMAGES, max_tokens=64).model
    assert not found.layers
    assert len(found.missing) == 4
    assert "max_tokens=64" in found.missing["blocks.0.attn"]
    assert len(found.fields) == 4  # gradients need no matrix
    assert found.images[0].activation is not None
    assert len(castling.explain(vit(), IMAGES, max_tokens=65).model.layers) == 4


def test_a_copy_that_computes_something_else_is_not_shown(monkeypatch):
    model = vit()
    kernel = castling.attention.SoftmaxKernel.forward
    monkeypatch.setattr(
        castling.attention.SoftmaxKernel, "forward", lambda *args: kernel(*args) * 1.01
    )
    found = castling.explain(model, IMAGES).model
    assert not found.layers
    assert all("another output" in reason for reason in found.missing.values())


def test_refusals():
    with pytest.raises(ValueError, match="no attention that can be explained"):
        castling.explain(nn.Sequential(nn.Conv2d(3, 4, 3)), IMAGES)
    with pytest.raises(ValueError, match="holds no image"):
        castling.explain(vit(), IMAGES[:0])
    with pytest.raises(ValueError, match="one tensor"):
        castling.explain(vit(), IMAGES[0])
    with pytest.raises(ValueError, match="one tensor"):
        castling.explain(vit(), (IMAGES * 9).to(torch.uint8))
    with pytest.raises(ValueError, match="not finite"):
        castling.explain(vit(), IMAGES.log())
    with pytest.raises(ValueError, match="2 images and 1 names"):
        castling.explain(vit(), IMAGES, names=["a"])
    with pytest.raises(ValueError, match=r"layers='stages'.*blocks.0.attn"):
        castling.explain(vit(), IMAGES, layers="stages")
    with pytest.raises(ValueError, match="same size"):
        castling.explain(vit(), IMAGES, teacher=vit(), teacher_images=IMAGES[:1])
    with pytest.raises(ValueError, match="go together"):
        castling.explain(vit(), IMAGES, mean=[0.5] * 3)


def test_nothing_is_logged(caplog):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3, global_pool="map"
    ).eval()  # linearize_ would warn of its pooling head
    with caplog.at_level(logging.INFO):
        castling.explain(model, IMAGES)
    assert not caplog.records


def test_recording_leaves_the_copy_as_it_was():
    recorder = Recorder(vit())
    first, second = (recorder.record(IMAGES[:1]) for _ in range(2))
    assert not any("attend" in vars(m) for m in recorder.copy.modules())
    assert [each.calls for each in (*first.values(), *second.values())] == [1] * 8


def test_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    found = castling.explain(vit("relu_linear"), IMAGES, teacher=vit(), names=["<one>", "two"])
    assert found.teacher.name == "VisionTransformer (teacher)"
    page = found.save(tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert page.name == PAGE
    assert "&lt;one&gt;" in text
    assert "<one>" not in text
    for heading in ("Images", "Over depth", "Effective receptive field", "Figures"):
        assert f"<h2>{heading}</h2>" in text
    values = json.loads((tmp_path / "out" / FIGURES).read_text(encoding="utf-8"))
    assert values == found.to_dict()
    assert len(values["teacher"]["layers"]) == 4
    with pytest.raises(FileExistsError, match="overwrite"):
        found.save(tmp_path / "out")
    assert found.save(tmp_path / "out", overwrite=True) == page
    monkeypatch.setattr(Explanation, "to_dict", lambda self: {"unwritable": object()})
    with pytest.raises(TypeError):
        found.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_pictures_are_the_images_as_they_were():
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    shape = (1, 3, 1, 1)
    images = (pixels / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    found = castling.explain(vit(), images, mean=mean, std=std, layers="blocks.0.attn")
    assert torch.equal(found.pictures, pixels)
