from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data.pictures import picture

from castling.data import (
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    ClassificationTransformConfig,
    DataModule,
    SplitConfig,
    data_config_from_dict,
    open_source,
    source_from,
)

MakeFolder = Callable[..., Path]
OpenData = Callable[..., DataModule]


@pytest.fixture
def open_data() -> OpenData:
    """Open a source for classification; each option goes to the section that has it."""

    def build(source: object, *, seed: int = 0, **options: object) -> DataModule:
        values: dict = {"source": source_from(str(source) if isinstance(source, Path) else source)}
        for name, value in options.items():
            section = "loader"
            if name in SplitConfig.__dataclass_fields__:
                section = "split"
            elif name in ClassificationTransformConfig.__dataclass_fields__:
                section = "transform"
            values.setdefault(section, {})[name] = value
        config = data_config_from_dict(values)
        opened = open_source(config.source)
        return DataModule(
            opened,
            config,
            ClassificationTrainTransform(config.transform, opened.info),
            ClassificationEvalTransform(config.transform),
            seed=seed,
        )

    return build


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write `{split: {class: count}}`, or `{class: count}` for no splits, as PNG files."""

    def make(content: dict, name: str = "set", size: tuple[int, int] = (12, 10)) -> Path:
        root = tmp_path / name
        splits = content if isinstance(next(iter(content.values())), dict) else {"": content}
        offset = 0
        for split, classes in splits.items():
            for label, (folder, count) in enumerate(classes.items()):
                (root / split / folder).mkdir(parents=True)
                for index in range(count):
                    picture(label, offset + index, size).save(
                        root / split / folder / f"{index}.png"
                    )
            offset += 1000
        return root

    return make


@pytest.fixture
def zip_folder() -> Callable[..., Path]:
    """Pack a folder into a zip file, optionally below one top folder."""

    def pack(folder: Path, top: str = "") -> Path:
        target = folder.with_suffix(".zip")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, top + file.relative_to(folder).as_posix())
        return target

    return pack
