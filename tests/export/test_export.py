"""Export: the file computes what PyTorch computes, or is not there."""

import json

import pytest
import timm
import torch
from torch import nn

import castling
from castling.deploy import OnnxModel
from castling.export import ExportError, export
from castling.export.sizes import OneSizeError
from castling.models.card import ModelCard


class Convolutional(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model(
        "castling_deit_pico", attention=castling.LinearAngular(), num_classes=3, depth=1
    ).train()
    card = ModelCard(name="castling_deit_pico", classes=["a", "b", "ç"], image_size=(32, 32))
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return model, path, export(model, path, (32, 32), card=card)


def test_runs_at_three_shapes_and_at_others(exported):
    model, path, report = exported
    assert len(report.checks) == 3
    assert any(check.shape[2] != check.shape[3] for check in report.checks)
    assert len({check.shape[0] for check in report.checks}) == 3
    assert report.traced not in [check.shape for check in report.checks]
    assert report.max_difference < 1e-5
    assert report.multiple == 4
    images = torch.randn(5, 3, 20, 64)
    with torch.no_grad():
        assert torch.allclose(OnnxModel(path)(images), model.eval()(images), atol=1e-5)


def test_sides_between_patches_are_refused_and_said(exported):
    _, path, report = exported
    assert report.dynamic == "all"
    assert "multiples of 4" in str(report)
    with pytest.raises(ValueError, match=r"multiples of 4, got 38×32"):
        OnnxModel(path)(torch.randn(1, 3, 38, 32))


def test_report_lies_beside_the_file(exported):
    _, path, report = exported
    written = json.loads((path.parent / "model.onnx.json").read_text())
    assert written["max_difference"] == report.max_difference
    assert written["checks"][1]["shape"] == list(report.checks[1].shape)
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "model.onnx.json"]


def test_dimensions_are_named_and_metadata_stored(exported):
    _, path, _ = exported
    session = OnnxModel(path).session
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["a", "b", "ç"]
    assert json.loads(metadata["input_size"]) == [32, 32]


def test_unswitched_model_is_refused(tmp_path):
    model = timm.create_model("castling_deit_pico", depth=1)
    with pytest.raises(ValueError, match=r"auxiliary.*castling\.switch_"):
        export(model, tmp_path / "model.onnx", (32, 32))
    assert not list(tmp_path.iterdir())


def test_difference_above_tolerance_leaves_an_older_file_alone(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")
    model = Convolutional().train()
    with pytest.raises(ExportError, match="tolerance"):
        export(model, path, (16, 16), tolerance=-1.0)
    assert path.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert model.training
    assert int(model.norm.num_batches_tracked) == 0


def test_model_of_one_size_is_exported_for_it_and_says_so(tmp_path):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, num_classes=2, embed_dim=24, num_heads=2
    )
    castling.linearize_(model, castling.LinearAngular())
    path = tmp_path / "model.onnx"
    with pytest.raises(OneSizeError, match="--dynamic batch"):
        export(model, path, (32, 32), dynamic="all")
    with pytest.raises(OneSizeError):
        export(model, path, (32, 32), verify_sizes=[(48, 32)])
    report = export(model, path, (32, 32))
    assert report.dynamic == "batch"
    assert "dynamic_img_size=True" in report.notes[0]
    assert report.notes[0] in str(report)
    assert [check.shape[0] for check in report.checks] == [2, 1, 3]
    assert {check.shape[2:] for check in report.checks} == {(32, 32)}
    assert report.traced not in [check.shape for check in report.checks]
    with pytest.raises(ValueError, match="48×32"):
        OnnxModel(path)(torch.randn(1, 3, 48, 32))


def test_opset_is_the_one_asked_for_or_refused(tmp_path):
    path = tmp_path / "model.onnx"
    assert export(Convolutional(), path, (16, 16), opset=20).opset == 20
    path.unlink()
    with pytest.raises(ExportError, match=r"cannot write this model in opset 5"):
        export(Convolutional(), path, (16, 16), opset=5)
    assert not path.exists()


def test_bad_input_fails_before_work(tmp_path):
    with pytest.raises(ValueError, match="onnx"):
        export(Convolutional(), tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="absent"):
        export(Convolutional(), tmp_path / "absent" / "model.onnx")
    with pytest.raises(ValueError, match="sides"):
        export(Convolutional(), tmp_path / "model.onnx", dynamic="sides")
    with pytest.raises(ValueError, match="float32"):
        export(Convolutional().double(), tmp_path / "model.onnx")
    patches = timm.create_model("deit_pico", depth=1)
    with pytest.raises(ValueError, match="30×32"):
        export(patches, tmp_path / "model.onnx", (30, 32))
    with pytest.raises(ValueError, match="33×32"):
        export(patches, tmp_path / "model.onnx", (32, 32), verify_sizes=[(33, 32)])
    with pytest.raises(ValueError, match="one size"):
        export(patches, tmp_path / "m.onnx", (32, 32), dynamic="batch", verify_sizes=[(36, 32)])
    assert not list(tmp_path.iterdir())
