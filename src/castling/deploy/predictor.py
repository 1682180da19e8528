"""Trained models at work: images in, predictions of any task out, in any runtime."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from castling.data.sample import Batch, Sample
from castling.deploy.images import (
    ImageLike,
    complaint_about,
    expanded,
    name_of,
    pillow_of,
    sample_of,
)
from castling.deploy.saved_data import model_folder
from castling.export import open_exported
from castling.models.card import ModelCard
from castling.models.saved import open_model
from castling.surgery.checkpoint_values import non_finite, some
from castling.tasks import Prediction, Task, task_from_card, with_task_options
from castling.tasks.detection import DetectionPrediction, DetectionTask
from castling.tasks.detection.coco_files import CocoIds, coco_results
from castling.tasks.segmentation import SegmentationTask
from castling.utils.devices import read_device
from castling.utils.files import write_csv, write_text
from castling.utils.finite import explain_non_finite, non_finite_images
from castling.utils.modes import eval_mode

__all__ = ["ImageLike", "Predictor"]


class Predictor:
    """A model with its task: called with images, it returns predictions.

    Args:
        model: a run's folder (its switched model is taken where there is one), a saved model's
            folder, a file that :func:`castling.export` wrote, or a network.
        runtime: ``"auto"`` follows from ``model``; the name of an export target insists on it.
        task: what a network was trained for; saved models and exported files know their own.
        device: of PyTorch models.
        batch_size: images computed together.
        window: side, or (height, width), in pixels, of windows by which large images are computed,
            after scaling; None computes them as the task is configured.
        options: of the task of a saved model or file, in the place of its own; such as
            ``{"augment": {"flip": True}}`` of a segmenter.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: the file was not written by castling, a network comes without a task, its
            weights are not finite, or its task takes no windows.

    Example:
        >>> predictor = castling.Predictor("runs/mine")
        >>> for prediction in predictor(["cat.jpg", "folder"]):
        ...     print(prediction.name, prediction.summary())
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        runtime: str = "auto",
        *,
        task: Task | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        window: int | tuple[int, int] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        size = (window, window) if isinstance(window, int) else window
        if size is not None and min(size) < 1:
            raise ValueError(f"window must be at least 1 pixel, got {window}")
        self.batch_size = batch_size
        self.card: ModelCard | None = None
        self._run: Callable[[Batch], dict[str, Tensor]]
        self._network: nn.Module | None = None
        self._always: list[str] = []
        if isinstance(model, nn.Module):
            if task is None:
                raise ValueError(
                    "a network needs its task: castling.tasks.build_task, or give the folder of "
                    "a saved model"
                )
            self.task = task
            self._run = self._pytorch(model, device)
        elif Path(model).is_dir() or runtime == "pytorch" or not Path(model).suffix:
            network, self.card = open_model(model_folder(model))
            self.card = with_task_options(self.card, options)
            self.task = task or task_from_card(self.card, model)
            self._run = self._pytorch(network, device)
        else:
            exported = open_exported(model, target=None if runtime == "auto" else runtime)
            if "castling" not in exported.metadata:
                raise ValueError(
                    f"{model} holds no classes and normalisation; castling export of a saved model "
                    "puts them in"
                )
            try:
                self.card = ModelCard.from_dict(exported.metadata["castling"])
            except ValueError as error:
                raise ValueError(f"{model} does not describe its model: {error}") from error
            self.card = with_task_options(self.card, options)
            self.task = task or task_from_card(self.card, model)
            self._run = lambda batch: self.task.infer(exported, batch)
            self._always = self.task.file_notes()
            fixed, _, height, width = exported.input_shape
            self.batch_size = min(batch_size, fixed) if fixed else batch_size
            if height and width and self.task.windowed:
                self._by_windows((height, width), exactly=True)
                size = None  # there is no other
        if size is not None:
            self._by_windows(size)
        self.transform = self.task.transform(training=False)
        #: What was left out of folders or noticed while images were read, in the last call.
        self.notes: list[str] = []

    def _by_windows(self, size: tuple[int, int], *, exactly: bool = False) -> None:
        self.task = copy.copy(self.task)  # the caller's own stays as it is
        self.task.use_windows(size, exactly=exactly)

    def _pytorch(
        self, network: nn.Module, device: str | torch.device | None
    ) -> Callable[[Batch], dict[str, Tensor]]:
        broken = non_finite(dict(network.named_parameters()))
        if broken:
            raise ValueError(f"the network has weights that are not finite: {some(broken)}")
        if device is not None:
            network.to(read_device(device))
        self._network = network
        parameter = next(network.parameters(), None)
        place = torch.device("cpu") if parameter is None else parameter.device
        self.task.to(place)

        def run(batch: Batch) -> dict[str, Tensor]:
            with eval_mode(network):
                return self.task.infer_model(network, batch.to(place))

        return run

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> list[Prediction]:
        """Predictions of images, in order; folders count as the images in them, sorted by name.

        An image is a file's path, a Pillow image, a uint8 array (H, W), (H, W, 3) or (H, W, 4), or
        a uint8 tensor (3, H, W). One that is missing or cannot be read, or for which the model
        returns NaN or infinity, gives a prediction with ``error`` and does not stop the others; so
        does a folder without images.
        """
        return list(self.stream(images))

    def listed(self, images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
        """Single images, in the place of folders those inside; ``notes`` says what is left out."""
        self.notes = []
        return list(expanded(images, self.notes))

    def stream(self, images: ImageLike | Iterable[ImageLike]) -> Iterator[Prediction]:
        """As calling it, one batch of images in memory at a time."""
        self.notes = list(self._always)
        found = enumerate(expanded(images, self.notes))
        while chunk := list(itertools.islice(found, self.batch_size)):
            yield from self._predict(chunk)

    @torch.inference_mode()
    def _predict(self, chunk: Sequence[tuple[int, ImageLike]]) -> list[Prediction]:
        results: dict[int, Prediction] = {}
        samples: list[Sample] = []
        for index, image in chunk:
            try:
                samples.append(self.transform.resize(sample_of(index, image, self.notes)))
            except (OSError, ValueError) as error:  # a DataError is a ValueError
                results[index] = self.task.prediction_class(
                    name=name_of(index, image), error=complaint_about(image, error)
                )
        if samples:
            keys = np.zeros(len(samples), dtype=np.uint64)
            batch = self.transform.collate(samples, keys, None)
            raw = self._run(batch)
            broken = non_finite_images(raw).tolist()
            why = self._explain(batch) if any(broken) else ""
            found = self.task.decode(raw, batch)
            for sample, one, bad in zip(samples, found, broken, strict=True):
                results[sample.index] = (
                    self.task.prediction_class(
                        name=one.name,
                        error=f"{one.name}: the model's output for it is not finite{why}",
                    )
                    if bad
                    else one
                )
        return [results[index] for index, _ in chunk]

    def _explain(self, batch: Batch) -> str:
        """Where what is not finite arises; exported files do not tell."""
        if self._network is None:
            return ""
        device = next((p.device for p in self._network.parameters()), torch.device("cpu"))
        with eval_mode(self._network):
            images = self.task.preprocess(batch.images.to(device))
            return f": {explain_non_finite(self._network, images)}"

    def draw(self, image: ImageLike, prediction: Prediction) -> Image.Image:
        """A copy of the image with the prediction drawn."""
        return self.task.draw(pillow_of(image), prediction)

    def require_masks(self) -> None:
        """Raise ValueError unless predictions have a class for every pixel."""
        if not isinstance(self.task, SegmentationTask):
            raise ValueError(
                f"masks hold a class for every pixel; this model is for {self.task.config.name}"
            )

    def to_csv(self, predictions: Iterable[Prediction], path: str | os.PathLike[str]) -> None:
        """Write predictions as a table."""
        rows = [row for prediction in predictions for row in prediction.rows()]
        write_csv(path, self.task.prediction_class.columns, rows)

    def coco_ids(self, annotations: str | os.PathLike[str] | None = None) -> CocoIds | None:
        """The numbers of images and classes for :meth:`to_coco`, before any image is read.

        Args:
            annotations: a COCO file of annotations that has them; None counts from 1.

        Raises:
            ValueError: the model finds no objects; the file is another one, or lacks a class.
        """
        if not isinstance(self.task, DetectionTask):
            raise ValueError(
                f"COCO results list the objects of a detector; this model is for "
                f"{self.task.config.name}"
            )
        return None if annotations is None else CocoIds.read(annotations, self.task.info.classes)

    def to_coco(
        self,
        predictions: Iterable[Prediction],
        path: str | os.PathLike[str],
        ids: CocoIds | None = None,
    ) -> None:
        """Write a detector's predictions as COCO results, which pycocotools reads by ``loadRes``.

        Args:
            predictions: those with an error are left out.
            path: of the JSON file.
            ids: of :meth:`coco_ids`; None numbers images and classes from 1.

        Raises:
            ValueError: the model finds no objects, or ``ids`` does not know an image.
        """
        self.coco_ids()
        found = [one for one in predictions if isinstance(one, DetectionPrediction)]
        ids = ids or CocoIds.counted(found, self.task.info.classes)
        write_text(path, json.dumps(coco_results(found, ids), ensure_ascii=False) + "\n")
