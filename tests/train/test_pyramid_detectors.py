"""Detectors that draw regions at random resume exactly all the same, masks included."""

import os
import signal

import pytest
import safetensors.torch
import torch
from lightning.pytorch import Callback

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


class InterruptAt(Callback):
    """Presses Ctrl-C while a step is computed, counted from 1."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_pico", "mask_rcnn_pico", "cascade_mask_rcnn_pico"])
def test_resumed_in_the_middle_of_an_epoch(name, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    expected = train(recipe(name), whole, progress=False)
    with pytest.raises(TrainingInterrupted):
        train(recipe(name), halves, progress=False, callbacks=[InterruptAt(3)])
    result = train(recipe(name), halves, resume="must", progress=False)
    assert result.metrics == expected.metrics
    one, other = (
        safetensors.torch.load_file(each / "model.safetensors") for each in (whole, halves)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert ("val_mask_AP" in result.metrics) == ("mask" in name)
