from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from castling.cli.check_data import FORMATS
from castling.data import (
    ClassificationTransformConfig,
    DataConfig,
    DigitsConfig,
    FolderConfig,
    LoaderConfig,
    MixConfig,
    SplitConfig,
    TorchvisionConfig,
    TransformConfig,
    data_config_from_dict,
    data_config_to_dict,
    list_sources,
    open_source,
    source_from,
    source_problems,
    split_shorthand,
)
from castling.data.annotated import PathConfig


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (ClassificationTransformConfig, {"image_size": 0}, "image_size is 0; .*at least 1"),
        (ClassificationTransformConfig, {"image_size": -3}, "image_size"),
        (ClassificationTransformConfig, {"image_size": (32, 0)}, "image_size"),
        (ClassificationTransformConfig, {"image_size": (1, 2, 3)}, "image_size"),
        (ClassificationTransformConfig, {"image_size": 32.5}, "image_size"),
        (ClassificationTransformConfig, {"image_size": True}, "image_size"),
        (ClassificationTransformConfig, {"crop_fraction": 0.0}, "crop_fraction"),
        (ClassificationTransformConfig, {"crop_fraction": 1.1}, r"crop_fraction.*\(0, 1\]"),
        (ClassificationTransformConfig, {"std": (0.2, 0.0, 0.2)}, "std"),
        (ClassificationTransformConfig, {"interpolation": "cubic"}, "bicubic"),
        (ClassificationTransformConfig, {"horizontal_flip": 1.5}, "horizontal_flip"),
        (ClassificationTransformConfig, {"scale": (0.5, 0.1)}, "scale"),
        (ClassificationTransformConfig, {"scale": (0.5, 1.1)}, "scale"),
        (ClassificationTransformConfig, {"padding": -1}, "padding"),
        (ClassificationTransformConfig, {"multi_scale": (0,)}, "multi_scale"),
        (ClassificationTransformConfig, {"crop": "random"}, "crop"),
        (
            ClassificationTransformConfig,
            {"image_size": (32, 64), "multi_scale": (32, 64)},
            "square",
        ),
        (TransformConfig, {"image_size": -1}, "image_size"),
        (LoaderConfig, {"batch_size": 0}, "data.loader.batch_size is 0; it must be a whole number"),
        (LoaderConfig, {"batch_size": 1.5}, "batch_size"),
        (LoaderConfig, {"workers": -1}, "workers"),
        (LoaderConfig, {"verify": "maybe"}, "headers, full, none"),
        (SplitConfig, {"subset": 0}, "subset"),
        (SplitConfig, {"val_fraction": 1.0}, r"val_fraction is 1.0; .*\(0, 1\)"),
        (SplitConfig, {"val_fraction": float("nan")}, "val_fraction"),
        (SplitConfig, {"val_fraction": 0.5, "test_fraction": 0.5}, "nothing to train"),
        (MixConfig, {"mixup": -1.0}, "mixup"),
        (MixConfig, {"probability": 2.0}, "probability"),
        (FolderConfig, {"path": ""}, "path"),
        (FolderConfig, {"path": "c\udce9t"}, r"path c.xe9t is not UTF-8"),
        (SplitConfig, {"by": "name"}, "content, path, position"),
        (LoaderConfig, {"last_batch": "keep"}, "auto, drop, fill"),
    ],
)
def test_nonsense_is_refused_by_name(kind: type, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kind(**options)


def test_flags_reach_every_section() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(ClassificationTransformConfig, "transform")
    parser.add_class_arguments(SplitConfig, "split")
    flags = ["--transform.image_size=[32,48]", "--transform.color_jitter=0.8"]
    parsed = parser.parse_args([*flags, "--transform.multi_scale=[]", "--split.subset=100"])
    config = parser.instantiate_classes(parsed)
    assert config.transform.image_size == (32, 48)
    assert config.transform == ClassificationTransformConfig(image_size=(32, 48), color_jitter=0.8)
    assert config.split.subset == 100
    with pytest.raises(SystemExit):
        parser.parse_args(["--split.subset=0"])


def test_values_become_plain_numbers_and_tuples() -> None:
    config = LoaderConfig(batch_size=PositiveInt(3))
    assert type(config.batch_size) is int
    transform = ClassificationTransformConfig(scale=[1, 1], multi_scale=[8, 16])  # type: ignore[arg-type]
    assert (transform.scale, transform.multi_scale) == ((1.0, 1.0), (8, 16))


def test_a_section_comes_back_from_plain_values() -> None:
    config = DataConfig(
        source=TorchvisionConfig(dataset="CIFAR10", download=True),
        split=SplitConfig(val_fraction=0.1, seed=3),
        transform=ClassificationTransformConfig(image_size=(32, 48), mean=(0.1, 0.2, 0.3)),
        loader=LoaderConfig(workers=2),
    )
    values = yaml.safe_load(yaml.safe_dump(data_config_to_dict(config)))
    assert data_config_from_dict(values, ClassificationTransformConfig) == config
    assert data_config_from_dict({}) == DataConfig()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"sauce": "digits"}, "'sauce' in data; did you mean source"),
        ({"loader": {"batchsize": 3}}, "'batchsize' in data.loader; did you mean batch_size"),
        ({"loader": 3}, "data.loader is 3; it must be a mapping"),
        ({"transform": {"mixup": 1}}, "'mixup' in data.transform; known are image_size"),
        ({"source": {"name": "digit"}}, "'digit'.*did you mean digits"),
        ({"source": {"name": "folder", "pth": "x"}}, "'pth' in data.source; did you mean path"),
        ({"source": {"name": "folder"}}, "data.source lacks path"),
        ({"source": {"path": "x"}}, "mapping with name"),
        ({"source": ""}, "source is empty"),
        ({"loader": {"batch_size": 0}}, "batch_size is 0"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(values: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        data_config_from_dict(values)


def test_one_word_stands_for_a_source() -> None:
    assert split_shorthand("digits") == DigitsConfig()
    assert split_shorthand("torchvision:CIFAR10") == TorchvisionConfig(dataset="CIFAR10")
    assert split_shorthand("some/where.zip") == FolderConfig(path="some/where.zip")
    assert source_from({"name": "torchvision", "dataset": "MNIST", "root": "x"}) == (
        TorchvisionConfig(dataset="MNIST", root="x")
    )
    assert source_from(DigitsConfig()) == DigitsConfig()
    assert list_sources() == [
        "ade20k",
        "cityscapes",
        "coco",
        "digit_scenes",
        "digits",
        "folder",
        "masks",
        "panoptic",
        "torchvision",
        "unlabelled",
        "voc",
        "voc_masks",
        "yolo",
    ]


def test_problems_of_a_source_are_lines(tmp_path: Path) -> None:
    assert source_problems(DigitsConfig()) == []
    (line,) = source_problems(FolderConfig(path=str(tmp_path / "nowhere")))
    assert "no folder or zip file" in line
    (line,) = source_problems(FolderConfig(path=str(tmp_path)))
    assert "no images" in line
    assert open_source(DigitsConfig()).info.classes == list("0123456789")


def path_configs(base: type[PathConfig] = PathConfig) -> list[type[PathConfig]]:
    """All that can be opened by a path."""
    found = [each for child in base.__subclasses__() for each in (child, *path_configs(child))]
    return [each for each in found if each.name]


@pytest.mark.parametrize("config", path_configs(), ids=lambda config: config.name)
def test_every_source_of_a_path_refuses_one_that_no_recipe_can_hold(
    config: type[PathConfig],
) -> None:
    with pytest.raises(ValueError, match=r"data\.source\.path is ''; name a folder"):
        config(path="")
    with pytest.raises(ValueError, match="is not UTF-8, so no recipe can hold it"):
        config(path="photos\udcff")
    assert str(config(path="photos")) == "photos"


def test_all_formats_of_a_path_are_tested_so() -> None:
    assert {config.name for config in path_configs()} == set(FORMATS)
