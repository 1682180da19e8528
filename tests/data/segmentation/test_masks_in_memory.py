"""Masks count where it is decided whether the images of a split fit into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from castling.data import DataConfig, DataModule, open_source
from castling.data.config import LoaderConfig
from castling.data.sources import MasksConfig
from castling.data.transforms.padded import PaddedEvalTransform
from castling.data.transforms.segmentation import SegmentationTransformConfig

SIDE, IMAGES = 500, 4  # a megabyte of images and masks: 3 + 1 bytes a pixel


@pytest.mark.parametrize("resize", ["none", "stretch"])
@pytest.mark.parametrize(("megabytes", "kept"), [(3, False), (4, True)])
def test_masks_count(resize: str, megabytes: int, kept: bool, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        for split in ("train", "val"):
            (tmp_path / folder / split).mkdir(parents=True)
    grey = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 3
    for index in range(IMAGES):
        where = tmp_path / "images" / "train" / f"{index}.png"
        Image.fromarray(np.stack([grey * 80 + index] * 3, -1)).save(where)
        Image.fromarray(grey).save(tmp_path / "masks" / "train" / f"{index}.png")
    small = Image.new("RGB", (8, 8))
    small.save(tmp_path / "images" / "val" / "v.png")
    small.convert("L").save(tmp_path / "masks" / "val" / "v.png")
    source = MasksConfig(path=str(tmp_path))
    options = SegmentationTransformConfig(image_size=SIDE, resize=resize)
    config = DataConfig(
        source=source,
        transform=options,
        loader=LoaderConfig(cache="auto", cache_limit_megabytes=megabytes),
    )
    transform = PaddedEvalTransform(options)
    data = DataModule(open_source(source), config, transform, transform, seed=0)
    assert data.dataset("train").remember is kept
