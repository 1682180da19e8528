"""Export: a file that computes what PyTorch computes, or none."""

import json

import onnx
import pytest
import timm
import torch
from torch import nn

import castling
from castling.export import ExportError, OneSizeError, export, open_exported
from castling.models.card import ModelCard


@pytest.fixture(scope="module")
def exported(tmp_path_factory, one_block):
    card = ModelCard(
        name="castling_deit_pico",
        classes=["a", "b", "ç"],
        preprocessing={"image_size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
    )
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    one_block.train()
    report = export(one_block, path, (32, 32), card=card)
    assert one_block.training
    return path, report


def test_checks_are_made_at_shapes_that_were_not_traced(exported):
    _, report = exported
    assert len(report.checks) == 3
    assert any(check.shape[2] != check.shape[3] for check in report.checks)
    assert len({check.shape[0] for check in report.checks}) == 3
    assert report.traced not in [check.shape for check in report.checks]
    assert report.traced[0] >= 2
    assert report.traced[2] != report.traced[3]
    assert 0 < report.max_difference < 1e-5


def test_the_file_agrees_at_further_shapes(exported, one_block):
    path, _ = exported
    images = torch.randn(5, 3, 20, 64)
    found = open_exported(path)(images)["logits"]
    with torch.no_grad():
        torch.testing.assert_close(found, one_block.eval()(images), atol=1e-5, rtol=0)


def test_report_lies_beside_the_file(exported, files):
    path, report = exported
    written = json.loads((path.parent / "model.onnx.json").read_text())
    assert written == json.loads(json.dumps(report.to_dict()))
    assert written["checks"][1]["shape"] == list(report.checks[1].shape)
    assert written["checks"][0]["outputs"]["logits"]["shape"] == [2, 3]
    assert written["target"] == "onnx"
    assert written["runtime"] == f"ONNX Runtime {written['versions']['onnxruntime']}"
    assert written["bytes"] == path.stat().st_size
    assert files(path.parent) == ["model.onnx", "model.onnx.json"]


def test_report_as_text(exported):
    _, report = exported
    text = str(report)
    assert "ONNX Runtime" in text
    assert "2 × 3 × 32 × 32" in text
    assert "100.0%" in text
    assert "multiples of 4" in text


def test_onnx_names_free_dimensions_and_tells_no_paths(exported):
    path, _ = exported
    proto = onnx.load(path)
    (images,) = proto.graph.input
    dimensions = images.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", 3, "height", "width"]
    assert images.name == "images"
    assert [value.name for value in proto.graph.output] == ["logits"]
    assert not proto.graph.value_info
    assert not any(node.metadata_props for node in proto.graph.node)


def test_the_package_is_callable(convolutional, tmp_path):
    import castling.export

    report = castling.export(convolutional, tmp_path / "model.pt2", (16, 16))
    assert report.target == "program"
    assert isinstance(report, castling.export.ExportReport)


def test_unswitched_model_is_refused(tmp_path):
    model = timm.create_model("castling_deit_pico", depth=1)
    with pytest.raises(ValueError, match=r"auxiliary.*castling\.switch_"):
        export(model, tmp_path / "model.onnx", (32, 32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_a_file_that_cannot_reproduce_the_model_leaves_older_ones_alone(
    random, tmp_path, files, suffix
):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"older")
    (tmp_path / "model.bin").write_bytes(b"older weights")
    random.train()
    with pytest.raises(ExportError, match=r"logits .*differs.* 0.0001; nothing was written; dyn"):
        export(random, path, (16, 16), dynamic="all", overwrite=True)
    assert path.read_bytes() == b"older"
    assert (tmp_path / "model.bin").read_bytes() == b"older weights"
    assert files(tmp_path) == sorted(["model.bin", path.name])
    assert random.training
    assert int(random.norm.num_batches_tracked) == 0


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_an_interrupted_export_leaves_nothing(tmp_path, files, suffix):
    class Interrupted(nn.Module):
        """As if a person stopped the export at the third comparison."""

        def __init__(self):
            super().__init__()
            self.written = []

        def forward(self, x):
            if x.shape[0] == 3 and not torch.compiler.is_compiling():
                self.written += tmp_path.rglob(f"model{suffix}")
                raise KeyboardInterrupt
            return x.mean((2, 3))

    model = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        export(model, tmp_path / f"model{suffix}", (16, 16))
    assert model.written
    assert not list(tmp_path.iterdir())


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
        open_exported(path)(torch.randn(1, 3, 48, 32))


class Resized(nn.Module):
    """A position table of 8 × 8, resized to the image by the operator below PyTorch's function."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3, 8, 8))

    def forward(self, x):
        table = torch.ops.aten._upsample_bicubic2d_aa(self.table, x.shape[2:], False)
        return (x * table).mean((2, 3))


def test_a_runtime_that_fails_at_other_sizes_gets_a_file_for_one(tmp_path):
    # OpenVINO 2026 resizes differently at the rim than PyTorch does.
    path = tmp_path / "model.xml"
    report = export(Resized(), path, (16, 16))
    assert report.dynamic == "batch"
    assert "differs" in report.notes[0]
    assert open_exported(path).input_shape == (None, 3, 16, 16)


def test_opset_is_the_one_asked_for_or_refused(convolutional, tmp_path):
    path = tmp_path / "model.onnx"
    assert export(convolutional, path, (16, 16), opset=20, dynamic="batch").opset == 20
    path.unlink()
    with pytest.raises(ExportError, match=r"cannot write this model in opset 5"):
        export(convolutional, path, (16, 16), opset=5, dynamic="batch", overwrite=True)
    assert not path.exists()
    with pytest.raises(ValueError, match="program target has no opset"):
        export(convolutional, tmp_path / "model.pt2", (16, 16), opset=20)


def test_outputs_are_named_as_asked(convolutional, tmp_path):
    def raw_outputs(model, images):
        features = model.conv(images)
        return {"features": features, "logits": model(images)}

    path = tmp_path / "model.pt2"
    report = export(convolutional, path, (16, 16), raw_outputs=raw_outputs)
    assert list(report.checks[0].outputs) == ["features", "logits"]
    assert report.checks[0].outputs["features"].argmax_agreement is None
    assert report.checks[0].agreement == 1.0
    images = torch.randn(2, 3, 16, 16)
    found = open_exported(path)(images)
    torch.testing.assert_close(found["features"], convolutional.conv(images))


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (lambda x: x.mean((2, 3)), ["logits"]),
        (lambda x: 2 * x, ["output"]),
        (lambda x: (2 * x, x.mean(1)), ["output_0", "output_1"]),
        (lambda x: {"b": 2 * x, "a": x.mean(1)}, ["b", "a"]),
    ],
)
def test_outputs_without_names_get_some(tmp_path, returned, names):
    class Returning(nn.Module):
        def forward(self, x):
            return returned(x)

    report = export(Returning(), tmp_path / "model.pt2", (8, 8), dynamic="none")
    assert list(report.checks[0].outputs) == names


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: [x, None], r"output_1 is NoneType: pass raw_outputs="),
        (lambda x: "text", r"output is str"),
        (lambda x: {}, "no outputs"),
        (lambda x: {"images": 2 * x}, "must not be called 'images'"),
    ],
)
def test_outputs_that_cannot_be_exported(tmp_path, returned, message):
    class Returning(nn.Module):
        def forward(self, x):
            return returned(x)

    with pytest.raises((TypeError, ValueError), match=message):
        export(Returning(), tmp_path / "model.pt2", (8, 8), dynamic="none")
    assert not list(tmp_path.iterdir())


def test_bad_input_fails_before_work(convolutional, tmp_path):
    with pytest.raises(ValueError, match=r"ending in '.pt', .*did you mean .pte, .pt2"):
        export(convolutional, tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="absent"):
        export(convolutional, tmp_path / "absent" / "model.onnx")
    with pytest.raises(ValueError, match="sides"):
        export(convolutional, tmp_path / "model.onnx", dynamic="sides")
    with pytest.raises(ValueError, match="tolerance"):
        export(convolutional, tmp_path / "model.onnx", tolerance=-1.0)
    with pytest.raises(ValueError, match="float32"):
        export(convolutional.half(), tmp_path / "model.onnx")
    patches = timm.create_model("deit_pico", depth=1)
    with pytest.raises(ValueError, match="30×32"):
        export(patches, tmp_path / "model.onnx", (30, 32))
    with pytest.raises(ValueError, match="33×32"):
        export(patches, tmp_path / "model.onnx", (32, 32), verify_sizes=[(33, 32)])
    with pytest.raises(ValueError, match="one size"):
        export(patches, tmp_path / "m.onnx", (32, 32), dynamic="batch", verify_sizes=[(36, 32)])
    with pytest.raises(ValueError, match=r"metadata must not name multiple"):
        export(patches, tmp_path / "m.onnx", (32, 32), metadata={"multiple": 3})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "older"),
    [("m.pt2", "m.pt2"), ("m.pt2", "m.pt2.json"), ("m.xml", "m.bin")],
    ids=["file", "report", "beside"],
)
def test_what_is_there_is_replaced_only_if_told(convolutional, tmp_path, files, name, older):
    (tmp_path / older).write_bytes(b"older")
    with pytest.raises(
        FileExistsError, match=rf"{older} exists.*overwrite=True \(--overwrite\)"
    ) as said:
        export(convolutional, tmp_path / name, (16, 16), dynamic="none")
    assert "Errno" not in str(said.value)
    assert (tmp_path / older).read_bytes() == b"older"
    assert files(tmp_path) == [older]
    export(convolutional, tmp_path / name, (16, 16), dynamic="none", overwrite=True)
    assert open_exported(tmp_path / name).target
    with pytest.raises(FileExistsError):  # an export of our own, too
        export(convolutional, tmp_path / name, (16, 16), dynamic="none")


def test_folders_are_not_replaced(one_block, tmp_path):
    inside = tmp_path / "model.onnx"
    inside.mkdir()
    (inside / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="is a folder"):
        export(one_block, inside, (32, 32))
    (tmp_path / "third.bin").mkdir()
    with pytest.raises(ValueError, match=r"third\.bin is a folder: choose"):
        export(one_block, tmp_path / "third.xml", (32, 32), overwrite=True)
    (tmp_path / "other.onnx.json").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        export(one_block, tmp_path / "other.onnx", (32, 32))
    assert (inside / "notes.txt").read_text() == "keep"
    assert not (tmp_path / "other.onnx").exists()
