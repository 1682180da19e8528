"""Names, numbers and colours of classes from every kind of file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from castling.data import DataError, MasksConfig, check_source, open_source
from castling.data.files import open_store
from castling.data.segmentation.class_files import find_class_file, read_class_file
from castling.data.segmentation.naming import Numbering, from_file

Make = Callable[..., Path]
NAMES = ["sky", "traffic light", "lane 2"]
RGB = [(0, 0, 255), (128, 64, 0), (9, 9, 9)]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.json", '["sky", "traffic light", "lane 2"]'),
        ("classes.json", '{"0": "sky", "1": "traffic light", "2": "lane 2"}'),
        ("classes.json", '{"traffic light": 1, "sky": 0, "lane 2": 2, "void": 255}'),
        ("classes.json", '{"classes": [{"name": "sky"}, {"name": "traffic light"}, "lane 2"]}'),
        ("classes.txt", "sky\ntraffic light\n\nlane 2\n"),
        ("labels.txt", "0 sky\n1: traffic light\n2, lane 2\n"),
        ("classes.txt", "# numbers\n2 lane 2\n0 sky\n1 traffic light\n255 unlabelled"),
        ("_classes.csv", "Pixel Value, Class\n0, sky\n1, traffic light\n2, lane 2\n"),
    ],
)
def test_names_and_numbers(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    store = open_store(tmp_path)
    assert find_class_file(store.listing().files) == file
    names, encoding, _ = from_file(read_class_file(store, file), Numbering())
    assert names == NAMES
    assert {v: encoding.values[v] for v in range(3)} == {0: 0, 1: 1, 2: 2}
    assert not encoding.colours
    names, encoding, _ = from_file(read_class_file(store, file), Numbering((7,), True))
    assert {v: encoding.values[v] for v in (0, 1, 2, 3, 7)} == {0: 255, 1: 0, 2: 1, 3: 2, 7: 255}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("class_dict.csv", "name,r,g,b\nsky,0,0,255\ntraffic light,128,64,0\nlane 2,9,9,9\n"),
        (
            "class_dict.csv",
            "\ufeffname, r, g, b\r\nsky, 0,0,255\r\ntraffic light,128,64,0\r\nlane 2,9,9,9",
        ),
        ("classes.csv", "id,name,r,g,b\n0,sky,0,0,255\n1,traffic light,128,64,0\n2,lane 2,9,9,9\n"),
        ("labelmap.txt", "# x\nsky:0,0,255::\ntraffic light:128,64,0::\nlane 2:9,9,9:a,b:c"),
        ("label_colors.txt", "0 0 255\tsky\n128 64 0\ttraffic light\n9 9 9\tlane 2"),
        ("classes.txt", "sky 0 0 255\ntraffic light 128 64 0\nlane 2 9 9 9"),
        ("classes.json", '{"sky": [0,0,255], "traffic light": [128,64,0], "lane 2": [9,9,9]}'),
    ],
)
def test_colours(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    names, encoding, _ = from_file(read_class_file(open_store(tmp_path), file), Numbering())
    assert names == NAMES
    assert encoding.colour_table(3) == tuple(RGB)
    assert [encoding.values[number] for number in range(3)] == [0, 1, 2]


def test_numbers_with_gaps_and_names_of_no_class(tmp_path: Path) -> None:
    text = '{"ignore_index": [254], "classes": [{"id": 40, "name": "b"}, {"id": 3, "name": "a"}, '
    (tmp_path / "classes.json").write_text(text + '{"id": 0, "name": "Void"}]}')
    found = read_class_file(open_store(tmp_path), "classes.json")
    names, encoding, left_out = from_file(found, Numbering())
    assert (names, left_out) == (["a", "b"], ["Void"])
    assert dict(encoding.values) == {254: 255, 0: 255, 3: 0, 40: 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "names no classes"),
        ('["a", "a"]', "has the name a twice"),
        ('[{"name": "a", "id": 1}, {"name": "b", "id": 1}]', "has the number 1 twice"),
        ('[{"name": "a", "id": 1}, "b"]', "numbers to some classes only"),
        ('[{"name": "a", "color": [1, 2, 300]}]', "is no colour"),
        ('[{"name": "a", "id": -1}]', "is no number of a class"),
        ('{"a": [1]}', "is no colour"),
        ("7", "neither a list nor an object"),
        ("{", "cannot be read as names of classes"),
        ('[{"id": 1}]', "cannot be read as names"),
        ('["a\\u0007"]', "whose name is"),
    ],
)
def test_files_that_name_nothing(masked: Make, text: str, message: str) -> None:
    root = masked(named=False)
    (root / "classes.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_source(MasksConfig(path=str(root)))
    (problem,) = check_source(MasksConfig(path=str(root))).problems
    assert problem.kind == "source that cannot be opened"


def test_too_many_classes_and_double_names(masked: Make) -> None:
    root = masked(named=False)
    with pytest.raises(ValueError, match="256 classes; labels are bytes"):
        MasksConfig(path=str(root), classes=tuple(map(str, range(256))))
    with pytest.raises(ValueError, match="names a twice"):
        MasksConfig(path=str(root), classes=("a", "a"))
    (root / "classes.txt").write_text("\n".join(map("c{}".format, range(300))))
    with pytest.raises(ValueError, match="300 classes"):
        open_source(MasksConfig(path=str(root)))
