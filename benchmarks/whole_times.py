"""Milliseconds of whole dense models of finished runs, in eager PyTorch and as exported files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import castling
from castling.data import BatchKey
from castling.deploy import export_saved, model_folder
from castling.export import open_exported
from castling.models.saved import open_model
from castling.tasks import task_from_card
from castling.train import open_data
from castling.utils.timing import cpu_threads, time_alternately, timer_for
from studies import recipe_of_run

#: Runtime → suffix of its files.
EXPORTED = {"onnxruntime": "onnx", "openvino": "xml"}


def whole_times(folders: Mapping[str, Path], seconds: float) -> dict[str, dict[str, float]]:
    """Row → runtime → median milliseconds for one image, one thread; folded in eager."""
    calls: dict[tuple[str, str], Any] = {}
    with cpu_threads(1), torch.inference_mode(), tempfile.TemporaryDirectory() as temporary:
        for name, folder in folders.items():
            model, card = open_model(model_folder(folder))
            task = task_from_card(card)
            images = test_images(folder, 1)
            castling.fold_(model, images)
            calls[name, "eager"] = lambda m=model, t=task, x=images: t.outputs(m, x)
            for runtime, suffix in EXPORTED.items():
                path = Path(temporary) / f"{name}.{suffix}"
                export_saved(folder, path)
                calls[name, runtime] = open_exported(path, threads=1).runner(images)
        timings = time_alternately(
            calls, rounds=30, seconds=seconds, timer=timer_for(torch.device("cpu"))
        )
    found: dict[str, dict[str, float]] = {}
    for (name, runtime), timing in timings.items():
        found.setdefault(name, {})[runtime] = round(timing.milliseconds, 2)
    return found


def test_images(folder: Path, count: int) -> torch.Tensor:
    """Normalised test images (B, 3, H, W) as a run's model takes them."""
    data, task = open_data(recipe_of_run(folder))
    return task.preprocess(data.dataset("test")[BatchKey(tuple(range(count)))].images)
