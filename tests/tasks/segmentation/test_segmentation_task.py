"""The task between a segmenter and everything that trains, predicts and exports."""

import numpy as np
import pytest
import torch
from tests.data.labelled import CLASSES, TABLE, Labelled, blocks
from tests.tasks.segmentation.cells import STRIDE, Cells
from torch.nn import functional as F

from castling.data import BatchKey, ImageSet, SegmentationTransformConfig
from castling.data.splits import Selection
from castling.heads import Segmenter
from castling.tasks import build_task, evaluate_loader
from castling.tasks.segmentation import AugmentConfig, SegmentationConfig
from castling.tasks.segmentation.inference import Windows, augmented, slide
from castling.tasks.segmentation.weights import automatic_weights
from castling.utils.labels import IGNORED


class Painter(Segmenter):
    """Knows the colours of labels, given images that are not normalised."""

    multiple = 1
    num_classes = CLASSES

    def forward(self, images):
        colours = TABLE[:CLASSES].float() / 255
        return {"logits": -(images[:, None] - colours[..., None, None]).abs().sum(2)}


def task_of(source, config=None, **transform):
    options = {
        "image_size": 32,
        "multiple": 4,
        "resize": "none",
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
    }
    return build_task(
        config or SegmentationConfig(),
        source.info,
        SegmentationTransformConfig(**{**options, **transform}),
    )


def selection(source):
    return Selection(source, "train", np.arange(len(source.masks["train"])))


def batch_of(task, source, *, training=False):
    images = ImageSet(selection(source), task.transform(training=training), seed=0)
    return images[BatchKey(tuple(range(len(images))))]


@pytest.fixture
def source():
    return Labelled([blocks((40, 52), 1), blocks((27, 61), 2)])


@torch.no_grad()
def test_one_who_knows_the_colours_is_right(source):
    task = task_of(source)
    result = evaluate_loader(task, Painter(), [batch_of(task, source)], "val")
    assert result.metrics == {"mIoU": 100, "mAcc": 100, "pAcc": 100}
    assert result.per_class == dict.fromkeys(source.info.classes, 100)
    assert result.class_figures["class 0"]["images"] == 2


@torch.no_grad()
def test_predictions_are_of_the_original_size(source):
    task = task_of(source, resize="keep", interpolation="nearest", image_size=54)
    found = task.predict(Painter(), batch_of(task, source))
    for one, mask in zip(found, source.masks["train"], strict=True):
        assert one.mask.shape == mask.shape == one.original_size
        known = mask.numpy() != IGNORED
        assert (one.mask == mask.numpy())[known].mean() > 0.9
        assert sum(one.pixels) == mask.numel()
        assert one.colours == source.info.colours


@torch.no_grad()
def test_what_is_exported_and_what_is_predicted_agree(source):
    task, model = task_of(source), Cells(CLASSES)
    batch = batch_of(task, source)
    outputs = task.outputs(model, task.preprocess(batch.images))
    assert list(outputs) == ["logits", "mask"]
    assert outputs["mask"].dtype == torch.int64
    assert outputs["mask"].shape[1:] == batch.images.shape[2:]
    assert outputs["logits"].shape[2] * STRIDE == batch.images.shape[2]
    for one, mask, (height, width) in zip(
        task.predict(model, batch), outputs["mask"], batch.valid.tolist(), strict=True
    ):
        same = one.mask == mask[:height, :width].numpy()
        assert same.mean() > 0.999


@torch.no_grad()
def test_images_do_not_depend_on_those_beside_them(source):
    task, model = task_of(source), Cells(CLASSES, context=1)
    images = ImageSet(selection(source), task.transform(training=False), seed=0)
    together = task.predict(model, images[BatchKey((0, 1))])
    alone = [task.predict(model, images[BatchKey((i,))])[0] for i in (0, 1)]
    # At the border of an image the score of a cell in the padding may reach in.
    for a, b in zip(together, alone, strict=True):
        assert (a.mask == b.mask).mean() > 0.99


@torch.no_grad()
@pytest.mark.parametrize(("resize", "said"), [("stretch", 1), ("none", 0)])
def test_windows_that_change_nothing_are_said_once(resize, said, source, caplog):
    task = task_of(source, resize=resize)
    batch = batch_of(task, source)
    task.use_windows((48, 48))  # larger than 32×32, smaller than the images
    for _ in range(2):
        task.infer_model(Cells(CLASSES), batch)
    found = [each.getMessage() for each in caplog.records if "change nothing" in each.message]
    assert len(found) == said
    if said:
        assert "an image of 40×52 is scaled to 32×32 first" in found[0]


@torch.no_grad()
def test_windows_and_copies_as_configured(source):
    model = Cells(CLASSES)
    whole = task_of(source)
    batch = batch_of(whole, source)
    images = whole.preprocess(batch.images)

    def scores(each):
        return model(each)["logits"]

    def infer(**options):
        task = task_of(source, SegmentationConfig(**options))
        return task, task.infer_model(model, batch)["logits"]

    assert torch.equal(infer()[1], scores(images))
    assert torch.equal(infer(inference="slide", window=64)[1], scores(images))
    slid = slide(scores, images, Windows((20, 24), (8, 12), 4))
    _, found = infer(inference="slide", window=(20, 24), stride=(8, 12))
    torch.testing.assert_close(found, slid)
    default = slide(scores, images, Windows((32, 32), (20, 20), 4))
    torch.testing.assert_close(infer(inference="slide")[1], default)
    scales = AugmentConfig(scales=(0.5, 1.0), flip=True)
    task, found = infer(augment=scales)
    expected = augmented(scores, model.probabilities, images, (0.5, 1.0), True, 4)
    torch.testing.assert_close(found, expected)
    compute = lambda each: {"logits": scores(each)}  # noqa: E731
    assert torch.equal(task.infer(compute, batch)["logits"], scores(images))  # of a file
    assert "left out" in task.file_notes()[0]
    assert whole.file_notes() == []
    both = infer(augment=scales, inference="slide", window=24)[1]
    by_window = lambda each: slide(scores, each, Windows((24, 24), (16, 16), 4))  # noqa: E731
    expected = augmented(by_window, model.probabilities, images, (0.5, 1.0), True, 4)
    torch.testing.assert_close(both, expected)


def test_the_loss_is_the_cross_entropy_of_known_pixels(source):
    weights = [1.0, 2.0, 0.5, 1.0, 3.0, 1.0]
    task = task_of(source, SegmentationConfig(class_weights=weights), photometric=0.0)
    model = Cells(CLASSES)
    batch = batch_of(task, source, training=True)
    masks = batch.targets["mask"].long()
    assert masks.shape == (2, 32, 32)
    parts = task.training_step(model, batch, step=None)
    logits = F.interpolate(model(batch.images / 255)["logits"], (32, 32), mode="bilinear")
    expected = F.cross_entropy(logits, masks, torch.tensor(weights), ignore_index=IGNORED)
    torch.testing.assert_close(parts["loss"], expected)
    plain = task_of(source, photometric=0.0).training_step(model, batch, step=None)
    torch.testing.assert_close(plain["loss"], F.cross_entropy(logits, masks, ignore_index=IGNORED))


def test_rare_classes_weigh_more(source):
    task = task_of(source, SegmentationConfig(class_weights="auto"))
    assert task.class_weights is None
    task.see_training_images(selection(source))
    labels = np.concatenate([mask.flatten().numpy() for mask in source.masks["train"]])
    counts = np.bincount(labels[labels != IGNORED], minlength=CLASSES)
    expected = 1 / np.log(1.02 + counts / counts.sum())
    np.testing.assert_allclose(task.class_weights, expected / expected.mean(), rtol=1e-5)
    extreme = automatic_weights(np.array([0, 10**9])).numpy()
    assert extreme[0] / extreme[1] == pytest.approx(np.log(2.02) / np.log(1.02))
    plain = task_of(source)
    plain.see_training_images(selection(source))
    assert plain.class_weights is None


def test_agreement_is_of_pixels():
    task = task_of(Labelled([blocks((8, 8))]))
    mask = torch.arange(64).view(1, 8, 8) % CLASSES
    other = mask.clone()
    other[0, 0, :4] += 1
    logits = torch.zeros(1, CLASSES, 2, 2)
    before, after = {"logits": logits, "mask": mask}, {"logits": logits, "mask": other}
    assert task.agreement(before, after).tolist() == [60 / 64]
    left, right = task.align(before, after)
    assert torch.equal(left["mask"], right["mask"])
    assert (left["mask"][0, 1:] == mask[0, 1:]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 32}, "task.window is for windows: set task.inference to slide"),
        ({"stride": 32}, "task.stride is for windows"),
        ({"inference": "slide", "window": 32, "stride": (16, 33)}, "more than the window"),
        ({"class_weights": (0.0, 0.0)}, "nothing would be learnt"),
        ({"class_weights": "balanced"}, "task.class_weights is 'balanced'"),
        ({"augment": AugmentConfig(), "inference": "tiles"}, "task.inference is 'tiles'"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationConfig(**options)


def test_what_does_not_fit_is_refused_before_the_work(source):
    with pytest.raises(ValueError, match=r"has 2 weights, the data have 6 classes \(class 0"):
        task_of(source, SegmentationConfig(class_weights=(1.0, 2.0)))
    with pytest.raises(ValueError, match=r"task\.augment\.scales is empty"):
        AugmentConfig(scales=())
    task = task_of(source, multiple=6)
    with pytest.raises(ValueError, match=r"multiple is 6, but .* multiples of 4: set it to 4"):
        task.prepare_training(Cells(CLASSES))
    with pytest.raises(ValueError, match="the model knows 3 classes, the data 6"):
        task.prepare_training(Cells(3))
    with pytest.raises(ValueError, match="Conv2d is no segmenter"):
        task.prepare_training(torch.nn.Conv2d(1, 1, 1))


def test_files_say_how_images_are_scaled(source):
    values = task_of(source, resize="keep", max_size=80).input_format()
    assert values["classes"] == source.info.classes
    assert values["colours"] == [list(colour) for colour in source.info.colours]
    assert (values["resize"], values["shortest"], values["longest"]) == ("fit", 32, 80)
    assert values["pad_multiple"] == 4
    assert task_of(source).input_format()["resize"] == "none"
    warped = task_of(source, resize="stretch", image_size=(30, 50))
    assert warped.input_format()["resize_size"] == [30, 50]
    assert warped.input_size == (32, 52)
