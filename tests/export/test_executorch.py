"""ExecuTorch programs: one image of one size, in one file with its metadata."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from tests.export.small_models import Convolutional, coloured_images

import castling
from castling.export import ExportError, export, open_exported
from castling.export.targets import executorch as target
from castling.models.card import ModelCard
from castling.surgery import strip_

pytest.importorskip("executorch")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(model, path, report) of a small model with a card."""
    torch.manual_seed(0)
    model, path = Convolutional(3).eval(), tmp_path_factory.mktemp("pte") / "model.pte"
    card = ModelCard(
        name="convolutional",
        classes=["a", 'b"<&>', "ç"],
        preprocessing={"image_size": [16, 24], "mean": [0.1] * 3, "std": [0.5] * 3},
    )
    images = coloured_images(5)
    report = export(model, path, (16, 24), card=card, images=images, metadata={"n.o/te": [1, "ü"]})
    return model, path, report


def test_the_file_holds_what_is_needed_to_feed_it(written):
    model, path, report = written
    assert (report.target, report.dynamic, report.multiple) == ("executorch", "none", 1)
    assert [check.shape for check in report.checks] == [(1, 3, 16, 24)]
    assert report.on_images.agreement == 1.0
    assert any("XNNPACK computes" in note for note in report.notes)
    assert set(report.versions) == {"torch", "executorch"}
    assert report.bytes == path.stat().st_size
    exported = open_exported(path)
    assert exported.input_shape == (1, 3, 16, 24)
    assert exported.metadata["classes"] == ["a", 'b"<&>', "ç"]
    assert exported.metadata["n.o/te"] == [1, "ü"]
    assert exported.metadata["report"]["on_images"]["count"] == 5
    images = coloured_images(1, 24)[:, :, :16]
    assert not images.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(exported(images)["logits"], model(images), atol=1e-5, rtol=0)


def test_results_of_one_call_outlive_the_next(written):
    exported = open_exported(written[1], threads=1)
    first = exported(torch.zeros(1, 3, 16, 24))["logits"]
    kept = first.clone()
    exported(torch.ones(1, 3, 16, 24))
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 3, 16, 24), "batches of 1"), ((1, 3, 24, 24), "one size")],
)
def test_other_shapes_are_refused(written, shape, message):
    with pytest.raises(ValueError, match=message):
        open_exported(written[1])(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic": "all"}, r"one image of one size: dynamic='none'"),
        ({"dynamic": "batch"}, r"--dynamic none\), got 'batch'"),
        ({"verify_sizes": [(32, 32)]}, r"verify_sizes cannot go with dynamic='none'"),
        ({"precision": "int8", "images": torch.zeros(4, 3, 8, 8)}, "writes fp32, not int8"),
        ({"opset": 20}, "no opset"),
    ],
)
def test_what_the_format_cannot_hold_is_said(tmp_path, files, options, message):
    with pytest.raises(ValueError, match=message):
        export(Convolutional(), tmp_path / "m.pte", (16, 16), **options)
    assert files(tmp_path) == []


def linear_deit():
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    castling.linearize_(model, castling.LinearAngular(local="grid2d"))
    return model


MODELS = {
    "converted": linear_deit,
    "levit": lambda: castling.create_model("castling_levit_pico", num_classes=5),
    "cas_vit": lambda: castling.create_model("cas_vit_pico", num_classes=5),
    "qt_vit": lambda: castling.create_model("qt_vit_pico", num_classes=5),
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("levit", "cas_vit", "qt_vit")]


@pytest.mark.parametrize("name", ["converted", *SLOW])
def test_the_families(name, tmp_path):
    model = MODELS[name]().eval()
    strip_(model)
    report = export(model, tmp_path / "m.pte", (32, 32))
    assert report.max_difference < 1e-5


def test_outputs_keep_their_names_and_types(dense, tmp_path):
    path = tmp_path / "m.pte"
    export(dense, path, (16, 16), raw_outputs=lambda model, images: model(images))
    images = torch.randn(1, 3, 16, 16)
    found = open_exported(path)(images)
    with torch.no_grad():
        expected = dense.eval()(images)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


def test_a_wrong_file_leaves_nothing(tmp_path, files, monkeypatch):
    bind = target.ExecuTorchModel._bind
    monkeypatch.setattr(
        target.ExecuTorchModel,
        "_bind",
        lambda self, images: lambda: [x + 1 for x in bind(self, images)()],
    )
    with pytest.raises(ExportError, match="differs from PyTorch by 1"):
        export(Convolutional(), tmp_path / "m.pte", (16, 16))
    assert files(tmp_path) == []


def test_an_operator_without_a_kernel_is_named(tmp_path, files):
    class Sorting(Convolutional):
        def forward(self, x):
            return torch.linalg.svdvals(super().forward(x)[:, :, None])

    with pytest.raises(ExportError, match=r"ExecuTorch's exporter failed: .*nothing was written"):
        export(Sorting(), tmp_path / "m.pte", (16, 16))
    assert files(tmp_path) == []


@pytest.mark.parametrize("damage", ["text", "cut", "foreign"])
def test_damaged_files_are_refused(written, tmp_path, damage):
    path, content = tmp_path / "m.pte", written[1].read_bytes()
    path.write_bytes(
        {
            "text": b"no program at all, but long enough to be one" * 9,
            "cut": content[: len(content) // 4],
            "foreign": content[: content.index(b"PK\x03\x04")],
        }[damage]
    )
    message = "names no outputs" if damage == "foreign" else "can be run"
    with pytest.raises(ValueError, match=message):
        open_exported(path)


def test_the_report_beside_is_the_one_inside(written):
    _, path, _ = written
    beside = json.loads(path.with_name("model.pte.json").read_text())
    inside = open_exported(path).metadata["report"]
    assert inside.items() <= beside.items()


def test_the_first_export_leaves_logging_as_it_was(tmp_path):
    """In a process of its own: what is imported once changes nothing the second time."""
    program = """
import logging, sys, warnings
import castling
from tests.export.small_models import Convolutional
before = list(logging.root.handlers), logging.root.level, list(warnings.filters)
castling.export(Convolutional(), sys.argv[1], (16, 16))
print((list(logging.root.handlers), logging.root.level, list(warnings.filters)) == before)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m.pte")],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.stdout == "True\n", done.stderr
    assert "Warning" not in done.stderr
