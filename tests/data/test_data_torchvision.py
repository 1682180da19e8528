from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from castling.data import BatchKey, DataError, DataModule, TorchvisionConfig, open_source

Open = Callable[..., DataModule]


def _write_mnist(root: Path) -> np.ndarray:
    """A tiny set in MNIST's own file format."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 28, 28)).astype(np.uint8)
    for split, count in (("train", 60), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        shape = np.array([count, 28, 28], dtype=">i4").tobytes()
        header = bytes([0, 0, 8, 3]) + shape
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + pixels[:count].tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + shape[:4] + labels.tobytes()
        )
    return pixels


def test_a_set_by_name(tmp_path: Path, open_data: Open) -> None:
    pixels = _write_mnist(tmp_path)
    source = TorchvisionConfig(dataset="MNIST", root=str(tmp_path))
    data = open_data(source, image_size=28, crop="none")
    assert data.sizes == {"train": 60, "val": 20}
    assert not data.has_test
    assert data.dataset("val") is data.dataset("test")
    assert len(data.classes) == 10
    train = data.dataset("train", training=True)
    batch = train[BatchKey((13, 14))]  # figures: never mirrored
    assert batch.targets["label"].tolist() == [3, 4]
    assert np.array_equal(batch.images[0, 0].numpy(), pixels[13])
    assert batch.names[0] == "torchvision:MNIST train image 13"
    with pytest.raises(DataError, match="mirror"):
        open_data(source, horizontal_flip=0.5)


def test_a_missing_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"CIFAR10.*set download to true"):
        open_source(TorchvisionConfig(dataset="CIFAR10", root=str(tmp_path)))


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"did you mean CIFAR10"):
        open_source(TorchvisionConfig(dataset="cifar-10"))
