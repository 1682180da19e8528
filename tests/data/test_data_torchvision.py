from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from castling.data import AugmentConfig, DataConfig, DataError, open_images


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


def test_a_set_by_name(tmp_path: Path) -> None:
    pixels = _write_mnist(tmp_path)
    augment = AugmentConfig(crop="none")
    config = DataConfig(
        source="torchvision:MNIST", root=str(tmp_path), image_size=28, augment=augment
    )
    data = open_images(config)
    assert (len(data.train), len(data.test)) == (60, 20)
    assert data.val is data.test
    assert len(data.classes) == 10
    image, label = data.train[13]  # a figure: never mirrored
    assert label == 3
    restored = image * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)
    assert np.array_equal((restored[0] * 255).round().byte().numpy(), pixels[13])
    with pytest.raises(DataError, match="mirror"):
        open_images(
            DataConfig(
                source="torchvision:MNIST",
                root=str(tmp_path),
                augment=AugmentConfig(horizontal_flip=0.5),
            )
        )


def test_a_missing_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"CIFAR10.*set download to true"):
        open_images(DataConfig(source="torchvision:CIFAR10", root=str(tmp_path)))


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"did you mean CIFAR10"):
        open_images(DataConfig(source="torchvision:cifar-10"))
