from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import ArgumentParser

from castling.data import AugmentConfig, DataConfig


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": -3}, "image_size"),
        ({"image_size": (32, 0)}, "image_size"),
        ({"image_size": (1, 2, 3)}, "image_size"),
        ({"image_size": 32.5}, "image_size"),
        ({"image_size": True}, "image_size"),
        ({"source": ""}, "source"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": -1}, "workers"),
        ({"subset": 0}, "subset"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "nothing to train"),
        ({"crop_fraction": 0.0}, "crop_fraction"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
        ({"verify": "maybe"}, "verify"),
        ({"interpolation": "cubic"}, "bicubic"),
    ],
)
def test_nonsense_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DataConfig(**options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"horizontal_flip": 1.5}, "horizontal_flip"),
        ({"scale": (0.5, 0.1)}, "scale"),
        ({"scale": (0.5, 1.1)}, "scale"),
        ({"mixup": -1.0}, "mixup"),
        ({"padding": -1}, "padding"),
        ({"multi_scale": (0,)}, "multi_scale"),
        ({"crop": "random"}, "crop"),
    ],
)
def test_nonsense_augmentation_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AugmentConfig(**options)


def test_multi_scale_needs_square_images() -> None:
    with pytest.raises(ValueError, match="square"):
        DataConfig(image_size=(32, 64), augment=AugmentConfig(multi_scale=(32, 64)))


def test_flags_reach_every_level() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(DataConfig, "data")
    flags = ["--data.image_size=[32,48]", "--data.augment.mixup=0.8"]
    parsed = parser.parse_args([*flags, "--data.augment.multi_scale=[]", "--data.subset=100"])
    config = parser.instantiate_classes(parsed).data
    assert config.image_size == (32, 48)
    assert config.augment == AugmentConfig(mixup=0.8)
    assert config.subset == 100
