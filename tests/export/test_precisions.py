"""What fp16 and int8 files must reach, and what is refused."""

import json
import math

import pytest
import torch
from tests.export.small_models import Convolutional, coloured_images, fit_
from torch import nn

import castling
from castling.export import DisagreementError, ExportError, export, open_exported
from castling.export.exported_model import ExportedModel
from castling.export.outputs import NamedOutputs, PlainOutputs
from castling.export.precision import DEFAULT_LIMITS, Limits, hold_out, read_limits
from castling.export.proof import (
    check_images,
    difference,
    ratio,
    require_limits,
    require_numbers,
    squared_norms,
)
from castling.heads.matching import DetectorOutputs
from castling.heads.segmenter_outputs import SegmenterOutputs


class Stub(ExportedModel):
    """A file that answers as told."""

    def __init__(self, tmp_path, answer, names=("logits",)):
        super().__init__(tmp_path / "m", "stub", {}, (None, 3, None, None), names)
        self.answer = answer

    def _bind(self, images):
        return lambda: list(self.answer(images).values())


class Means(nn.Module):
    """The mean of each colour."""

    def forward(self, images):
        return images.mean((2, 3))


def test_agreement_and_error_of_classes_by_hand(tmp_path):
    # Four images whose best classes are 0, 1, 2, 0; the file says 2 where the model says 1.
    scores = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [3, 0, 0]])
    images = scores[:, :, None, None].expand(4, 3, 8, 8)

    def answer(images):
        logits = images.mean((2, 3)).clone()
        logits[logits[:, 1] > 2] = torch.tensor([0.0, 0.0, 3.0])
        return {"logits": logits}

    check = check_images(
        NamedOutputs(Means()), Stub(tmp_path, answer), images, (8, 8), PlainOutputs()
    )
    assert (check.count, check.agreement, check.max_difference) == (4, 0.75, 3.0)
    # One row of four is wrong by (0, −3, 3): √18 of √36.
    assert check.relative_error == pytest.approx((18 / 36) ** 0.5)
    assert "on 4 real images: agreement 75.0%" in str(check)


def test_a_file_that_gives_nan_on_one_image_is_refused(tmp_path):
    class Two(nn.Module):
        def forward(self, images):
            return {"a": images.mean((2, 3)), "b": images.mean((2, 3))}

    def answer(images):
        means = images.mean((2, 3))
        return {"a": means, "b": torch.where(means > 0.9, torch.nan, means)}

    images = torch.zeros(20, 3, 8, 8)
    images[17] = 1.0
    stub = Stub(tmp_path, answer, names=("a", "b"))
    check = check_images(NamedOutputs(Two()), stub, images, (8, 8), PlainOutputs())
    assert math.isnan(check.max_difference)
    assert math.isnan(check.relative_error)
    with pytest.raises(DisagreementError, match="not finite"):
        require_numbers(check, "the runtime")
    with pytest.raises(DisagreementError):
        require_limits(check, Limits(1.0, 0.0), "fp16", "the runtime")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "fp16", "min_agreement": 0.9}, "pass images="),
        ({"precision": "fp16", "tolerance": 1e-2}, "held to max_error"),
    ],
)
def test_limits_that_would_not_be_looked_at_are_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        export(Means(), tmp_path / "m.onnx", (8, 8), **options)


def test_agreement_of_pixels_by_hand(tmp_path):
    class Labels(nn.Module):
        def forward(self, images):
            return images

    class Task(SegmenterOutputs):
        def outputs(self, model, images):
            return {"logits": images, "mask": images.argmax(1)}

    def answer(images):
        mask = images.argmax(1)
        mask[:, 0, :3] += 1  # 3 of 64 pixels
        return {"logits": images, "mask": mask}

    model = NamedOutputs(Labels(), Task().outputs)
    stub = Stub(tmp_path, answer, ("logits", "mask"))
    check = check_images(model, stub, torch.randn(10, 3, 8, 8), (8, 8), Task())
    assert check.agreement == pytest.approx(61 / 64)
    assert check.relative_error == 0


def test_agreement_of_detections_by_hand(tmp_path):
    class Boxes(nn.Module):
        def forward(self, images):
            return images

    def found(images, boxes):
        return {
            "boxes": torch.tensor(boxes).float().expand(len(images), 2, 4),
            "scores": torch.tensor([0.9, 0.8]).expand(len(images), 2),
            "labels": torch.tensor([1, 2]).expand(len(images), 2),
        }

    class Task(DetectorOutputs):
        def outputs(self, model, images):
            return found(images, [[0, 0, 10, 10], [20, 20, 30, 30]])

    def answer(images):  # the second box is elsewhere
        return found(images, [[0, 0, 10, 10], [40, 40, 50, 50]])

    model = NamedOutputs(Boxes(), Task().outputs)
    stub = Stub(tmp_path, answer, ("boxes", "scores", "labels"))
    check = check_images(model, stub, torch.randn(3, 3, 8, 8), (8, 8), Task())
    assert check.agreement == pytest.approx(0.5)


def test_an_overflow_is_an_infinite_error():
    expected, found = torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.inf])
    apart = difference(expected, found)
    assert ratio(*squared_norms(apart, expected).tolist()) == torch.inf
    same = torch.tensor([-torch.inf, 2.0])  # as of scores of masked places
    assert ratio(*squared_norms(difference(same, same), same).tolist()) == 0
    nan = difference(expected, torch.tensor([1.0, torch.nan]))
    assert not ratio(*squared_norms(nan, expected).tolist()) <= 1


def test_limits():
    assert read_limits("fp32", None, None) is None
    assert read_limits("int8", None, None) == DEFAULT_LIMITS["int8"]
    assert read_limits("fp16", 0.5, 0.25) == Limits(0.5, 0.25)
    with pytest.raises(ValueError, match="one of fp32, fp16, int8, got 'int4'"):
        read_limits("int4", None, None)
    with pytest.raises(ValueError, match="are for fp16 and int8"):
        read_limits("fp32", None, 0.9)
    for error, agreement in ((-0.1, None), (float("nan"), None), (None, 1.1), (None, -0.1)):
        with pytest.raises(ValueError, match="must"):
            read_limits("int8", error, agreement)


def test_images_are_held_out():
    images = torch.arange(5.0).view(5, 1, 1, 1)
    proof, calibration = hold_out("int8", images, None)
    assert proof.flatten().tolist() == [1, 3]
    assert calibration.flatten().tolist() == [0, 2, 4]
    given = hold_out("int8", images, images[:1])
    assert [len(each) for each in given] == [5, 1]
    assert hold_out("fp16", images, None) == (images, None)
    for one, other in ((None, None), (images[:1], None), (None, images), (images[:0], images)):
        with pytest.raises(ValueError, match=r"int8 needs real images, got \d: .*images=.*--data"):
            hold_out("int8", one, other)
    with pytest.raises(ValueError, match="holds no images"):
        hold_out("int8", images, images[:0])
    with pytest.raises(ValueError, match="calibration images are for int8; fp32 needs none"):
        hold_out("fp32", images, images)


def test_what_is_refused_before_work(convolutional, tmp_path):
    with pytest.raises(ValueError, match="program target writes fp32, not int8: the onnx"):
        export(convolutional, tmp_path / "m.pt2", precision="int8", images=torch.zeros(4, 3, 8, 8))
    for suffix in (".onnx", ".xml"):
        with pytest.raises(ValueError, match="int8 needs real images"):
            export(convolutional, tmp_path / f"m{suffix}", precision="int8")
    with pytest.raises(ValueError, match="must not name precision"):
        export(convolutional, tmp_path / "m.pt2", (8, 8), metadata={"precision": 1})
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return fit_(Convolutional(3), 20, 16)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_fp16_stores_its_report(small, tmp_path, files, suffix):
    pytest.importorskip("onnxconverter_common")
    path, images = tmp_path / f"m{suffix}", coloured_images(40, 16)
    report = export(small, path, (16, 16), precision="fp16", images=images)
    assert report.precision == "fp16"
    assert report.limits == DEFAULT_LIMITS["fp16"]
    assert report.on_images.count == 40
    assert report.on_images.agreement == 1.0
    assert 0 < report.on_images.relative_error < 0.01
    assert any("proved on CPU only" in note for note in report.notes)
    assert set(report.speed.milliseconds) == {"file", "fp32 file", "pytorch"}
    stored = open_exported(path).metadata
    written = json.loads((tmp_path / f"m{suffix}.json").read_text())
    assert stored["precision"] == "fp16"
    left = {key: value for key, value in written.items() if key not in stored["report"]}
    assert stored["report"] == {key: written[key] for key in stored["report"]}
    assert set(left) == {"path", "bytes", "metadata"}
    assert stored == {**written["metadata"], "report": stored["report"]}
    beside = ["m.bin"] if suffix == ".xml" else []
    assert files(tmp_path) == sorted([*beside, path.name, f"{path.name}.json"])
    sizes = [(tmp_path / name).stat().st_size for name in (path.name, *beside)]
    assert report.bytes == sum(sizes)
    found = open_exported(path)(coloured_images(3, 16)[:, :, :, :12])["logits"]
    assert found.dtype == torch.float32
    assert found.argmax(1).tolist() == [0, 1, 2]


def test_fp32_stores_its_report(convolutional, tmp_path):
    path = tmp_path / "m.pt2"
    report = export(convolutional, path, (16, 16), images=torch.randn(4, 3, 16, 16))
    assert open_exported(path).metadata["report"] == json.loads(json.dumps(report.proof()))
    assert report.on_images.count == 4
    assert report.on_images.agreement == 1.0
    assert report.fp32_bytes is None
    assert set(report.speed.milliseconds) == {"file", "pytorch"}


def test_fp16_on_noise_says_what_it_does_not_show(small, tmp_path):
    pytest.importorskip("onnxconverter_common")
    report = export(small, tmp_path / "m.onnx", (16, 16), precision="fp16", dynamic="batch")
    assert report.on_images is None
    assert any("compared on noise alone" in note for note in report.notes)


def test_a_file_that_is_too_far_off_is_not_kept(small, tmp_path, monkeypatch):
    pytest.importorskip("onnxconverter_common")
    path, images = tmp_path / "m.onnx", coloured_images(6, 16)
    options = {"precision": "fp16", "images": images, "dynamic": "batch"}
    with pytest.raises(ExportError, match=r"in fp16 is .* of its size away .* more than 0: export"):
        export(small, path, (16, 16), max_error=0.0, **options)
    assert not list(tmp_path.iterdir())

    def wrong(*arguments):  # as if one image of six were classified otherwise
        return castling.export.ImageCheck(6, 1.0, 0.01, 5 / 6)

    monkeypatch.setattr("castling.export.writing.check_images", wrong)
    message = r"agrees with PyTorch in 83.33% on 6 real images, less than 99.0%: .*nothing was"
    with pytest.raises(DisagreementError, match=message):
        export(small, path, (16, 16), **options)
    assert not list(tmp_path.iterdir())
    assert export(small, path, (16, 16), min_agreement=0.8, **options).limits.min_agreement == 0.8
