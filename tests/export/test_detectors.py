"""Detectors as files: decoding and suppression inside, compared as sets of detections."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.export.small_detector import Cells, distinct_, smooth_images
from torch.nn.functional import interpolate

import castling
from castling.data.registry import DataInfo
from castling.data.transforms.detection import DetectionTransformConfig
from castling.export import ExportError, export, open_exported
from castling.export.exported_model import ExportedModel
from castling.export.outputs import NamedOutputs, outputs_of
from castling.export.verification import Verification, verify
from castling.heads.matching import align_detections, detection_agreement
from castling.models.card import ModelCard
from castling.tasks import build_task, task_from_card
from castling.tasks.detection import DetectionConfig

PAGE = Path(castling.__file__).parents[2] / "docs" / "reference" / "file-formats.md"
KEYS = {"shortest", "longest", "pad_multiple", "pad_value"}


def card(**preprocessing):
    return ModelCard(
        name="cells/none",
        classes=["a", "ä", 'c"'],
        task={"name": "detection"},
        preprocessing={
            "image_size": [56, 72],
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.25, 0.3],
            "multiple": 16,
            **preprocessing,
        },
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The small detector as an ONNX file for images padded to multiples of 16."""
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("detector") / "model.onnx"
    model = Cells().eval()
    report = export(model, path, (64, 80), images=smooth_images(3, 96), card=card(), dynamic="all")
    assert model.act.inplace  # changed for the exporter, and back
    return model, path, report


def test_what_is_exported_and_compared_are_sets_of_detections(exported):
    _, _, report = exported
    assert len(report.checks) == 3
    for check in report.checks:
        assert list(check.outputs) == ["boxes", "scores", "labels"]
        assert check.agreement == 1
        assert check.outputs["boxes"].shape[1:] == (20, 4)
        assert not check.nothing
    assert len({check.shape[0] for check in report.checks}) == 3
    assert not any("nothing was found" in note for note in report.notes)
    assert report.multiple == 8
    assert report.metadata["input_size"] == [64, 80]
    assert report.metadata["resize_size"] == [56, 72]  # padding is no reason to stretch further
    assert "100.0%" in str(report)


@pytest.mark.parametrize("reader", ["onnx", "openvino"])
@pytest.mark.parametrize("shape", [(1, 48, 48), (2, 64, 104), (5, 136, 40)])
def test_runtimes_find_the_same_at_any_batch_and_size(exported, reader, shape):
    from castling.export.target import require_packages, target_named

    target = target_named(reader)
    try:
        require_packages(target.running, "this")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    model, path, _ = exported
    images = interpolate(smooth_images(shape[0], 96, seed=5), size=shape[1:], mode="bilinear")
    with torch.no_grad():
        expected = model.decode(model(images), shape[1:])
    assert (expected["scores"] > 0).sum(1).min() > 3
    found = target.open(path)(images)
    assert detection_agreement(expected, found).tolist() == [1] * shape[0]
    for before, after in zip(*(x.values() for x in align_detections(expected, found)), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_sizes_that_are_no_multiple_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"multiples of 8, not 60×64"):
        export(Cells(), tmp_path / "model.onnx", (60, 64))


class File(ExportedModel):
    """Computes what the model does, and changes the detections afterwards."""

    def __init__(self, model, change):
        names = ("boxes", "scores", "labels")
        super().__init__(Path("file"), "test", {}, (None, 3, None, None), names)
        self.model, self.change = model, change

    def _bind(self, images):
        size = images.shape[-2:]
        found = self.model.decode(self.model(images), (int(size[0]), int(size[1])))
        return lambda: list(self.change(found).values())


def compare(change, images):
    model = Cells().eval()
    task = outputs_of(model)
    how = Verification([(2, 3, 64, 64)], 1e-4, "Runtime", task, images)
    with torch.no_grad():
        return verify(NamedOutputs(model), File(model, change), how)[0]


def test_the_order_of_detections_does_not_matter():
    check = compare(
        lambda found: {name: value.flip(1) for name, value in found.items()}, smooth_images(2, 64)
    )
    assert check.agreement == 1
    assert check.max_difference == 0


def _changed(name, function):
    return lambda found: {**found, name: function(found[name])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_changed("labels", lambda x: (x + 1) % 3), r"agrees with PyTorch in \d?\d\.\d+% of"),
        (_changed("scores", lambda x: x * (torch.arange(20) > 0)), "agrees with PyTorch in 9"),
        (_changed("labels", lambda x: (x + 1) % 3), r"train the model first, or compare on other"),
        (_changed("boxes", lambda x: x + 0.1), r"output boxes .* differs from PyTorch by 0.1"),
        (_changed("scores", lambda x: x + 1e-3 * (x > 0)), r"output scores .* by 0.001"),
        (_changed("boxes", lambda x: x.double()), "boxes .* type torch.float64"),
    ],
)
def test_other_detections_are_refused(change, message):
    with pytest.raises(ExportError, match=message):
        compare(change, smooth_images(2, 64))


def test_boxes_may_differ_by_the_tolerance_of_their_largest_coordinate():
    check = compare(_changed("boxes", lambda x: x + 1e-3), smooth_images(2, 64))
    assert check.outputs["boxes"].max_difference == pytest.approx(1e-3, rel=0.1)


def test_a_comparison_of_nothing_says_so():
    model = Cells(threshold=1.0).eval()
    how = Verification([(2, 3, 64, 64)], 1e-4, "Runtime", outputs_of(model))
    with torch.no_grad():
        (check,) = verify(NamedOutputs(model), File(model, lambda found: found), how)
    assert check.nothing


def script() -> str:
    if not PAGE.is_file():
        pytest.skip("needs the sources")
    text = PAGE.read_text(encoding="utf-8")
    return re.search(r'```python title="detect.py"\n(.*?)```', text, re.DOTALL)[1]


def test_the_page_of_the_task_has_the_same_script():
    expected = script()  # skips without the sources
    page = PAGE.parents[1] / "tasks" / "detection.md"
    assert f'```python title="detect.py"\n{expected}```' in page.read_text(encoding="utf-8")


def photo(path, size=(131, 77)):
    noise = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(path, quality=95, exif=exif)


@pytest.mark.parametrize(
    "options",
    [{}, {"resize": "keep", "image_size": [56, 80], "max_size": 100}],
    ids=["stretch", "keep"],
)
def test_file_script_and_pytorch_find_the_same(exported, options, tmp_path, monkeypatch):
    model, path, _ = exported
    own = card(**options)
    task = task_from_card(own)
    proto = __import__("onnx").load(path)
    for entry in proto.metadata_props:  # the same graph, for another way to resize
        if entry.key == "castling":
            entry.value = json.dumps(own.to_dict())
    values = {key: json.dumps(value) for key, value in task.input_format().items()}
    kept = [entry for entry in proto.metadata_props if entry.key not in values]
    metadata = {entry.key: entry.value for entry in kept} | values
    del proto.metadata_props[:]
    for key, text in metadata.items():
        proto.metadata_props.add(key=key, value=text)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    photo(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (expected,) = castling.Predictor(model, task=task)("photo.jpg")
    (found,) = castling.Predictor("model.onnx")("photo.jpg")
    assert len(expected.boxes) > 5
    assert found.classes == expected.classes
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    values = {}
    exec(script(), values)
    alone = values["objects"]
    assert [name for name, _, _ in alone] == list(expected.classes)
    np.testing.assert_allclose([score for _, score, _ in alone], expected.scores, atol=1e-4)
    np.testing.assert_allclose([box for _, _, box in alone], expected.boxes, atol=2e-3)


def test_keys_are_documented():
    documented = PAGE.read_text(encoding="utf-8").partition("## Exported files")[2]
    documented = documented.partition("\n## ")[0]
    assert all(f"`{key}`" in documented for key in KEYS)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"image_size": 416}, (448, 448)),
        ({"image_size": (320, 416), "multiple": 32}, (320, 416)),
        ({"image_size": (800, 1333), "resize": "keep", "multiple": 32}, (800, 1344)),
    ],
)
def test_the_input_is_as_large_as_padded_batches(options, size):
    transform = DetectionTransformConfig(**options)
    task = build_task(DetectionConfig(), DataInfo(["a"], {}, kind="detection"), transform)
    assert task.input_size == size


ORDINARY = ("picodet_pico", "d_fine_pico", "retinanet_pico", "fcos_pico", "faster_rcnn_pico")


@pytest.mark.slow
@pytest.mark.parametrize("head", [*ORDINARY, "mask_rcnn_pico", "cascade_mask_rcnn_pico"])
def test_every_head_in_onnx_runtime_and_openvino(head, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    from castling.export.target import target_named

    options = {"proposals": 40} if "rcnn" in head else {}
    model = distinct_(castling.create_model(f"{head}/test_resnet", num_classes=4, head=options))
    path, images = tmp_path / "model.onnx", smooth_images(3, 256, seed=7)
    report = export(model, path, (192, 192), images=images, dynamic="all")
    assert [check.agreement for check in report.checks] == [1, 1, 1]
    how = Verification([check.shape for check in report.checks], 1e-4, "OpenVINO")
    how = dataclasses.replace(how, task=outputs_of(model), images=images)
    with torch.no_grad():
        checks = verify(NamedOutputs(model), target_named("openvino").open(path), how)
    assert [check.agreement for check in checks] == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("portable", [False, True])
def test_programs_with_and_without_castling(portable, tmp_path):
    model, path = Cells().eval(), tmp_path / "model.pt2"
    report = export(
        model, path, (64, 64), images=smooth_images(3, 64), dynamic="all", portable=portable
    )
    assert all(check.agreement == 1 for check in report.checks)
    assert open_exported(path).metadata["portable"] == portable
