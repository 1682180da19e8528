"""What a report says, from rows of predictions.csv."""

import csv

import numpy as np
import pytest
import torch
from tests.data.labelled import blocks

from castling.tasks.segmentation.figures import confusion
from castling.tasks.segmentation.records import (
    COLUMNS,
    image_figures,
    images_of,
    matrix_of,
    near_borders,
    rows_of,
)
from castling.tasks.segmentation.report import BEST, WORST, choose_examples, report_parts
from castling.utils.labels import IGNORED

CLASSES = ["a", "b", "c"]


def pair(seed, wrong=0.3, size=(24, 30)):
    truth = blocks(size, seed, 6, 3)
    random = np.random.default_rng(seed)
    said = truth.numpy().copy()
    said[said == IGNORED] = 0
    flipped = random.random(size) < wrong
    said[flipped] = random.integers(0, 3, int(flipped.sum()))
    return said, truth


def recorded(images):
    return [
        {"name": f"image {number}", **row}
        for number, (said, truth) in enumerate(images)
        for row in rows_of(said, truth, CLASSES)
    ]


def test_rows_hold_the_confusion_matrix():
    images = [pair(seed) for seed in range(3)]
    rows = recorded(images)
    assert all(set(row) == {"name", *COLUMNS} for row in rows)
    expected = sum(confusion(torch.from_numpy(said), truth, 3) for said, truth in images)
    assert np.array_equal(matrix_of(rows, CLASSES), expected.numpy())
    near = matrix_of(rows, CLASSES, "near")
    assert (near <= expected.numpy()).all()
    assert 0 < near.sum() < expected.sum()
    assert len(images_of(rows)) == 3
    nothing = torch.full((4, 4), IGNORED, dtype=torch.uint8)
    assert rows_of(np.zeros((4, 4), np.uint8), nothing, CLASSES) == []


@pytest.mark.parametrize("distance", [1, 3, 6])
def test_borders_against_a_loop(distance):
    truth = blocks((17, 23), 4, 5, 3)
    found = near_borders(truth, distance)
    for y in range(17):
        for x in range(23):
            around = truth[
                max(0, y - distance) : y + distance + 1, max(0, x - distance) : x + distance + 1
            ]
            others = (around != truth[y, x]) & (around != IGNORED)
            assert found[y, x] == bool(others.any() and truth[y, x] != IGNORED)


def test_examples_are_the_worst_and_the_best_images():
    images = [pair(seed, wrong=0.03 * seed) for seed in range(20)]
    rows = recorded(images)
    chosen = choose_examples(rows)
    names = [rows[place]["name"] for place in chosen]
    assert len(set(names)) == WORST + BEST
    scores = {
        name: image_figures([rows[place] for place in places])[0]
        for name, places in images_of(rows).items()
    }
    ranked = sorted(scores, key=scores.__getitem__)
    assert names[:WORST] == ranked[:WORST]
    assert names[WORST:] == ranked[::-1][:BEST]
    assert len(choose_examples(rows[:1])) == 1
    assert choose_examples([]) == []


def parts_of(rows, tmp_path, classes=CLASSES):
    with (tmp_path / "rows.csv").open("w+") as file:  # values are text, as read from a file
        writer = csv.DictWriter(file, ("name", *COLUMNS, "example"), restval="")
        writer.writeheader()
        writer.writerows(rows)
        file.seek(0)
        return {part.title: part for part in report_parts(list(csv.DictReader(file)), classes)}


def test_tables(tmp_path):
    said = np.array([[0, 0, 1, 1]] * 2, dtype=np.uint8)
    truth = torch.tensor([[0, 0, 0, 1]] * 2, dtype=torch.uint8)
    parts = parts_of(recorded([(said, truth)]), tmp_path)
    assert parts["Classes"].rows == (
        ("a", "66.7 %", "66.7 %", "100.0 %", "75.00 %", "1"),
        ("b", "50.0 %", "100.0 %", "50.0 %", "25.00 %", "1"),
        ("c", "–", "–", "–", "0.00 %", "0"),
    )
    assert "mIoU 58.33 %" in parts["Classes"].note
    assert parts["Confusion matrix"].rows[0] == ("a", "66.7", "33.3", "·")
    near, inside = parts["Errors near borders"].rows
    assert near[:4] == ("near a border", "50.0 %", "50.0 %", "100.0 %")
    assert inside[:3] == ("inside", "50.0 %", "0.0 %")
    assert report_parts([], CLASSES) == []


def test_examples_and_confusions_of_many_classes(tmp_path):
    images = [pair(seed, wrong=0.05 * seed) for seed in range(10)]
    rows = recorded(images)
    for place in choose_examples(rows):
        rows[place]["example"] = f"examples/{place}.jpg"
    parts = parts_of(rows, tmp_path, CLASSES + [str(i) for i in range(30)])
    assert "Confusion matrix" not in parts
    assert len(parts["Most frequent confusions"].rows) == 6
    worst, best = parts["Worst images"].examples, parts["Best images"].examples
    assert len(worst) == WORST
    assert len(best) == 2
    figures = [float(each.text.split()[1]) for each in (*worst, *best[::-1])]
    assert figures == sorted(figures)
    assert all(each.right for each in best)
