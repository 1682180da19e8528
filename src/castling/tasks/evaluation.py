"""A task's metrics over the batches of a loader."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from castling.data.errors import plain_data_errors
from castling.data.sample import Batch
from castling.tasks.interface import Task
from castling.utils.finite import NonFiniteOutputError, finite_outputs
from castling.utils.modes import eval_mode


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """What an evaluation found.

    Attributes:
        metrics: by name; the percentages of the task in percent.
        per_class: the task's metric of each class; None for a class without images. Empty where
            the task has none.
        class_figures: class → column → value: the task's table of classes, such as precision and
            recall in percent, and ``"images"``; empty where the task has none.
        images: number of images.
        images_per_second: with loading.
        split: which images; ``"val"`` where those serve as test images too.
        data: what they belong to; empty where that is not known.
        trained_on: how many of them the model was trained on; None where that is not known.
        notes: what a person should know about the images.
    """

    metrics: dict[str, float]
    per_class: dict[str, float | None] = dataclasses.field(default_factory=dict)
    class_figures: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    images: int
    images_per_second: float
    split: str
    data: str = ""
    trained_on: int | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """Which images, and whether the model was trained on them, in a sentence."""
        name = {"train": "training ", "val": "validation ", "test": "test "}.get(self.split, "")
        of = f" of {self.data}" if self.data else ""
        if self.trained_on is None:
            seen = "whether the model was trained on them is not known"
        elif self.trained_on == 0:
            seen = "held out from training"
        elif self.trained_on == self.images:
            seen = "the model was trained on them"
        else:
            seen = f"the model was trained on {self.trained_on} of them"
        return f"{self.images} {name}images{of}; {seen}"


def _never() -> bool:
    return False


@torch.inference_mode()
@plain_data_errors()
def evaluate_loader(
    task: Task, model: nn.Module, loader: Iterable[Batch], split: str
) -> EvaluateResult:
    """Evaluate over a loader, on the device the model is on; its mode is put back after.

    Raises:
        ValueError: there are no images, or the model does not fit the task; as DataError, when an
            image is damaged; as NonFiniteOutputError, when the model returns NaN or infinity.
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    task.to(device)
    metric = task.metrics().to(device)
    # This process sees all images; the others of a distributed run may have ended.
    for part in metric.modules():
        part.distributed_available_fn = _never  # type: ignore[assignment]
    started = time.perf_counter()
    count = 0
    with eval_mode(model), finite_outputs(model):
        for batch in loader:
            try:
                task.evaluation_step(model, batch.to(device, non_blocking=True), metric)
            except NonFiniteOutputError as error:
                image = batch.names[error.images[0]]
                raise NonFiniteOutputError(f"{image}: {error}", error.images) from error
            count += len(batch)
    values = metric.compute() if count else {}
    if not values:
        raise ValueError(f"there are no {split} images")
    return EvaluateResult(
        metrics=values,
        per_class=task.class_metrics(metric),
        class_figures=task.class_figures(metric),
        images=count,
        images_per_second=count / (time.perf_counter() - started),
        split=split,
    )
