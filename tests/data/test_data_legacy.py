from __future__ import annotations

import pytest

from castling.data import (
    ClassificationTransformConfig,
    DataConfig,
    FolderConfig,
    LoaderConfig,
    SplitConfig,
    TorchvisionConfig,
    data_config_from_dict,
    upgrade_data,
)


def test_every_old_option_finds_its_new_place() -> None:
    old = {
        "source": "torchvision:CIFAR10",
        "root": "sets",
        "download": True,
        "image_size": [32, 48],
        "batch_size": 16,
        "eval_batch_size": 8,
        "workers": 2,
        "subset": 100,
        "val_subset": 50,
        "val_fraction": 0.2,
        "test_fraction": 0.1,
        "split_seed": 4,
        "seed": 0,
        "interpolation": "bilinear",
        "crop_fraction": 0.9,
        "eval_crop": "center",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "verify": "full",
        "cache": "none",
        "cache_limit_megabytes": 7,
        "augment": {
            "crop": "pad",
            "padding": 3,
            "scale": [0.5, 1.0],
            "ratio": [0.9, 1.1],
            "horizontal_flip": 0.25,
            "auto_augment": "original",
            "color_jitter": 0.3,
            "erase_probability": 0.2,
            "erase_mode": "rand",
            "mixup": 0.8,
            "cutmix": 1.0,
            "mix_probability": 0.9,
            "switch_probability": 0.4,
            "multi_scale": [],
        },
    }
    data, mixing = upgrade_data(old)
    assert data_config_from_dict(data) == DataConfig(
        source=TorchvisionConfig(dataset="CIFAR10", root="sets", download=True),
        split=SplitConfig(val_fraction=0.2, test_fraction=0.1, seed=4, subset=100, val_subset=50),
        transform=ClassificationTransformConfig(
            image_size=(32, 48),
            mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6),
            interpolation="bilinear",
            crop_fraction=0.9,
            eval_crop="center",
            crop="pad",
            padding=3,
            scale=(0.5, 1.0),
            ratio=(0.9, 1.1),
            horizontal_flip=0.25,
            auto_augment="original",
            color_jitter=0.3,
        ),
        loader=LoaderConfig(
            batch_size=16,
            eval_batch_size=8,
            workers=2,
            verify="full",
            cache="none",
            cache_limit_megabytes=7,
        ),
    )
    assert mixing == {
        "mixup": 0.8,
        "cutmix": 1.0,
        "probability": 0.9,
        "switch_probability": 0.4,
        "erase_probability": 0.2,
        "erase_mode": "rand",
    }


def test_what_was_left_out_stays_out() -> None:
    assert upgrade_data({"image_size": 16}) == ({"transform": {"image_size": 16}}, {})
    data, mixing = upgrade_data({"source": "x.zip", "root": "data", "augment": {"mixup": 0.2}})
    assert data == {"source": {"name": "folder", "path": "x.zip"}}
    assert data_config_from_dict(data).source == FolderConfig(path="x.zip")
    assert mixing == {"mixup": 0.2}


def test_a_new_section_is_left_alone() -> None:
    section = {"source": {"name": "digits"}, "loader": {"batch_size": 4}}
    assert upgrade_data(section) == (section, {})


@pytest.mark.parametrize("values", [{"batchsize": 3}, {"augment": {"mixap": 1}}])
def test_unknown_old_options_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match=r"did you mean (batch_size|mixup)"):
        upgrade_data(values)
