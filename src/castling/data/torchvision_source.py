"""Classification data sets that torchvision knows by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from castling.data.decode import to_rgb
from castling.data.errors import DataError
from castling.data.sources import Labelled, Source

_BOOLEAN: Mapping[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_TWO: Mapping[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {**_TWO, "val": {"split": "val"}}
_LETTERS = {
    "train": {"split": "balanced", "train": True},
    "test": {"split": "balanced", "train": False},
}

KNOWN: dict[str, Mapping[str, dict[str, Any]]] = {
    "CIFAR10": _BOOLEAN,
    "CIFAR100": _BOOLEAN,
    "DTD": _THREE,
    "EMNIST": _LETTERS,
    "EuroSAT": {"train": {}},
    "FashionMNIST": _BOOLEAN,
    "FGVCAircraft": _THREE,
    "Flowers102": _THREE,
    "Food101": _TWO,
    "GTSRB": _TWO,
    "Imagenette": {"train": {"split": "train"}, "val": {"split": "val"}},
    "KMNIST": _BOOLEAN,
    "MNIST": _BOOLEAN,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "PCAM": _THREE,
    "QMNIST": _BOOLEAN,
    "RenderedSST2": _THREE,
    "STL10": _TWO,
    "SVHN": _TWO,
    "USPS": _BOOLEAN,
}
"""Arguments of each split of each data set; a set with other arguments is not in the table."""

_NOT_MIRRORED = {"EMNIST", "GTSRB", "KMNIST", "MNIST", "QMNIST", "RenderedSST2", "SVHN", "USPS"}


class TorchvisionImages:
    """One split of a torchvision data set, which torchvision has checked."""

    trusted = True

    def __init__(self, dataset: Any, what: str) -> None:
        self.dataset = dataset
        self.what = what

    def read(self, index: int) -> Image.Image:
        """One image, upright RGB; DataError names its position when it is damaged."""
        try:
            return to_rgb(self.dataset[index][0])
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{self.name(index)} cannot be read: {error}") from error

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.read(index).size

    def name(self, index: int) -> str:
        """The set, the split and the position in it."""
        return f"{self.what} image {index}"


def torchvision_source(name: str, root: str, *, download: bool) -> Source:
    """A torchvision data set by its class name.

    Args:
        name: such as `CIFAR10`.
        root: folder in which torchvision keeps it.
        download: fetch it when it is missing.

    Raises:
        ValueError: the name is unknown.
        FileNotFoundError: the set is not below `root` and may not be downloaded.
    """
    from torchvision import datasets

    if name not in KNOWN:
        by_lower = {known.lower(): known for known in KNOWN}
        near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(by_lower[key] for key in near)}? " if near else ""
        raise ValueError(
            f"torchvision:{name} is not a known image classification set; {hint}known are "
            f"{', '.join(KNOWN)}"
        )
    if download:
        Path(root).mkdir(parents=True, exist_ok=True)
    splits = {}
    classes: list[str] = []
    for split, arguments in KNOWN[name].items():
        try:
            dataset = getattr(datasets, name)(root, download=download, **arguments)
        except (RuntimeError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"the {split} split of torchvision:{name} is not whole below {root!r} ({error}); "
                "set download to true, or root to the folder that holds it"
            ) from error
        labels = _labels(dataset)
        classes = classes or _classes(dataset, labels)
        what = f"torchvision:{name} {split}"
        splits[split] = Labelled(TorchvisionImages(dataset, what), np.arange(len(labels)), labels)
    return Source(classes, splits, mirrored=name not in _NOT_MIRRORED)


def _labels(dataset: Any) -> np.ndarray:
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            return np.asarray(values).reshape(len(dataset), -1)[:, 0].astype(np.int64)
    for attribute in ("_samples", "samples"):
        pairs = getattr(dataset, attribute, None)
        if isinstance(pairs, list):
            return np.array([label for _, label in pairs], dtype=np.int64)
    return np.array([int(dataset[index][1]) for index in range(len(dataset))], dtype=np.int64)


def _classes(dataset: Any, labels: np.ndarray) -> list[str]:
    count = int(labels.max()) + 1
    names = getattr(dataset, "classes", None) or []
    names = [" / ".join(name) if isinstance(name, tuple) else str(name) for name in names]
    return names if len(names) == count else [str(label) for label in range(count)]
