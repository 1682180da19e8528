"""Weights to start from: into the host before conversion, other classes, other sizes, runs."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import castling
from castling.models.builder import build_model
from castling.models.card import ModelCard
from castling.models.saved import save_model
from castling.models.starting_weights import check_start, start_from
from castling.surgery import strip_

PREPROCESSING = {"image_size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}


def saved(model: nn.Module, path: Path) -> Path:
    torch.save({"model": model.state_dict()}, path / "weights.pth")
    return path / "weights.pth"


def outputs(model: nn.Module, side: int = 32) -> torch.Tensor:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(images)


@pytest.mark.parametrize(
    ("host", "converted", "side"),
    [("deit_pico", "castling_deit_pico", 32), ("levit_128s", "castling_levit_128s", 224)],
)
@pytest.mark.parametrize("attention", [None, "linear_angular", "hedgehog"])
def test_softmax_weights_as_if_loaded_before_the_conversion(
    tmp_path: Path, host: str, converted: str, side: int, attention: str | None
) -> None:
    source = timm.create_model(host, num_classes=5)
    path = saved(source, tmp_path)
    name = converted if attention is None else host
    torch.manual_seed(3)
    target = build_model(name, {"num_classes": 5}, attention)
    report = start_from(target, path)
    added = set(target.state_dict()) - set(source.state_dict())
    assert set(report.new) == {n for n in added if "num_batches" not in n}
    assert report.missing == report.unexpected == report.kept_head == ()
    torch.manual_seed(3)
    expected = timm.create_model(host, num_classes=5)
    expected.load_state_dict(source.state_dict())
    castling.linearize_(expected, attention or castling.models.castling_vit.CASTLING)
    expected.load_state_dict({n: target.state_dict()[n] for n in added}, strict=False)
    assert torch.equal(outputs(target, side), outputs(expected, side))


def test_weights_of_the_converted_model_itself(tmp_path: Path) -> None:
    source = build_model("deit_pico", {"num_classes": 5}, "linear_angular")
    with torch.no_grad():
        source.blocks[1].attn.dconv.weight.fill_(0.3)
    target = build_model("deit_pico", {"num_classes": 5}, "linear_angular")
    report = start_from(target, saved(source, tmp_path))
    assert report.new == ()
    assert torch.equal(outputs(target), outputs(source))


def test_a_model_converted_in_fewer_layers(tmp_path: Path) -> None:
    source = build_model("deit_pico", {}, "linear_angular", ["blocks.0.attn"])
    target = build_model("deit_pico", {}, "linear_angular")
    report = start_from(target, saved(source, tmp_path))
    assert report.new == tuple(f"blocks.{i}.attn.dconv.weight" for i in (1, 2, 3))
    assert torch.equal(target.blocks[0].attn.dconv.weight, source.blocks[0].attn.dconv.weight)


def test_linear_weights_into_softmax_are_refused(tmp_path: Path) -> None:
    path = saved(build_model("deit_pico", {}, "linear_angular"), tmp_path)
    with pytest.raises(ValueError, match="attention has parameters that the model's has not"):
        start_from(timm.create_model("deit_pico"), path)


def test_efficientvit_into_qt_vit(tmp_path: Path) -> None:
    source = timm.create_model("efficientvit_b1", num_classes=5)
    target = timm.create_model("qt_vit_1", num_classes=5)
    report = start_from(target, saved(source, tmp_path))
    assert report.new
    assert all(
        any(part in name for part in (".main.bn.", ".positional_encoding", ".kernel."))
        for name in report.new
    )


def test_a_switched_file_starts_an_unswitched_model(tmp_path: Path) -> None:
    source = timm.create_model("castling_levit_pico", num_classes=5)
    strip_(source)
    target = timm.create_model("castling_levit_pico", num_classes=5)
    report = start_from(target, saved(source, tmp_path))
    assert report.new
    assert all(name.endswith("attention_biases") for name in report.new)


@pytest.mark.parametrize(
    ("name", "options", "heads"),
    [
        ("deit_pico", {}, ["head.weight", "head.bias"]),
        (
            "deit_tiny_distilled_patch16_224",
            {"depth": 1, "img_size": 32},
            ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"],
        ),
        (
            "castling_levit_128s",
            {},
            [f"{head}.linear.{e}" for head in ("head", "head_dist") for e in ("weight", "bias")],
        ),
        (
            "cas_vit_pico",
            {"distillation": True},
            ["head.weight", "head.bias", "dist_head.weight", "dist_head.bias"],
        ),
        ("castling_mvitv2_pico", {}, ["head.fc.weight", "head.fc.bias"]),
        ("qt_vit_pico", {}, ["head.classifier.4.weight", "head.classifier.4.bias"]),
    ],
)
def test_other_classes_start_the_classifier_afresh(
    tmp_path: Path, name: str, options: dict[str, Any], heads: list[str]
) -> None:
    source = timm.create_model(name, num_classes=9, **options)
    target = timm.create_model(name, num_classes=4, **options)
    before = {n: t.clone() for n, t in target.state_dict().items()}
    report = start_from(target, saved(source, tmp_path))
    assert sorted(report.kept_head) == sorted(heads)
    assert "new classifier" in str(report)
    for entry, tensor in target.state_dict().items():
        wanted = before if entry in heads else source.state_dict()
        assert torch.equal(tensor, wanted[entry])


def test_weight_and_bias_of_a_classifier_belong_together(tmp_path: Path) -> None:
    source = timm.create_model("deit_pico", num_classes=4)
    state = source.state_dict()
    del state["head.bias"]
    torch.save(state, tmp_path / "weights.pth")
    target = timm.create_model("deit_pico", num_classes=4)
    before = target.head.weight.clone()
    report = start_from(target, tmp_path / "weights.pth")
    assert report.kept_head == ("head.weight", "head.bias")
    assert torch.equal(target.head.weight, before)


def test_a_backbone_without_classifier(tmp_path: Path) -> None:
    source = timm.create_model("deit_pico", num_classes=0)
    target = timm.create_model("castling_deit_pico", num_classes=4)
    assert start_from(target, saved(source, tmp_path)).kept_head == ("head.weight", "head.bias")


def run_folder(path: Path, classes: list[str], **kwargs: Any) -> nn.Module:
    card = ModelCard(
        name="castling_deit_pico",
        classes=classes,
        preprocessing=PREPROCESSING,
        kwargs={"num_classes": len(classes), **kwargs},
    )
    model = build_model(card.name, card.kwargs)
    with torch.no_grad():
        model.pos_embed.normal_()
    save_model(model, path, card)
    return model


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_run_with_other_classes_and_another_size(tmp_path: Path, file: str) -> None:
    source = run_folder(tmp_path, ["a", "b"], img_size=[24, 40])
    target = build_model("castling_deit_pico", {"num_classes": 2, "img_size": 32})
    head = target.head.weight.clone()
    report = start_from(target, tmp_path / file, classes=["b", "a"], mean=[0.4] * 3, std=[0.25] * 3)
    assert report.kept_head == ("head.weight", "head.bias")  # as many classes, other ones
    assert torch.equal(target.head.weight, head)
    assert report.resized == ("pos_embed",)  # the card tells the grid, which is no square
    assert "pos_embed resized from 6×10 to 8×8" in report.notes
    assert any("classes are not those of the data" in note for note in report.notes)
    assert any("mean 0.5 0.5 0.5" in note and "0.4 0.4 0.4" in note for note in report.notes)
    assert torch.equal(target.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


def test_the_same_classes_keep_the_classifier(tmp_path: Path) -> None:
    source = run_folder(tmp_path, ["a", "b"], img_size=32)
    target = build_model("castling_deit_pico", {"num_classes": 2, "img_size": 32})
    report = start_from(target, tmp_path, classes=["a", "b"], mean=[0.5] * 3, std=[0.25] * 3)
    assert report.kept_head == ()
    assert not any("normalises" in note for note in report.notes)
    assert torch.equal(outputs(target), outputs(source))


def test_another_architecture_is_refused_before_anything(tmp_path: Path) -> None:
    path = saved(timm.create_model("deit_pico", embed_dim=32), tmp_path)
    with pytest.raises(ValueError, match="of width 32, depth 4, patch 4; the model is a ViT of"):
        check_start(path, "castling_deit_pico", {}, image_size=(32, 32))
    check_start(path, "castling_deit_pico", {"embed_dim": 32}, image_size=(48, 48))
    broken = timm.create_model("deit_pico")
    with torch.no_grad():
        broken.norm.bias[5] = torch.nan
    with pytest.raises(ValueError, match=r"not finite.*norm\.bias \(NaN, 1 of 64\)"):
        check_start(saved(broken, tmp_path), "castling_deit_pico", {}, image_size=(32, 32))
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        check_start(tmp_path / "none.pth", "castling_deit_pico", {}, image_size=(32, 32))


def test_a_damaged_card_beside_the_weights_is_named(tmp_path: Path) -> None:
    run_folder(tmp_path, ["a", "b"])
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.json does not describe a castling model"):
        start_from(timm.create_model("castling_deit_pico"), tmp_path / "model.safetensors")


def test_the_report_says_everything(tmp_path: Path) -> None:
    source = timm.create_model("deit_pico", num_classes=9, img_size=48)
    torch.save(
        {"state_dict": source.state_dict(), "state_dict_ema": source.state_dict()},
        tmp_path / "w.pth",
    )
    target = timm.create_model("castling_deit_pico", num_classes=4)
    assert str(start_from(target, tmp_path / "w.pth")).splitlines() == [
        f"weights: 54 entries of {tmp_path / 'w.pth'}, state_dict",
        "  new classifier, not from the file: head.weight, head.bias",
        "  new in this attention, not in the file: blocks.0.attn.dconv.weight, "
        "blocks.1.attn.dconv.weight, blocks.2.attn.dconv.weight and 1 more",
        "  also in the file, not used: state_dict_ema",
        "  pos_embed resized from 12×12 to 8×8",
    ]
