"""Detectors that draw regions at random resume exactly all the same, masks included."""

import pytest
from tests.train.interrupted import InterruptAt, assert_same_run

from castling.train import TrainingInterrupted, recipe_from_dict, train


def recipe(name):
    source = {"name": "digit_scenes", "canvas": 64, "images": 24, "digits": [0, 4]}
    return recipe_from_dict(
        {
            "task": "detection",
            "model": {"name": f"{name}/test_resnet", "head": {"score_threshold": 0.0}},
            "data": {
                "source": source,
                "transform": {"image_size": 64, "mosaic": 0.3, "copy_paste": 0.3},
                "loader": {"batch_size": 6},
            },
            "epochs": 2,
            "optim": {"lr": 1e-3},
            "hardware": {"accelerator": "cpu"},
            "save": {"every_steps": 1},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_pico", "mask_rcnn_pico", "cascade_mask_rcnn_pico"])
def test_resumed_in_the_middle_of_an_epoch(name, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    expected = train(recipe(name), whole, progress=False)
    with pytest.raises(TrainingInterrupted):
        train(recipe(name), halves, progress=False, callbacks=[InterruptAt(3)])
    result = train(recipe(name), halves, resume="must", progress=False)
    assert result.metrics == expected.metrics
    assert_same_run(whole, halves)
    assert ("val_mask_AP" in result.metrics) == ("mask" in name)
