"""Tables of positions and patches of other sizes, against timm and the models themselves."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import vision_transformer
from torch import nn

import castling
from castling.surgery import load_checkpoint


def saved(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path / "weights.pth")
    return path / "weights.pth"


def outputs(model: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(images)


def randomise(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=3.0 if name.endswith("attention_biases") else 0.2)
    return model


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to rounding, whatever their size."""
    assert (found - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize(
    "options",
    [{}, {"reg_tokens": 3}, {"no_embed_class": True}, {"class_token": False, "global_pool": "avg"}],
    ids=["class token", "registers", "positions of patches alone", "no class token"],
)
@pytest.mark.parametrize("size", [16, 48, (24, 40)])
def test_absolute_positions_as_timm_resizes_them(tmp_path: Path, options: Any, size: Any) -> None:
    options = {"depth": 1, **options}
    source = randomise(timm.create_model("deit_pico", **options))
    target = timm.create_model("deit_pico", img_size=size, **options)
    report = load_checkpoint(target, saved(source, tmp_path))
    assert report.resized == ("pos_embed",)
    expected = vision_transformer.checkpoint_filter_fn(dict(source.state_dict()), target)
    assert torch.equal(target.pos_embed, expected["pos_embed"])
    assert torch.equal(target.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


def test_resized_once_or_at_every_call_is_the_same(tmp_path: Path) -> None:
    source = timm.create_model("castling_deit_pico", depth=1, dynamic_img_size=True)
    target = timm.create_model("castling_deit_pico", depth=1, img_size=48)
    load_checkpoint(target, saved(source, tmp_path))
    assert_same(outputs(target, (48, 48)), outputs(source, (48, 48)))


def test_positions_that_are_no_square_need_the_image_size(tmp_path: Path) -> None:
    source = randomise(timm.create_model("deit_pico", depth=1, img_size=(24, 40)))
    path = saved(source, tmp_path)
    target = timm.create_model("deit_pico", depth=1, img_size=32)
    before = target.pos_embed.clone()
    with pytest.raises(ValueError, match=r"60 positions, which are no square"):
        load_checkpoint(target, path)
    assert torch.equal(target.pos_embed, before)
    report = load_checkpoint(target, path, image_size=(24, 40))
    assert report.notes == ("pos_embed resized from 6×10 to 8×8",)
    grid = source.pos_embed[:, 1:].unflatten(1, (6, 10)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(
        grid, size=(8, 8), mode="bicubic", align_corners=False, antialias=True
    )
    torch.testing.assert_close(
        target.pos_embed[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2), rtol=0, atol=1e-6
    )


def test_as_many_positions_on_another_grid(tmp_path: Path) -> None:
    source = randomise(timm.create_model("deit_pico", depth=1, img_size=(16, 64)))
    target = timm.create_model("deit_pico", depth=1, img_size=32)
    report = load_checkpoint(target, saved(source, tmp_path), image_size=(16, 64))
    assert report.notes == ("pos_embed resized from 4×16 to 8×8",)
    assert not torch.equal(target.pos_embed, source.pos_embed)


def test_patches_of_another_size(tmp_path: Path) -> None:
    source = randomise(timm.create_model("deit_pico", depth=1, patch_size=8, img_size=64))
    target = timm.create_model("deit_pico", depth=1, patch_size=4, img_size=32)
    report = load_checkpoint(target, saved(source, tmp_path))
    assert report.resized == ("patch_embed.proj.weight",)
    # The pseudo-inverse makes smooth images look the same to both embeddings.
    smooth = nn.functional.interpolate(torch.randn(1, 3, 4, 4), size=64, mode="bilinear")
    with torch.no_grad():
        large = source.patch_embed(smooth)
        small = target.patch_embed(nn.functional.interpolate(smooth, size=32, mode="area"))
    assert nn.functional.cosine_similarity(large, small, dim=-1).mean() > 0.95


@pytest.mark.parametrize("name", ["castling_levit_pico", "castling_mvitv2_pico"])
def test_relative_positions_as_the_model_resizes_them_itself(tmp_path: Path, name: str) -> None:
    source = randomise(timm.create_model(name, num_classes=5))
    target = timm.create_model(name, num_classes=5, img_size=(96, 96))
    report = load_checkpoint(target, saved(source, tmp_path))
    assert report.resized
    assert all("bias" in name or "rel_pos" in name for name in report.resized)
    expected = outputs(source, (96, 96))  # the adapters resize while running
    assert_same(outputs(target, (96, 96)), expected)


def test_timms_own_hosts_with_relative_positions(tmp_path: Path) -> None:
    source = randomise(timm.create_model("levit_128s", num_classes=5))
    target = timm.create_model("levit_128s", num_classes=5, img_size=256)
    report = load_checkpoint(target, saved(source, tmp_path))
    assert "stages.0.blocks.0.attn.attention_biases" in report.resized
    assert target.stages[0].blocks[0].attn.attention_biases.shape == (4, 16 * 16)
    castling.linearize_(source, "softmax")  # the adapter resizes while running
    assert_same(outputs(target, (256, 256)), outputs(source, (256, 256)))


def test_key_tables_of_qt_vit(tmp_path: Path) -> None:
    source = timm.create_model("qt_vit_pico", num_classes=5)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if name.endswith("positional_encoding"):
                parameter.normal_()
    target = timm.create_model("qt_vit_pico", num_classes=5, img_size=48)
    report = load_checkpoint(target, saved(source, tmp_path))
    assert report.resized
    assert all(name.endswith("positional_encoding") for name in report.resized)
    source.set_input_size(48)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])


def test_other_widths_are_not_resized(tmp_path: Path) -> None:
    path = saved(timm.create_model("deit_pico", depth=1, embed_dim=32, img_size=48), tmp_path)
    with pytest.raises(ValueError, match="ViT of width 32, depth 1, patch 4; the model is a ViT"):
        load_checkpoint(timm.create_model("deit_pico", depth=1), path)


def test_the_nearest_model_is_named(tmp_path: Path) -> None:
    path = saved(timm.create_model("vit_tiny_patch16_224"), tmp_path)
    with pytest.raises(ValueError, match=r"depth 12, patch 16 \(vit_tiny_patch16_224\)"):
        load_checkpoint(timm.create_model("qt_vit_pico"), path)


def test_names_of_dinov2_as_timm_reads_them(tmp_path: Path) -> None:
    options = {"depth": 1, "reg_tokens": 2, "no_embed_class": True, "num_classes": 0}
    source, target = (timm.create_model("deit_pico", **options) for _ in range(2))
    state = dict(randomise(source).state_dict())
    official = {
        "mask_token": torch.zeros(1, 64),
        "register_tokens": state.pop("reg_token"),
        "cls_token": state.pop("cls_token"),
        "pos_embed": torch.cat([torch.zeros(1, 1, 64), state.pop("pos_embed")], dim=1),
    }
    torch.save(
        {"teacher": {f"backbone.{n}": t for n, t in (state | official).items()}}, tmp_path / "d.pth"
    )
    report = load_checkpoint(target, tmp_path / "d.pth")
    assert report.source == "teacher"
    assert torch.equal(target.pos_embed, source.pos_embed)
    assert torch.equal(target.reg_token, source.reg_token)
    assert torch.equal(outputs(target, (32, 32)), outputs(source, (32, 32)))
