"""Every target: written, verified, opened again from the file alone."""

import json
import subprocess
import sys
import zipfile

import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from torch import nn

from castling.attention import auxiliaries
from castling.export import (
    ExportError,
    export,
    list_targets,
    open_exported,
    register_target,
    target_for,
)
from castling.export.exported_model import ExportedModel
from castling.export.target import require_packages
from castling.models.card import ModelCard
from castling.surgery import strip_

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "program": ".pt2"}
targets = pytest.mark.parametrize("target", SUFFIXES)


@targets
def test_several_outputs_and_metadata_come_back(dense, tmp_path, files, target):
    path = tmp_path / f"model{SUFFIXES[target]}"
    card = ModelCard(
        name="dense",
        classes=["a", 'b"<&>', "ç"],
        preprocessing={"image_size": [16, 16], "mean": [0.1] * 3, "std": [0.5] * 3},
    )
    report = export(
        dense,
        path,
        (16, 16),
        raw_outputs=lambda model, images: model(images),
        card=card,
        metadata={"note": {"größe": [1, None]}},
    )
    assert report.target == target
    assert report.dynamic == "all"
    assert list(report.checks[0].outputs) == ["features", "scores", "classes", "high"]
    assert report.checks[0].outputs["classes"].max_difference == 0.0
    others = ["model.bin"] if target == "openvino" else []
    assert files(tmp_path) == sorted([path.name, f"{path.name}.json", *others])
    sizes = [(tmp_path / name).stat().st_size for name in (path.name, *others)]
    assert report.bytes == sum(sizes)

    exported = open_exported(path)
    assert exported.target == target
    assert exported.input_shape == (None, 3, None, None)
    assert exported.output_names == ("features", "scores", "classes", "high")
    assert exported.metadata["classes"] == ["a", 'b"<&>', "ç"]
    assert exported.metadata["mean"] == [0.1] * 3
    assert exported.metadata["note"] == {"größe": [1, None]}
    assert exported.metadata["input_size"] == [16, 16]
    assert ModelCard.from_dict(exported.metadata["castling"]) == card

    images = torch.randn(3, 3, 24, 10)
    found = exported(images)
    with torch.no_grad():
        expected = dense.eval()(images)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


@targets
def test_a_file_for_one_shape_refuses_others(convolutional, tmp_path, target):
    path = tmp_path / f"model{SUFFIXES[target]}"
    report = export(convolutional, path, (16, 20), dynamic="none")
    assert [check.shape for check in report.checks] == [(1, 3, 16, 20)]
    exported = open_exported(path)
    assert exported.input_shape == (1, 3, 16, 20)
    images = torch.randn(1, 3, 16, 20)
    with torch.no_grad():
        expected = convolutional.eval()(images)
    torch.testing.assert_close(exported(images)["logits"], expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"one size and does not run at 20×20"):
        exported(torch.randn(1, 3, 20, 20))
    with pytest.raises(ValueError, match=r"batches of 1, got 2"):
        exported(torch.randn(2, 3, 16, 20))
    with pytest.raises(ValueError, match=r"3 channels, got 4"):
        exported(torch.randn(1, 4, 16, 20))
    with pytest.raises(ValueError, match=r"float32 images .*float64"):
        exported(images.double())
    with pytest.raises(ValueError, match=r"\(3, 16, 20\)"):
        exported(images[0])


@targets
def test_runner_reads_the_memory_it_was_given(convolutional, tmp_path, target):
    path = tmp_path / f"model{SUFFIXES[target]}"
    export(convolutional, path, (8, 8), dynamic="none")
    images = torch.randn(1, 3, 8, 8)
    exported = open_exported(path, threads=1)
    with torch.no_grad():
        run = exported.runner(images)
        before = torch.as_tensor(run()[0]).clone()
        images.mul_(2)
        after = torch.as_tensor(run()[0])
        torch.testing.assert_close(after, convolutional.eval()(images), atol=1e-5, rtol=0)
    assert not torch.equal(before, after)


def test_sides_between_patches_are_refused(one_block, tmp_path):
    path = tmp_path / "model.pt2"
    report = export(one_block, path, (32, 32))
    assert report.dynamic == "all"
    exported = open_exported(path)
    assert exported.multiple == report.multiple == 4
    images = torch.randn(2, 3, 36, 28)
    with torch.no_grad():
        torch.testing.assert_close(exported(images)["logits"], one_block.eval()(images))
    with pytest.raises(ValueError, match=r"multiples of 4, got 38×32"):
        exported(torch.randn(1, 3, 38, 32))


@pytest.mark.slow
@targets
@pytest.mark.parametrize(
    "name", ["castling_deit_pico", "cas_vit_pico", "qt_vit_pico", "levit_pico"]
)
def test_families(name, tmp_path, target):
    torch.manual_seed(1)
    model = timm.create_model(f"castling_{name}" if name == "levit_pico" else name)
    if auxiliaries(model):
        strip_(model)
    path = tmp_path / f"model{SUFFIXES[target]}"
    report = export(model, path, (64, 64))
    assert report.max_difference < 1e-5
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(images)
    found = open_exported(path)(images)["logits"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_program_keeps_our_operators_unless_portable(one_block, tmp_path):
    ours, portable = tmp_path / "ours.pt2", tmp_path / "portable.pt2"
    # The file with our operators runs the kernels that PyTorch runs: there is no difference.
    report = export(one_block, ours, (32, 32), dynamic="none", tolerance=0.0)
    assert report.opset is None
    assert report.runtime == f"torch.export {report.versions['torch']}"
    export(one_block, portable, (32, 32), dynamic="none", portable=True)
    with zipfile.ZipFile(ours) as archive:
        (graph,) = (name for name in archive.namelist() if name.endswith("models/model.json"))
        assert ".py" not in archive.read(graph).decode()  # no paths of this machine
    assert open_exported(ours).metadata["portable"] is False
    assert open_exported(portable).metadata["portable"] is True


@pytest.mark.slow
def test_a_portable_program_runs_without_castling(one_block, tmp_path):
    path = tmp_path / "model.pt2"
    export(one_block, path, (32, 32), portable=True)
    code = (
        "import sys, torch; program = torch.export.load(sys.argv[1]).module(); "
        "found = program(torch.ones(2, 3, 32, 40)); "
        "assert 'castling' not in sys.modules; print(found['logits'].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    with torch.no_grad():
        expected = one_block.eval()(torch.ones(2, 3, 32, 40))
    found = torch.tensor(json.loads(done.stdout))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_onnx_files_of_earlier_versions_open(tmp_path):
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "h", "w"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", [images], [logits]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    card = {
        "format": "castling model 1",
        "name": "mean",
        "classes": ["r", "g", "b"],
        "image_size": [8, 8],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    stored = {"input_size": [8, 8], "multiple": 4, "classes": card["classes"], "castling": card}
    for key, value in stored.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    foreign = model.metadata_props.add()
    foreign.key, foreign.value = "author", "not JSON"
    path = tmp_path / "model.onnx"
    onnx.save(model, path)

    exported = open_exported(path)
    assert exported.multiple == 4
    assert exported.metadata["author"] == "not JSON"
    assert ModelCard.from_dict(exported.metadata["castling"]).image_size == (8, 8)
    found = exported(torch.arange(3.0).view(1, 3, 1, 1).expand(2, 3, 8, 12))
    assert found["logits"].tolist() == [[0, 1, 2], [0, 1, 2]]
    with pytest.raises(ValueError, match=r"multiples of 4, got 8×10"):
        exported(torch.zeros(1, 3, 8, 10))


@targets
def test_what_is_not_such_a_file_is_refused(tmp_path, target):
    path = tmp_path / f"model{SUFFIXES[target]}"
    with pytest.raises(FileNotFoundError, match="no such exported file"):
        open_exported(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"{path} is not a"):
        open_exported(path)


def test_a_program_of_another_origin_is_refused(tmp_path):
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), path)
    with pytest.raises(ValueError, match="names no outputs"):
        open_exported(path)


def test_a_model_that_cannot_be_traced(tmp_path):
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))

    for suffix in (".pt2", ".onnx"):
        with pytest.raises(ExportError, match="nothing was written"):
            export(Branching(), tmp_path / f"model{suffix}", (8, 8))
    assert not list(tmp_path.iterdir())


def test_targets_by_suffix_and_by_name(tmp_path):
    assert set(SUFFIXES) <= set(list_targets())
    for name, suffix in SUFFIXES.items():
        assert target_for(f"model{suffix}").name == name
        assert target_for(f"model{suffix}", name).name == name
    with pytest.raises(ValueError, match=r"no export target 'openvno'; did you mean openvino\?"):
        target_for("model.xml", "openvno")
    with pytest.raises(
        ValueError, match=r"'.onx', .*; did you mean .onnx\? known: .*onnx \(.onnx\)"
    ):
        target_for("model.onx")
    with pytest.raises(ValueError, match=r"onnx target writes .onnx files, got model.pt2"):
        target_for("model.pt2", "onnx")


def test_a_missing_package_is_named_with_the_remedy(convolutional, tmp_path):
    class Needy(WeightsTarget):
        name, suffix, running = "needy", ".needy", ("a_package_that_is_not_there",)

    register_target(Needy())
    with pytest.raises(ModuleNotFoundError, match=r"a_package_that_is_not_there: pip install"):
        export(convolutional, tmp_path / "model.needy", (8, 8))
    (tmp_path / "model.needy").write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match=r"opening .needy files needs a_package"):
        open_exported(tmp_path / "model.needy")


@pytest.mark.parametrize(
    ("missing", "extras"),
    [
        (["onnx"], "export"),
        (["executorch"], "executorch"),
        (["openvino", "executorch", "onnx"], "executorch,export"),
    ],
)
def test_the_extras_that_hold_the_missing_are_named(monkeypatch, missing, extras):
    monkeypatch.setattr("castling.export.target.missing_packages", list)
    with pytest.raises(ModuleNotFoundError, match=rf"'castling\[{extras}\]'"):
        require_packages(missing, "this")


class WeightsTarget:
    """A target from outside: a linear layer over the mean colour, as text."""

    name, suffix, runtime, opset = "weights", ".weights", "Python", False
    beside = writing = running = ()
    dynamics, precisions, reducing = ("all", "batch", "none"), ("fp32",), {}

    def write(self, job, path):
        layer = job.model.model.layer
        values = [layer.weight.tolist(), layer.bias.tolist(), dict(job.metadata)]
        path.write_text(json.dumps(values))
        return {}

    def store(self, path, key, text):
        weight, bias, metadata = json.loads(path.read_text())
        path.write_text(json.dumps([weight, bias, {**metadata, key: text}]))

    def open(self, path, threads=None):
        return WeightsModel(path)


class WeightsModel(ExportedModel):
    def __init__(self, path):
        weight, bias, metadata = json.loads(path.read_text())
        self.weight, self.bias = torch.tensor(weight), torch.tensor(bias)
        super().__init__(path, "weights", metadata, (None, 3, None, None), ["logits"])

    def _bind(self, images):
        return lambda: [images.mean((2, 3)) @ self.weight.T + self.bias]


def test_a_target_from_outside(tmp_path, files):
    class MeanColour(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x.mean((2, 3)))

    register_target(WeightsTarget())
    path = tmp_path / "model.weights"
    report = export(MeanColour(), path, (8, 8))
    assert report.target == "weights"
    assert report.max_difference < 1e-6
    assert files(tmp_path) == ["model.weights", "model.weights.json"]
    assert open_exported(path)(torch.zeros(4, 3, 5, 7))["logits"].shape == (4, 2)


def test_maps_cut_in_both_directions_keep_free_sizes_in_openvino(tmp_path):
    """As LeViT thins its queries: OpenVINO says the wrong shape of what was cut twice."""
    pytest.importorskip("openvino")

    class Thinning(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 8)

        def forward(self, x):
            tokens = self.conv(x).permute(0, 2, 3, 1)
            thin = tokens[:, ::2, ::2]
            height, width = thin.shape[1:3]
            flat = self.linear(thin.reshape(len(x), -1, 8))
            return flat.view(len(x), height, width, 8).permute(0, 3, 1, 2)

    report = export(Thinning(), tmp_path / "model.xml", (16, 16), dynamic="all")
    assert report.dynamic == "all"
    assert len(report.checks) == 3


class FromSide33(nn.Module):
    """A model that torch.export takes for images of more than 32 pixels a side alone."""

    def forward(self, images):
        for side in images.shape[2:]:
            torch._check(side >= 33)
        return images.mean(dim=(2, 3))


def test_a_program_says_from_which_size_on_it_runs(tmp_path):
    path = tmp_path / "model.pt2"
    report = export(FromSide33(), path, (64, 48), dynamic="all")
    opened = open_exported(path)
    assert opened.least == (33, 33)
    images = torch.randn(1, 3, 33, 40)
    torch.testing.assert_close(opened(images)["logits"], images.mean(dim=(2, 3)))
    for height, width in ((32, 40), (40, 32)):
        message = f"^model.pt2 takes images of at least 33×33 pixels, got {height}×{width}: export"
        with pytest.raises(ValueError, match=message):
            opened(torch.randn(1, 3, height, width))
    assert report.dynamic == "all"


def test_the_least_size_of_a_program_is_a_multiple_that_it_takes(tmp_path):
    class Program(ExportedModel):
        def _bind(self, images):
            return lambda: [images]

    made = Program(tmp_path / "m.pt2", "", {"multiple": "32"}, [None] * 4, ["same"], (65, 1))
    assert made.least == (96, 32)
    assert made(torch.zeros(1, 3, 96, 32))["same"].shape == (1, 3, 96, 32)
    with pytest.raises(ValueError, match="at least 96×32 pixels, got 64×64"):
        made(torch.zeros(1, 3, 64, 64))
