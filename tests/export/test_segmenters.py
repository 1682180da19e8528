"""Segmenters as files: scores and labels, compared by the share of equal pixels."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.export.small_detector import distinct_, smooth_images
from torch import nn
from torch.nn.functional import interpolate

import castling
from castling.export import ExportError, export, open_exported
from castling.export.exported_model import ExportedModel
from castling.export.outputs import NamedOutputs, outputs_of
from castling.export.verification import Verification, verify
from castling.heads import Segmenter
from castling.heads.agreement import LEAST_PIXEL_AGREEMENT
from castling.heads.segmenter_outputs import SegmenterOutputs
from castling.models.card import ModelCard
from castling.tasks import SegmentationConfig, task_from_card, task_to_dict
from castling.tasks.segmentation import AugmentConfig

STRIDE = 4


class Cells(Segmenter):
    """Scores of three classes for each cell of 4 pixels; exported in seconds."""

    multiple = STRIDE

    def __init__(self, num_classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.num_classes = num_classes
        self.conv = nn.Conv2d(3, 8, STRIDE, stride=STRIDE)
        self.head = nn.Conv2d(8, num_classes, 3, padding=1)
        nn.init.normal_(self.head.weight)

    def forward(self, images):
        return {"logits": self.head(self.conv(images).relu())}


def card(config=None, **preprocessing):
    return ModelCard(
        name="cells/none",
        classes=["a", "ä", 'c"'],
        task=task_to_dict(config or SegmentationConfig()),
        preprocessing={
            "image_size": [48, 64],
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.25, 0.3],
            "multiple": 16,
            "resize": "none",
            **preprocessing,
        },
        colours=[[1, 2, 3], [4, 5, 6], [7, 8, 9]],
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("segmenter") / "model.onnx"
    model = Cells().eval()
    report = export(model, path, (48, 64), images=smooth_images(3, 96), card=card(), dynamic="all")
    return model, path, report


def test_what_is_exported_are_scores_and_labels(exported):
    _, _, report = exported
    assert len({check.shape[2:] for check in report.checks}) == 3
    assert max(check.shape[0] for check in report.checks) >= 2
    for check in report.checks:
        assert list(check.outputs) == ["logits", "mask"]
        assert check.agreement >= LEAST_PIXEL_AGREEMENT
        assert not check.nothing
        batch, _, height, width = check.shape
        assert check.outputs["mask"].shape == (batch, height, width)
        assert check.outputs["logits"].shape == (batch, 3, height // STRIDE, width // STRIDE)
    assert report.metadata["colours"] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert report.metadata["resize"] == "none"
    assert report.multiple == STRIDE


@pytest.mark.parametrize("reader", ["onnx", "openvino"])
@pytest.mark.parametrize("shape", [(1, 48, 48), (2, 64, 104), (5, 136, 40)])
def test_runtimes_give_the_same_labels_at_any_batch_and_size(exported, reader, shape):
    from castling.export.target import require_packages, target_named

    target = target_named(reader)
    try:
        require_packages(target.running, "this")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    model, path, _ = exported
    images = interpolate(smooth_images(shape[0], 96, seed=5), size=shape[1:], mode="bilinear")
    with torch.no_grad():
        expected = SegmenterOutputs().outputs(model, images)
    assert len(expected["mask"].unique()) == 3
    found = target.open(path)(images)
    assert found["mask"].dtype == torch.int64
    same = (found["mask"] == expected["mask"]).double().mean()
    assert same >= LEAST_PIXEL_AGREEMENT
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-5, atol=1e-5)


class File(ExportedModel):
    """Computes what the model does, and changes it afterwards."""

    def __init__(self, model, change):
        super().__init__(Path("file"), "test", {}, (None, 3, None, None), ("logits", "mask"))
        self.model, self.change = model, change

    def _bind(self, images):
        found = SegmenterOutputs().outputs(self.model, images)
        return lambda: list(self.change(found).values())


def compare(change):
    model, images = Cells().eval(), smooth_images(2, 64)
    how = Verification([(2, 3, 64, 64)], 1e-4, "Runtime", outputs_of(model), images)
    with torch.no_grad():
        return verify(NamedOutputs(model), File(model, change), how)[0]


def _with_wrong(count):
    def change(found):
        mask = found["mask"].clone()
        mask.view(-1)[:count] = (mask.view(-1)[:count] + 1) % 3
        return {**found, "mask": mask}

    return change


def test_a_few_pixels_may_tip_over():
    check = compare(_with_wrong(5))
    assert check.agreement == pytest.approx(1 - 5 / (2 * 64 * 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_wrong(40), r"agrees with PyTorch in 99\.51% of what .* less than 99\.9%"),
        (lambda x: {**x, "logits": x["logits"] + 1}, "output logits .* differs from PyTorch by 1"),
        (lambda x: {**x, "mask": x["mask"].int()}, r"mask .* type torch\.int32"),
    ],
)
def test_other_labels_are_refused(change, message):
    with pytest.raises(ExportError, match=message):
        compare(change)


@pytest.fixture
def photo(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((131, 77), Image.Resampling.BICUBIC)
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_files_predict_as_the_model_whole_and_by_windows(exported, photo):
    model, path, _ = exported
    task = task_from_card(card())
    for window in (None, 32):
        (expected,) = castling.Predictor(model, task=task, window=window)(photo)
        (found,) = castling.Predictor(path, window=window)(photo)
        assert found.mask.shape == (77, 131)
        assert (found.mask == expected.mask).mean() >= LEAST_PIXEL_AGREEMENT
        assert found.colours == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
        assert len(np.unique(found.mask)) == 3


def test_files_of_one_size_see_any_image_by_windows(photo, tmp_path):
    pytest.importorskip("onnxscript")
    model, path = Cells().eval(), tmp_path / "fixed.onnx"
    own = card(SegmentationConfig(augment=AugmentConfig(flip=True)))
    export(model, path, (48, 64), images=smooth_images(2, 96), card=own, dynamic="none")
    assert open_exported(path).input_shape == (1, 3, 48, 64)
    predictor = castling.Predictor(path)
    (found,) = predictor(photo)
    assert "test-time augmentation (task.augment) is left out" in predictor.notes[0]
    plain = dataclasses.replace(own, task=task_to_dict(SegmentationConfig()))
    by_windows = castling.Predictor(model, task=task_from_card(plain), window=(48, 64))
    (expected,) = by_windows(photo)
    assert found.mask.shape == (77, 131)
    assert (found.mask == expected.mask).mean() >= LEAST_PIXEL_AGREEMENT
    (small,) = predictor(Image.new("RGB", (20, 10), "green"))  # smaller than the windows
    assert small.mask.shape == (10, 20)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["semantic_fpn_pico", "efficientvit_head_pico", "upernet_pico"])
def test_every_head_in_onnx_runtime_and_openvino(head, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    from castling.export.target import target_named

    model = distinct_(castling.create_model(f"{head}/test_resnet", num_classes=4))
    path, images = tmp_path / "model.onnx", smooth_images(3, 192, seed=7)
    report = export(model, path, (128, 128), images=images, dynamic="all")
    assert all(check.agreement >= LEAST_PIXEL_AGREEMENT for check in report.checks)
    how = Verification([check.shape for check in report.checks], 1e-4, "OpenVINO")
    how = dataclasses.replace(how, task=outputs_of(model), images=images)
    with torch.no_grad():
        checks = verify(NamedOutputs(model), target_named("openvino").open(path), how)
    assert all(check.agreement >= LEAST_PIXEL_AGREEMENT for check in checks)


@pytest.mark.slow
def test_programs(tmp_path):
    model, path = Cells().eval(), tmp_path / "model.pt2"
    report = export(model, path, (64, 64), images=smooth_images(3, 64), dynamic="all")
    assert all(check.agreement == 1 for check in report.checks)
