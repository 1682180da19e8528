"""Classes of image files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from castling.data.decode import open_image
from castling.data.errors import DataError
from castling.data.transforms import EvalTransform
from castling.models.saved import ModelCard

IMAGE_SUFFIXES = frozenset(Image.registered_extensions()) - {".pdf", ".mpg", ".mpeg"}


@dataclass(frozen=True)
class Prediction:
    """What a model says about one file.

    Attributes:
        path: the file.
        classes: the most probable classes, best first; empty where the file could not be read.
        probabilities: theirs, in [0, 1].
        error: why the file, named in it, could not be read; empty otherwise.
    """

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def predict(
    model: nn.Module,
    card: ModelCard,
    paths: Iterable[str | os.PathLike[str]],
    top: int = 5,
    batch_size: int = 32,
) -> list[Prediction]:
    """Classify image files, and all images below folders.

    A file that is missing or cannot be read gives a prediction with ``error`` and does not stop the
    others; so does a folder without images.

    Args:
        model: in evaluation mode; from ``open_classifier`` or ``open_model``.
        card: how the model is fed, and its classes.
        paths: files and folders; files that are named are tried whatever their ending.
        top: number of classes per image; no more than there are.
        batch_size: images computed together.

    Returns:
        one prediction per file, in the order of ``paths``, folders sorted by name.

    Raises:
        ValueError: ``top`` or ``batch_size`` is not positive, or no path is given.
    """
    if top < 1 or batch_size < 1:
        raise ValueError(f"top and batch_size must be at least 1, got {top} and {batch_size}")
    files = _files(paths)
    if not files:
        raise ValueError("no image files or folders are given")
    transform = EvalTransform(
        card.image_size,
        card.mean,
        card.std,
        crop_fraction=card.crop_fraction,
        eval_crop=cast(Any, card.eval_crop),
        interpolation=cast(Any, card.interpolation),
    )
    predictions: list[Prediction] = []
    for start in range(0, len(files), batch_size):
        predictions += _predict_batch(
            model, card, transform, files[start : start + batch_size], top
        )
    return predictions


@torch.inference_mode()
def _predict_batch(
    model: nn.Module, card: ModelCard, transform: EvalTransform, files: Sequence[Path], top: int
) -> list[Prediction]:
    errors: dict[Path, str] = {}
    images: dict[Path, Tensor] = {}
    for file in files:
        try:
            images[file] = transform(open_image(file))
        except FileNotFoundError:
            errors[file] = f"no such file or folder: {file}"
        except IsADirectoryError:
            errors[file] = f"{file} holds no image files"
        except DataError as error:  # what follows the semicolon is advice for training data
            errors[file] = str(error).rpartition(";")[0] or str(error)
        except OSError as error:
            errors[file] = f"{file} cannot be read: {error.strerror or error}"
    found: dict[Path, Prediction] = {}
    if images:
        parameter = next(model.parameters(), None)
        batch = torch.stack(list(images.values()))
        logits = model(batch if parameter is None else batch.to(parameter.device))
        best = logits.float().softmax(-1).cpu().topk(min(top, logits.shape[-1]))
        for file, probabilities, indices in zip(images, best.values, best.indices, strict=True):
            names = tuple(card.classes[index] for index in indices.tolist())
            found[file] = Prediction(str(file), names, tuple(probabilities.tolist()))
    return [found.get(file) or Prediction(str(file), error=errors[file]) for file in files]


def _files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            )
            files += inside or [path]
        else:
            files.append(path)
    return list(dict.fromkeys(files))
