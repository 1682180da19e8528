"""Confusions, figures per class and examples, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from castling.tasks.classification import report
from castling.tasks.classification.metrics import ClassificationMetrics
from castling.tasks.reporting import ReportExamples, ReportTable


def rows(classes=7, count=400, seed=0, unseen=0):
    """Random labels and predictions; ``unseen`` classes have no image and are never predicted."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes - unseen, count)
    said = np.where(
        generator.random(count) < 0.6, labels, generator.integers(0, classes - unseen, count)
    )
    names = [f"class {index}" for index in range(classes)]
    found = [
        {
            "name": f"{i}.png",
            "label": names[a],
            "predicted": names[b],
            "probability": f"{generator.random():.6f}",
            "example": "",
        }
        for i, (a, b) in enumerate(zip(labels, said, strict=True))
    ]
    return found, names


@pytest.mark.parametrize("unseen", [0, 2])
def test_matrix_and_figures_are_those_of_scikit_learn(unseen):
    found, names = rows(unseen=unseen)
    labels, said = [r["label"] for r in found], [r["predicted"] for r in found]
    matrix = report.confusion_matrix(labels, said, names)
    assert (matrix == metrics.confusion_matrix(labels, said, labels=names)).all()
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, said, labels=names, zero_division=np.nan
    )
    for index, one in enumerate(report.class_figures(matrix)):
        assert one.images == support[index]
        if one.images == 0:
            assert one == (None, None, None, 0)
            continue
        assert one.precision == pytest.approx(precision[index])
        assert one.recall == pytest.approx(recall[index])
        assert one.f1 == pytest.approx(f1[index])


def test_figures_by_hand():
    # 3 images of a, two called a; 1 of b, called a; c has no image and is called once
    matrix = np.array([[2, 0, 1], [1, 0, 0], [0, 0, 0]])
    a, b, c = report.class_figures(matrix)
    assert a == (pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3), 3)
    assert b == (None, 0.0, 0.0, 1)
    assert c == (0.0, None, None, 0)


def test_examples_are_the_most_confident_mistakes_then_right_ones_of_many_classes():
    found, _ = rows()
    chosen = report.choose_examples(found)
    wrong, right = chosen[: report.WRONG_EXAMPLES], chosen[report.WRONG_EXAMPLES :]
    mistakes = [i for i, row in enumerate(found) if row["label"] != row["predicted"]]
    expected = sorted((float(found[i]["probability"]) for i in mistakes), reverse=True)
    assert [float(found[i]["probability"]) for i in wrong] == expected[: len(wrong)]
    assert all(found[i]["label"] == found[i]["predicted"] for i in right)
    assert len(right) == report.RIGHT_EXAMPLES
    assert len({found[i]["label"] for i in right}) == 7
    assert report.choose_examples([]) == []


def test_parts_for_two_classes_and_for_a_thousand():
    found, names = rows(classes=2)
    found[0]["example"] = "examples/0.png"
    matrix, classes, examples = report.report_parts(found, names)
    assert isinstance(matrix, ReportTable)
    assert matrix.title == "Confusion matrix"
    assert np.allclose(np.sum(matrix.shades, axis=1), 1)
    assert isinstance(examples, ReportExamples)
    assert len(classes.rows) == 2

    found, names = rows(classes=1000, count=3000)
    confusions, hardest, classes = report.report_parts(found, names)
    assert hardest.title == "Hardest classes"
    figures = {row[0]: float(row[3].split()[0]) for row in classes.rows if row[3] != "–"}
    lowest = sorted(figures.values())[: report.HARDEST]
    assert [figures[row[0]] for row in hardest.rows] == lowest
    assert confusions.title == "Most frequent confusions"
    assert len(confusions.rows) == report.TOP_CONFUSIONS
    counts = [int(row[2]) for row in confusions.rows]
    assert counts == sorted(counts, reverse=True)
    truth, said, count, share = confusions.rows[0]
    own = [row for row in found if row["label"] == truth]
    assert truth != said
    assert sum(row["predicted"] == said for row in own) == int(count)
    assert share == f"{100 * int(count) / len(own):.1f} %"
    assert len(classes.rows) == 1000
    assert report.report_parts([], names) == []


def test_a_perfect_model_has_no_mistakes_to_show():
    found = [{"name": "a", "label": "a", "predicted": "a", "probability": "1", "example": "x"}]
    titles = [part.title for part in report.report_parts(found, ["a"])]
    assert titles == ["Confusion matrix", "Classes", "Right predictions"]


def test_the_metric_counts_the_same_over_batches():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 6, generator=generator)
    labels = torch.randint(0, 6, (200,), generator=generator)
    metric = ClassificationMetrics(6)
    for part in range(0, 200, 64):
        metric.update(logits[part : part + 64], labels[part : part + 64])
    names = list("abcdef")
    matrix = report.confusion_matrix(
        [names[i] for i in labels], [names[i] for i in logits.argmax(1)], names
    )
    assert metric.class_figures() == report.class_figures(matrix)
    assert metric.class_accuracy() == [100 * one.recall for one in metric.class_figures()]
