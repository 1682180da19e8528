"""Images without labels, and options of sources as the command line gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.data.segmentation.made import noise, pack

from castling.data import (
    DataConfig,
    DataError,
    DataModule,
    FileSource,
    MasksConfig,
    UnlabelledConfig,
    check_source,
    open_source,
    source_from,
    stack_samples,
)
from castling.data.transforms.classification import (
    ClassificationEvalTransform,
    ClassificationTransformConfig,
)
from castling.train.recipe_parser import recipe_parser

Make = Callable[..., Path]


def test_images_at_any_depth(tmp_path: Path) -> None:
    files = ["a.png", "deep/er/b.jpg", "train/c.png", "val/d/e.png", "Test/f.png", "notes.txt"]
    for number, file in enumerate(files):
        noise(tmp_path / "set" / file.replace(".txt", ".png"), number, (6 + number, 9))
    (tmp_path / "set" / "notes.png").rename(tmp_path / "set" / "notes.txt")
    for path, top in ((tmp_path / "set", ""), (pack(tmp_path / "set"), "top/")):
        config = UnlabelledConfig(path=str(path))
        assert source_from({"name": "unlabelled", "path": str(path)}) == config
        source = open_source(config)
        assert isinstance(source, FileSource)
        assert source.info.splits == {"train": 3, "val": 1, "test": 1}
        assert (source.info.kind, source.info.classes) == ("unlabelled", [])
        paths = [source.path("train", index) for index in range(3)]
        assert paths == [top + file for file in ("a.png", "deep/er/b.jpg", "train/c.png")]
        sample = source.sample("train", 2)
        assert sample.target == {}
        assert source.size("train", 2) == sample.original_size == (9, 8)
        with Image.open(tmp_path / "set" / "train" / "c.png") as shown:
            expected = list(shown.getdata())
        assert [tuple(p) for row in sample.image.permute(1, 2, 0).tolist() for p in row] == expected
        assert stack_samples([sample, source.sample("val", 0)], multiple=32).targets == {}
        assert check_source(config).problems == ()
    (tmp_path / "set" / "a.png").write_bytes(b"")
    (problem,) = check_source(UnlabelledConfig(path=str(tmp_path / "set"))).problems
    assert problem.kind == "image that cannot be read"


def test_they_are_held_out_by_their_content(tmp_path: Path) -> None:
    for number in range(30):
        noise(tmp_path / "set" / f"{number}.png", number)
    config = UnlabelledConfig(path=str(tmp_path / "set"))
    transform = ClassificationEvalTransform(ClassificationTransformConfig())
    data = DataModule(open_source(config), DataConfig(source=config), transform, transform)
    record = data.record()
    assert sum(data.sizes.values()) == 30
    assert all(image.key and image.label == -1 for image in record.images["train"])
    noise(tmp_path / "set" / "0new.png", 99)
    again = DataModule(
        open_source(config), DataConfig(source=config), transform, transform, record=record
    )
    assert again.changes.added == ["0new.png"]
    assert again.record().images == record.images


def test_masks_are_no_images_to_train_on(masked: Make, tmp_path: Path) -> None:
    source = open_source(UnlabelledConfig(path=str(masked())))
    assert source.info.splits == {"train": 3, "val": 2}
    assert source.info.notes == ("left out 5 masks",)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images to train on"):
        open_source(UnlabelledConfig(path=str(tmp_path / "empty")))


def test_options_of_masks_on_the_command_line() -> None:
    """Tables, lists and switches are given as YAML."""
    parser = recipe_parser(source="masks")

    def parsed(flags: dict[str, str]) -> MasksConfig:
        arguments = [f"--data.source.{name}={value}" for name, value in flags.items()]
        return parser.instantiate_classes(parser.parse_args(arguments)).data.source

    flags = {"path": "here", "classes": "[sky, road]", "ignore": "[7, 8]"}
    flags |= {"reduce_zero_label": "true", "images": "photos/{split}", "masks": "painted/{split}"}
    assert parsed(flags) == MasksConfig(
        path="here",
        classes=("sky", "road"),
        ignore=(7, 8),
        reduce_zero_label=True,
        images="photos/{split}",
        masks="painted/{split}",
    )
    table = '{"0,0,255": sky, "128,64,128": road}'
    assert parsed({"path": "here", "colours": table}) == MasksConfig(
        path="here", colours={"0,0,255": "sky", "128,64,128": "road"}
    )
