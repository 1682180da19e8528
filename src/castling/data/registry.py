"""Sources of images, registered by name; adding one is one file in ``data/sources``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from castling.data.sample import Sample
from castling.utils.text import did_you_mean

Triple = tuple[float, float, float]
Colour = tuple[int, int, int]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Base of all source configurations; subclasses set ``name`` and add their options."""

    name: ClassVar[str] = ""
    #: What it reads, in a few words; for reports.
    reads: ClassVar[str] = ""

    def __str__(self) -> str:
        """What a person calls the source; the shorthand that a recipe may write."""
        return self.name

    def check_exists(self) -> None:
        """Raise FileNotFoundError where there is nothing to open; reads no image."""


@dataclass(frozen=True)
class DataInfo:
    """What a source says about itself.

    Attributes:
        classes: readable names in the order of the labels; empty for unlabelled images.
        splits: number of images of each split: ``train`` and perhaps ``val`` and ``test``.
        kind: the kind of target: ``"classification"``, ``"detection"``, ``"segmentation"`` or
            ``"unlabelled"``.
        mirrored: whether a mirror image still has the same target.
        mean: default normalisation, per channel, of pixels in [0, 1].
        std: as ``mean``.
        test_fraction: default share of a missing test split; 0 for none: the validation images
            serve.
        shuffle: whether held-out images are chosen at random.
        trusted: whether files need no check: nothing is on disk, or a library compared checksums.
        has_masks: of detection: whether every object has a mask beside its box.
        colours: of segmentation: red, green and blue by which people know each class, in the order
            of the labels; empty where the data have none.
        notes: what a person should know about the data.
    """

    classes: list[str]
    splits: dict[str, int]
    kind: str = "classification"
    mirrored: bool = True
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    test_fraction: float = 0.1
    shuffle: bool = True
    trusted: bool = False
    has_masks: bool = False
    colours: tuple[Colour, ...] = ()
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """A set of images with targets, before missing splits are made."""

    info: DataInfo

    def sample(self, split: str, index: int) -> Sample:
        """One image with its target.

        Raises:
            DataError: the image is damaged; the message names the file.
        """
        ...

    def size(self, split: str, index: int) -> tuple[int, int]:
        """(height, width) from the header; DataError names the file of a damaged image."""
        ...

    def name(self, split: str, index: int) -> str:
        """How a person finds the image."""
        ...

    def labels(self, split: str) -> NDArray[np.int64] | None:
        """(n,) class of every image, by which splits are stratified; None where there is none."""
        ...

    def problems(self) -> list[str]:
        """Every fault of the data that can be found without decoding images, one line each."""
        ...


@runtime_checkable
class FileSource(Source, Protocol):
    """A source whose images are files, so that images may be added, removed, renamed or changed.

    Its missing splits follow from the images themselves instead of their positions.
    """

    #: What was noticed while images were read, such as damaged EXIF; by file.
    noticed: dict[str, str]

    def path(self, split: str, index: int) -> str:
        """Name of the file in the source: unique, and the same wherever the source lies."""
        ...

    def content(self, split: str, index: int) -> str:
        """Digest of the file's bytes, as of :func:`castling.data.keys.content_digest`.

        Raises:
            DataError: the file cannot be read.
        """
        ...


@runtime_checkable
class AnnotatedSource(FileSource, Protocol):
    """A source whose targets lie beside the images, so that they may change without them."""

    def annotation(self, split: str, index: int) -> str:
        """Digest of what is annotated about an image, as 16 hexadecimal digits.

        Raises:
            DataError: it cannot be read.
        """
        ...


OpenerT = TypeVar("OpenerT", bound=Callable[[Any], Source])
_SOURCES: dict[str, tuple[type[SourceConfig], Callable[[Any], Source]]] = {}


def register_source(config_class: type[SourceConfig]) -> Callable[[OpenerT], OpenerT]:
    """Decorator: the function or class that opens sources of ``config_class``."""

    def register(opener: OpenerT) -> OpenerT:
        _SOURCES[config_class.name] = (config_class, opener)
        return opener

    return register


def list_sources() -> list[str]:
    """Names of all registered sources, sorted."""
    return sorted(_SOURCES)


def source_config_class(name: str) -> type[SourceConfig]:
    """The configuration class registered under ``name``; ValueError lists the known names."""
    if name not in _SOURCES:
        raise ValueError(
            f"there is no source {name!r} (known are {', '.join(list_sources())})"
            f"{did_you_mean(name, _SOURCES)}"
        )
    return _SOURCES[name][0]


def open_source(config: SourceConfig) -> Source:
    """Open the source that ``config`` describes.

    Raises:
        FileNotFoundError: it does not exist.
        PermissionError: it may not be read.
        ValueError: an option does not fit; as DataError, when the data is at fault.
    """
    return _SOURCES[config.name][1](config)


def source_problems(config: SourceConfig) -> list[str]:
    """Every fault of a source that is found without decoding images, one line each.

    What stands in the way of opening it is a line too.
    """
    try:
        source = open_source(config)
    except (OSError, ValueError) as error:
        return [str(error)]
    return source.problems()


def source_to_dict(config: SourceConfig) -> dict[str, Any]:
    """``config`` as plain values for YAML or JSON, ``name`` first."""
    return {"name": config.name, **dataclasses.asdict(config)}
