"""A run of D-FINE by its name: trained, interrupted, resumed, switched, opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.interrupted import InterruptAt

import castling
from castling.models.saved import open_model
from castling.train import TrainingInterrupted, recipe_from_dict, train
from castling.train.recipe import Recipe


def recipe(source: dict[str, Any], **options: Any) -> Recipe:
    return recipe_from_dict(
        {
            "task": "detection",
            "model": {"name": "d_fine_pico/castling_levit_s8_pico", "head": {"denoising": 8}},
            "data": {
                "source": source,
                "split": {"subset": 8},
                "transform": {"image_size": 64, "multiple": 16},
                "loader": {"batch_size": 4},
            },
            "hardware": {"accelerator": "cpu"},
            "epochs": 2,
            "save": {"best": False, "every_steps": 1},
            **options,
        }
    )


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    from castling.data.registry import source_to_dict
    from castling.tasks import task_class, task_config_class

    task = task_class(task_config_class("detection")())
    return source_to_dict(task.generate_images(tmp_path / "images", 24))


@pytest.mark.slow
def test_a_run_stopped_in_the_middle_goes_on_as_if_it_was_not(
    tmp_path: Path, source: dict[str, Any]
) -> None:
    whole = train(recipe(source), tmp_path / "whole", progress=False)
    with pytest.raises(TrainingInterrupted):
        train(recipe(source), tmp_path / "cut", progress=False, callbacks=[InterruptAt(3)])
    resumed = train(recipe(source), tmp_path / "cut", progress=False)
    assert resumed.metrics == whole.metrics
    first, card = open_model(tmp_path / "whole")
    second, _ = open_model(tmp_path / "cut")
    theirs = second.state_dict()
    assert all(torch.equal(tensor, theirs[n]) for n, tensor in first.state_dict().items())
    assert card.head is not None
    assert (card.head["name"], card.head["denoising"]) == ("d_fine_pico", 8)
    switched, _ = open_model(tmp_path / "whole" / "switched")
    assert not castling.attention.auxiliaries(switched)
