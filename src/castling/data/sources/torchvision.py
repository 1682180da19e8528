"""Classification data sets that torchvision knows by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from castling.data.decode import image_tensor, to_rgb
from castling.data.errors import DataError
from castling.data.registry import DataInfo, SourceConfig, register_source
from castling.data.sample import Sample
from castling.utils.checks import check_fields

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


@dataclass(frozen=True, kw_only=True)
class TorchvisionConfig(SourceConfig):
    """A data set that torchvision knows by name.

    Attributes:
        dataset: its class name, such as ``CIFAR10``.
        root: folder in which torchvision keeps it.
        download: let torchvision download it when it is missing.
    """

    name: ClassVar[str] = "torchvision"
    reads: ClassVar[str] = "a set of torchvision"
    dataset: str
    root: str = "data"
    download: bool = False

    def __str__(self) -> str:
        return f"{self.name}:{self.dataset}"

    def __post_init__(self) -> None:
        check_fields(self, "data.source")


@register_source(TorchvisionConfig)
class TorchvisionSource:
    """A torchvision data set, whose files torchvision has checked.

    Raises:
        ValueError: the name is unknown.
        FileNotFoundError: the set is not below ``root`` and may not be downloaded.
    """

    def __init__(self, config: TorchvisionConfig) -> None:
        from torchvision import datasets

        if config.dataset not in KNOWN:
            by_lower = {known.lower(): known for known in KNOWN}
            near = difflib.get_close_matches(config.dataset.lower(), by_lower, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(by_lower[key] for key in near)}? " if near else ""
            raise ValueError(
                f"torchvision:{config.dataset} is not a known image classification set; {hint}"
                f"known are {', '.join(KNOWN)}"
            )
        if config.download:
            Path(config.root).mkdir(parents=True, exist_ok=True)
        self._config = config
        self._datasets: dict[str, Any] = {}
        self._labels: dict[str, NDArray[np.int64]] = {}
        classes: list[str] = []
        for split, arguments in KNOWN[config.dataset].items():
            try:
                dataset = getattr(datasets, config.dataset)(
                    config.root, download=config.download, **arguments
                )
            except (RuntimeError, FileNotFoundError) as error:
                raise FileNotFoundError(
                    f"the {split} split of torchvision:{config.dataset} is not whole below "
                    f"{config.root!r} ({error}); set download to true, or root to the folder that "
                    "holds it"
                ) from error
            self._datasets[split] = dataset
            self._labels[split] = _labels(dataset)
            classes = classes or _classes(dataset, self._labels[split])
        self.info = DataInfo(
            classes=classes,
            splits={split: len(labels) for split, labels in self._labels.items()},
            mirrored=config.dataset not in _NOT_MIRRORED,
            trusted=True,
        )

    def sample(self, split: str, index: int) -> Sample:
        """One image, upright RGB; ``target["label"]`` is its class.

        Raises:
            DataError: it is damaged; its position is named.
        """
        name = self.name(split, index)
        try:
            image = image_tensor(to_rgb(self._datasets[split][index][0]))
        except Exception as error:  # see castling.data.decode
            raise DataError(f"{name} cannot be read: {error}") from error
        return Sample(
            image=image,
            target={"label": torch.tensor(self._labels[split][index])},
            index=index,
            name=name,
            original_size=(image.shape[1], image.shape[2]),
        )

    def size(self, split: str, index: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.sample(split, index).original_size

    def name(self, split: str, index: int) -> str:
        """The set, the split and the position in it."""
        return f"torchvision:{self._config.dataset} {split} image {index}"

    def labels(self, split: str) -> NDArray[np.int64]:
        """(n,) class of every image."""
        return self._labels[split]

    def problems(self) -> list[str]:
        """None: torchvision has compared checksums."""
        return []


def _labels(dataset: Any) -> NDArray[np.int64]:
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            return np.asarray(values).reshape(len(dataset), -1)[:, 0].astype(np.int64)
    for attribute in ("_samples", "samples"):
        pairs = getattr(dataset, attribute, None)
        if isinstance(pairs, list):
            return np.array([label for _, label in pairs], dtype=np.int64)
    return np.array([int(dataset[index][1]) for index in range(len(dataset))], dtype=np.int64)


def _classes(dataset: Any, labels: NDArray[np.int64]) -> list[str]:
    count = int(labels.max()) + 1
    names = getattr(dataset, "classes", None) or []
    names = [" / ".join(name) if isinstance(name, tuple) else str(name) for name in names]
    return names if len(names) == count else [str(label) for label in range(count)]
