"""One confusion matrix of pixels, against scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    jaccard_score,
    precision_score,
    recall_score,
)
from torchmetrics.classification import MulticlassJaccardIndex

from castling.tasks.segmentation.figures import class_shares, confusion, overall_figures
from castling.tasks.segmentation.metrics import SegmentationMetrics
from castling.utils.labels import IGNORED


def pairs(classes, sizes, seed, shown=None):
    """Predictions and masks; of some classes only ``shown`` occur."""
    random = np.random.default_rng(seed)
    found = []
    for size in sizes:
        said = random.integers(0, shown or classes, size)
        truth = random.integers(0, shown or classes, size)
        truth[random.random(size) < 0.3] = IGNORED
        said = np.where(random.random(size) < 0.5, np.where(truth == IGNORED, said, truth), said)
        found.append(
            (torch.from_numpy(said.astype(np.uint8)), torch.from_numpy(truth.astype(np.uint8)))
        )
    return found


sizes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4)


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), sizes, st.integers(0, 10**6), st.integers(1, 6))
def test_against_scikit_learn(classes, shapes, seed, shown):
    images = pairs(classes, shapes, seed, min(shown, classes))
    metric = SegmentationMetrics(classes)
    for said, truth in images:
        metric.update([said], [truth])
    found = metric.compute()
    said, truth = (np.concatenate([each[k].flatten().numpy() for each in images]) for k in (0, 1))
    known = truth != IGNORED
    said, truth = said[known].astype(int), truth[known].astype(int)
    if not known.any():
        assert found == {"mIoU": 0, "mAcc": 0, "pAcc": 0}
        return
    expected = confusion_matrix(truth, said, labels=range(classes))
    assert np.array_equal(metric.matrix.numpy(), expected)
    there = np.union1d(said, truth)  # classes that the truth or a prediction shows
    iou = jaccard_score(truth, said, labels=there, average="macro", zero_division=0)
    assert found["mIoU"] == pytest.approx(100 * iou)
    recall = recall_score(truth, said, labels=np.unique(truth), average="macro", zero_division=0)
    assert found["mAcc"] == pytest.approx(100 * recall)
    assert found["pAcc"] == pytest.approx(100 * accuracy_score(truth, said))
    rows = metric.class_figures()
    precision = precision_score(truth, said, labels=range(classes), average=None, zero_division=0)
    for label, row in enumerate(rows):
        assert (row["IoU"] is None) == (label not in there)
        assert (row["accuracy"] is None) == (label not in truth)
        if label in said:
            assert row["precision"] == pytest.approx(100 * precision[label])
        assert row["images"] == sum(bool((mask == label).any()) for _, mask in images)


def test_against_torchmetrics():
    images = pairs(5, [(30, 40), (17, 9)], 3)
    metric, other = SegmentationMetrics(5), MulticlassJaccardIndex(5, ignore_index=IGNORED)
    metric.update(*zip(*images, strict=True))
    for said, truth in images:
        other.update(said.long(), truth.long())
    assert metric.compute()["mIoU"] == pytest.approx(100 * float(other.compute()), rel=1e-5)


def test_figures_are_of_all_pixels_and_no_means_of_images():
    said = [torch.zeros(1, 1, dtype=torch.uint8), torch.ones(1, 9, dtype=torch.uint8)]
    truth = [torch.ones(1, 1, dtype=torch.uint8), torch.ones(1, 9, dtype=torch.uint8)]
    metric = SegmentationMetrics(3)
    metric.update(said, truth)
    assert metric.compute() == {
        "mIoU": pytest.approx(45.0),  # class 0 is predicted and absent: 0; class 1: 9 of 10
        "mAcc": pytest.approx(90.0),
        "pAcc": pytest.approx(90.0),
    }


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_processes_sum_their_matrices():
    images = pairs(4, [(9, 9)] * 4, 0)
    whole, first, second = (SegmentationMetrics(4) for _ in range(3))
    whole.update(*zip(*images, strict=True))
    first.update(*zip(*images[:1], strict=True))
    second.update(*zip(*images[1:], strict=True))
    # what torchmetrics does with the states that processes gather
    for name in ("matrix", "shown", "images"):
        reduced = first._reductions[name](
            torch.stack([getattr(first, name), getattr(second, name)])
        )
        setattr(first, name, reduced)
    assert first.compute() == whole.compute()
    assert first.class_figures() == whole.class_figures()
    assert SegmentationMetrics(4).compute() == {}


def test_labels_that_are_no_class_are_named():
    mask = torch.tensor([[0, 3, 7]], dtype=torch.uint8)
    with pytest.raises(ValueError, match="a pixel of label 7, but there are 3 classes"):
        SegmentationMetrics(3).update([torch.zeros(1, 3, dtype=torch.uint8)], [mask])
    with pytest.raises(ValueError, match=r"\(2, 2\) pixels, the mask of \(1, 3\)"):
        confusion(torch.zeros(2, 2), mask, 3)


def test_counts_do_not_overflow():
    matrix = np.array([[3 * 10**9, 10**9], [0, 0]])
    assert overall_figures(matrix)["pAcc"] == pytest.approx(75)
    assert class_shares(matrix).precision.tolist() == [1, 0]
