"""Predictions of detection as values."""

from castling.tasks.detection import DetectionPrediction


def test_the_worse_of_two_boxes_in_one_place_goes_whatever_its_class():
    found = DetectionPrediction(
        name="a",
        boxes=((0, 0, 8, 8), (1, 0, 8, 8), (20, 0, 28, 8)),
        scores=(0.5, 0.9, 0.4),
        labels=(0, 1, 0),
        classes=("a", "b", "a"),
    )
    left = found.without_overlaps(0.5)
    assert left.boxes == ((1, 0, 8, 8), (20, 0, 28, 8))
    assert (left.scores, left.classes) == ((0.9, 0.4), ("b", "a"))
    assert DetectionPrediction(name="a").without_overlaps(0.5).boxes == ()
