"""Backbones of pre-trained models in classifiers and in dense models with other heads."""

from pathlib import Path

import pytest
import torch
from torch import nn

import castling
from castling.heads.distill_features import DistillFeaturesConfig
from castling.models.builder import build_model
from castling.models.card import ModelCard, describe_attention
from castling.models.dense import head_config, head_to_dict
from castling.models.saved import save_model
from castling.models.starting_weights import check_start, start_from
from castling.tasks.teacher import load_feature_teacher

TOKENS = {"name": "linear_angular", "kv_scale": "tokens"}
SMALL = {"width": 32, "depth": 1, "attention_heads": 2}
SOURCES = {
    "mae castled": ("mae/deit_pico", TOKENS, SMALL, 32),
    "mae softmax": ("mae/deit_pico", None, SMALL, 32),
    "simmim vit": ("simmim/deit_pico", TOKENS, {"unit": 8}, 32),
    "simmim cas_vit": ("simmim/cas_vit_pico", None, {}, 64),
    "simmim levit": ("simmim/castling_levit_pico", None, {}, 64),
    "features qt_vit": ("distill_features/qt_vit_pico", None, {"teacher": "deit_pico"}, 64),
}


def pretrained(path: Path, name: str, attention=None, options=None, side=32) -> nn.Module:
    """A model with random weights, saved as the result of a run."""
    model = build_model(name, {}, attention, head=options, image_size=(side, side))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    head = name.split("/")[0]
    card = ModelCard(
        name=name,
        classes=[],
        preprocessing={"image_size": [side, side], "mean": [0.5] * 3, "std": [0.25] * 3},
        task={"name": "pretraining"},
        head=head_to_dict(head, head_config(head, options)),
        kwargs={"img_size": side} if "deit" in name or "levit" in name else {},
        attention=describe_attention(attention),
    )
    save_model(model, path, card)
    return model


def maps(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images)["features"]


@pytest.mark.parametrize("source", SOURCES)
def test_a_classifier_computes_the_same_features(tmp_path: Path, source: str) -> None:
    name, attention, options, side = SOURCES[source]
    model = pretrained(tmp_path, name, attention, options, side)
    target = build_model(name.split("/")[1], {"num_classes": 5}, attention, image_size=(side, side))
    before = {n: t.detach().clone() for n, t in target.named_parameters()}
    report = start_from(target, tmp_path, classes=list("abcde"))
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        if "deit" in name:
            tokens = target.eval().forward_intermediates(
                images, indices=1, norm=name.startswith("mae"), intermediates_only=True
            )
            found = tokens[-1]
        else:
            found = target.eval().forward_intermediates(images, intermediates_only=True)[-1]
    torch.testing.assert_close(found, maps(model, images))
    kept = {n for n, p in target.named_parameters() if torch.equal(p, before[n])}
    assert kept <= {*report.kept_head}
    assert all(n.startswith(("head", "norm", "final")) for n in report.kept_head)
    assert report.loaded == len(target.state_dict()) - len(report.kept_head)
    share = f"{report.loaded} of {len(target.state_dict())} entries of the model"
    assert any(note.startswith(share) for note in report.notes)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("mae castled", "retinanet_pico"),
        ("mae softmax", "simmim"),
        ("simmim levit", "retinanet_pico"),
        ("simmim vit", "mae"),
    ],
)
def test_a_dense_model_computes_the_same_features(tmp_path: Path, source: str, target: str) -> None:
    name, attention, options, side = SOURCES[source]
    model = pretrained(tmp_path, name, attention, options, side)
    options = {"mae": SMALL, "simmim": {"unit": 8}}.get(target)
    other = build_model(
        f"{target}/{name.split('/')[1]}", {}, attention, head=options, image_size=(side, side)
    )
    report = start_from(other, tmp_path)
    images = torch.randn(2, 3, side, side)
    expected = model.eval().backbone.body
    found = other.eval().backbone.body
    with torch.no_grad():
        if "deit" in name:  # before the last norm, which feature maps do without
            vits = [getattr(body, "model", body) for body in (expected, found)]
            one, same = (v.forward_intermediates(images, intermediates_only=True)[-1] for v in vits)
        else:
            one, same = (body(images)[-1] for body in (expected, found))
    torch.testing.assert_close(same, one)
    assert any("entries of the backbone (" in n for n in report.notes)


def test_positions_are_resized_to_the_images(tmp_path: Path) -> None:
    model = pretrained(tmp_path, "mae/deit_pico", TOKENS, SMALL)
    target = build_model("deit_pico", {"num_classes": 3}, TOKENS, image_size=(48, 64))
    report = start_from(target, tmp_path)
    assert report.resized == ("pos_embed",)
    assert target.pos_embed.shape == (1, 1 + 12 * 16, 64)
    own = model.backbone.body.pos_embed
    torch.testing.assert_close(target.pos_embed[:, 0], own[:, 0])
    mean = target.pos_embed[:, 1:].mean(1)
    torch.testing.assert_close(mean, own[:, 1:].mean(1), rtol=0.05, atol=0.02)


def test_softmax_pretraining_starts_a_castled_model(tmp_path: Path) -> None:
    """As for any softmax host: what the conversion adds is new."""
    pretrained(tmp_path, "mae/deit_pico", None, SMALL)
    target = build_model("castling_deit_pico", {"num_classes": 3})
    report = start_from(target, tmp_path)
    assert report.new
    assert all("dconv" in name for name in report.new)


@pytest.mark.parametrize(
    ("name", "kwargs", "attention", "says"),
    [
        ("deit_pico", {"depth": 5}, TOKENS, "missing in the file"),
        ("deit_pico", {"depth": 3}, TOKENS, "unknown to the model"),
        ("deit_pico", {"embed_dim": 32}, TOKENS, "shapes"),
        ("deit_pico", {}, None, "unknown to the model"),  # local residuals
        ("cas_vit_pico", {}, None, "does not fit|holds nothing"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, name, kwargs, attention, says) -> None:
    pretrained(tmp_path, "mae/deit_pico", TOKENS, SMALL)
    with pytest.raises(ValueError, match=says) as caught:
        check_start(tmp_path, name, kwargs, attention, image_size=(32, 32))
    assert f"the weights in {tmp_path} are of mae/deit_pico: " in str(caught.value)


def test_another_form_of_the_attention_is_said(tmp_path: Path) -> None:
    pretrained(tmp_path, "mae/deit_pico", TOKENS, SMALL)
    same = build_model("deit_pico", {}, {**TOKENS, "auxiliary": {"alpha": 0.9}})
    assert "trained with" not in str(start_from(same, tmp_path))
    other = build_model("deit_pico", {}, "linear_angular")
    assert "trained with kv_scale 'tokens' (here 1.0)" in str(start_from(other, tmp_path))


def test_a_classifiers_file_makes_a_teacher(tmp_path: Path) -> None:
    """Its backbone is filled and frozen; images are scaled to multiples of its stride."""
    classifier = build_model("cas_vit_pico", {"num_classes": 3})
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    options = {"teacher": "cas_vit_pico", "teacher_checkpoint": str(tmp_path / "weights.pth")}
    teacher = load_feature_teacher(DistillFeaturesConfig(**options))
    images = torch.randn(2, 3, 70, 64)
    scaled = nn.functional.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    expected = classifier.eval().forward_intermediates(scaled, intermediates_only=True)[-1]
    mean, std = teacher.mean, teacher.std
    teacher.match(mean, std)
    torch.testing.assert_close(teacher(images), expected)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert (
        castling.create_model("distill_features/deit_pico", head=options).projection.weight.shape[0]
        == 64
    )
