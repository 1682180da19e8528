"""Sources of labelled images: bundled digits, files in folders or zip files."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image

from castling.data.decode import read_image, read_size
from castling.data.errors import DataError
from castling.data.files import FileStore, open_store
from castling.data.layout import read_layout
from castling.data.splits import Indices

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class Images(Protocol):
    """Images by position."""

    trusted: bool
    """Whether headers need no check: nothing is on disk, or its library has compared checksums."""

    def read(self, index: int) -> Image.Image:
        """One image, upright RGB; DataError names the file of a damaged one."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) from the header; DataError names the file of a damaged one."""
        ...

    def name(self, index: int) -> str:
        """How a person finds the image."""
        ...


@dataclass(frozen=True)
class Labelled:
    """Some of a source's images with their classes.

    Attributes:
        images: the source they are read from.
        positions: which of them, (n,).
        labels: their classes, (n,).
    """

    images: Images
    positions: Indices
    labels: Indices

    def __len__(self) -> int:
        return len(self.positions)

    def part(self, chosen: Indices) -> Labelled:
        """The images at the given places of this selection."""
        return Labelled(self.images, self.positions[chosen], self.labels[chosen])

    def read(self, index: int) -> Image.Image:
        """One image, upright RGB."""
        return self.images.read(int(self.positions[index]))

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of one image before any resize."""
        return self.images.size(int(self.positions[index]))

    def name(self, index: int) -> str:
        """How a person finds the image."""
        return self.images.name(int(self.positions[index]))


@dataclass(frozen=True)
class Source:
    """What a source holds, before missing splits are made.

    Attributes:
        classes: readable names in the order of the labels.
        splits: `train` and perhaps `val` and `test`.
        mirrored: whether a mirror image still belongs to its class.
        mean: default of the normalisation.
        std: default of the normalisation.
        test_fraction: default share of a missing test split.
        shuffle: whether held-out images are chosen at random.
        notes: what a person should know.
    """

    classes: list[str]
    splits: dict[str, Labelled]
    mirrored: bool = True
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    test_fraction: float = 0.1
    shuffle: bool = True
    notes: tuple[str, ...] = field(default=())


class FileImages:
    """Images in a file store."""

    trusted = False

    def __init__(self, store: FileStore, files: list[str]) -> None:
        self.store = store
        self.files = files

    def read(self, index: int) -> Image.Image:
        """One image, upright RGB; DataError names the file of a damaged one."""
        with self.store.open(self.files[index]) as stream:
            return read_image(stream, self.name(index))

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) from the file's header; DataError names a damaged file."""
        with self.store.open(self.files[index]) as stream:
            return read_size(stream, self.name(index))

    def name(self, index: int) -> str:
        """Path of the file, or of the zip file and the entry in it."""
        return self.store.describe(self.files[index])


class ArrayImages:
    """Grey images in memory, (n, height, width) of uint8."""

    trusted = True

    def __init__(self, pixels: np.ndarray, what: str) -> None:
        self.pixels = pixels
        self.what = what

    def read(self, index: int) -> Image.Image:
        """One image as RGB."""
        return Image.fromarray(self.pixels[index]).convert("RGB")

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[2], self.pixels.shape[1]

    def name(self, index: int) -> str:
        """The set and the position in it."""
        return f"{self.what} {index}"


def digits_source() -> Source:
    """Scikit-learn's bundled handwritten digits: 1797 real scans of 8×8 pixels in 10 classes.

    The file goes through its 13 writers one after another, so the last images of every class are
    held out rather than random ones: the test figures come mostly from hands that training has not
    seen. (Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998.)
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    everything = Labelled(ArrayImages(pixels, "digit"), np.arange(len(labels)), labels)
    return Source(
        classes=[str(name) for name in bunch.target_names],
        splits={"train": everything},
        mirrored=False,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        test_fraction=0.2,
        shuffle=False,
        notes=("validation and test digits were mostly written by other hands than training ones",),
    )


def files_source(path: str) -> Source:
    """Images in a folder or a zip file, one folder per class.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        DataError: the zip file is damaged, or the folders do not make a classification set.
    """
    store = open_store(path)
    layout = read_layout(store)
    splits = {}
    for split, pairs in layout.splits.items():
        files = [file for file, _ in pairs]
        labels = np.array([label for _, label in pairs], dtype=np.int64)
        splits[split] = Labelled(FileImages(store, files), np.arange(len(files)), labels)
    return Source(layout.classes, splits, notes=layout.notes)


def for_all(count: int, visit: Callable[[int], object], what: str) -> None:
    """Visit every image, on several threads, and complain about all damaged ones at once.

    Args:
        count: how many images there are.
        visit: called with every position; raises DataError for a damaged image.
        what: which images, for the error.

    Raises:
        DataError: naming the first damaged files and their number.
    """

    def stretch(start: int) -> list[str]:
        complaints = []
        for index in range(start, min(start + 64, count)):
            try:
                visit(index)
            except DataError as error:
                complaints.append(str(error))
        return complaints

    # Threads hide the latency of disks; a stretch of 64 keeps their own cost out of sight.
    with ThreadPoolExecutor(max_workers=8) as pool:
        complaints = [text for found in pool.map(stretch, range(0, count, 64)) for text in found]
    if complaints:
        more = f"\n… and {len(complaints) - 5} more" if len(complaints) > 5 else ""
        raise DataError(
            f"{len(complaints)} of {count} {f'{what} ' if what else ''}images are damaged:\n"
            + "\n".join(complaints[:5])
            + more
        )
