"""Models saved by timm's own functions come back with their attention, or not at all."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import nn

import castling
from castling.attention import set_progress
from castling.models.registry import list_models
from castling.surgery import strip_

pytest.importorskip("huggingface_hub")
BRANCH = castling.MaskedSoftmax()
PLAIN = castling.LinearAngular(local="none")


def outputs(model: nn.Module) -> torch.Tensor:
    size = model.pretrained_cfg["input_size"]
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(images)


def create(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, num_classes=7, **options)


def linearized(name: str, attention: Any, where: Any = None) -> nn.Module:
    model = create(name)
    castling.linearize_(model, attention, where)
    return model


def switched(name: str, **options: Any) -> nn.Module:
    model = create(name, **options)
    strip_(model)
    return model


def in_progress(name: str, progress: float, **options: Any) -> nn.Module:
    model = create(name, **options)
    set_progress(model, progress)
    return model


MODELS = {
    "named": lambda: create("castling_deit_pico"),
    "named, another attention": lambda: create("castling_deit_pico", attention=PLAIN),
    "named, by name": lambda: create("castling_deit_pico", attention="relu_linear"),
    "named, switched": lambda: switched("castling_deit_pico"),
    "named, ramp half way": lambda: in_progress("castling_levit_pico", 0.5),
    "named, ramp ended": lambda: in_progress("castling_deit_pico", 1.0),
    "named, converted again": lambda: linearized("castling_deit_pico", "cosine"),
    "LeViT, switched": lambda: switched("castling_levit_pico"),
    "MViTv2, switched": lambda: switched("castling_mvitv2_pico"),
    "named, distilled": lambda: create(
        "castling_deit_tiny_patch16_224", distilled=True, depth=1, dynamic_img_size=False
    ),
    "host": lambda: linearized("deit_pico", "relu_linear"),
    "host, published size": lambda: linearized("levit_128s", PLAIN),
    "some layers": lambda: linearized("deit_pico", PLAIN, "blocks.[02].attn"),
    "several attentions": lambda: linearized(
        "deit_pico", PLAIN, {"blocks.0": "relu_linear", "blocks.1": "cosine"}
    ),
    "QT-ViT": lambda: create("qt_vit_pico"),
    "QT-ViT, exact": lambda: create(
        "qt_vit_pico", attention=castling.QuadraticTaylor(form="exact")
    ),
    "QT-ViT, strides": lambda: create("qt_vit_pico", strides=(2, 1, 1, 2, 1), position=False),
    "QT-ViT with branch": lambda: in_progress(
        "qt_vit_pico", 0.9, attention=castling.QuadraticTaylor(auxiliary=BRANCH)
    ),
    "QT-ViT, switched": lambda: switched(
        "qt_vit_pico", attention=castling.QuadraticTaylor(auxiliary=BRANCH)
    ),
    "CAS-ViT": lambda: create("cas_vit_pico"),
    "CAS-ViT, pooling": lambda: create("cas_vit_pico", attention=castling.attention.Pooling()),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_saved_by_timm_and_opened_by_timm(tmp_path: Path, make: Any) -> None:
    model = make()
    save_for_hf(model, tmp_path, safe_serialization="both")
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(outputs(opened), outputs(model))
    save_for_hf(opened, tmp_path / "again")
    first, again = (
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path, tmp_path / "again")
    )
    for entry in ("architecture", "model_args"):
        assert first[entry] == again[entry]


def test_opened_for_other_classes_and_another_size(tmp_path: Path) -> None:
    model = linearized("deit_pico", "linear_angular")
    save_for_hf(model, tmp_path)
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, img_size=64)
    assert opened.head.weight.shape == (3, 64)
    assert opened.pos_embed.shape == (1, 257, 64)
    assert torch.equal(opened.blocks[0].attn.dconv.weight, model.blocks[0].attn.dconv.weight)


def test_without_castling_the_file_is_refused(tmp_path: Path) -> None:
    save_for_hf(linearized("deit_tiny_patch16_224", "relu_linear"), tmp_path)
    program = f"import timm; timm.create_model('local-dir:{tmp_path}', pretrained=True)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode
    assert "Unknown model (converted_by_castling)" in done.stderr


def test_without_arguments_the_file_is_refused(tmp_path: Path) -> None:
    save_for_hf(linearized("deit_pico", "relu_linear"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_args"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="needs host= and attention="):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_hosts_and_copies_are_described_on_their_own(tmp_path: Path) -> None:
    host = create("deit_pico")
    converted = copy.deepcopy(host)
    castling.linearize_(converted, "relu_linear")
    copied = copy.deepcopy(converted)
    castling.linearize_(copied, "cosine")
    for model in (host, converted, copied):
        model.state_dict()
    assert host.pretrained_cfg["architecture"] == "deit_pico"
    assert converted.default_cfg["architecture"] == "deit_pico"
    assert converted._model_args["attention"]["name"] == "relu_linear"
    assert copied._model_args["attention"]["name"] == "cosine"


def test_the_function_is_none_of_our_models() -> None:
    assert "converted_by_castling" in timm.list_models()
    assert "converted_by_castling" not in list_models()
