"""Whatever lies in a folder: a report comes back, and what is left can be trained on."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from tests.data.segmentation.made import SIZE, labels

from castling.data import DataError, MasksConfig, SourceConfig, check_source, open_source
from castling.data.faults import Faults
from castling.data.segmentation.class_files import CLASS_FILES
from castling.data.segmentation.counts import pixel_counts
from castling.data.segmentation.pairs import find_places, match_pairs
from castling.data.segmentation.raw_mask import code_counts

Make = Callable[..., Path]
FAST = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "I", "F", "CMYK", "I;16", "YCbCr"]


def check_what_is_left(config: SourceConfig) -> None:
    """A report comes back; without errors every mask is sound and of its image's size."""
    report = check_source(config)
    assert str(report)
    json.dumps(report.to_dict())
    if report.errors:
        return
    source = open_source(config)
    classes = len(source.info.classes)
    assert 0 < classes <= 255
    assert len(source.info.colours) in (0, classes)
    for split, count in source.info.splits.items():
        total = np.zeros(256, dtype=np.int64)
        for index in range(count):
            sample = source.sample(split, index)
            mask = sample.target["mask"].numpy()
            assert mask.shape == sample.image.shape[1:] == source.size(split, index)
            assert ((mask < classes) | (mask == 255)).all()
            total += np.bincount(mask.flatten(), minlength=256)
        assert pixel_counts(source, split).tolist() == total[:classes].tolist()


@st.composite
def mask_files(draw: st.DrawFn) -> bytes:
    """Any bytes, or an image of any mode, perhaps cut off."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    size = draw(st.sampled_from([SIZE, SIZE, SIZE[::-1], (1, 1)]))
    shape = (size[1], size[0], 3)
    pixels = draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 4), fill=st.just(1)))
    mode = draw(st.sampled_from(MODES))
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16)) if mode == "I;16" else image
    stream = io.BytesIO()
    ending = "PNG" if mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16") else "TIFF"
    image.convert(mode).save(stream, ending) if mode != "I;16" else image.save(stream, ending)
    found = stream.getvalue()
    return found[: draw(st.integers(0, len(found)))] if draw(st.integers(0, 5)) == 0 else found


@given(content=mask_files(), named=st.booleans(), colours=st.booleans(), reduce=st.booleans())
@FAST
def test_masks(masked: Make, content: bytes, named: bool, colours: bool, reduce: bool) -> None:
    root = masked(counts=(2, 1))
    (root / "masks" / "train" / "train1.png").write_bytes(content)
    check_what_is_left(
        MasksConfig(
            path=str(root),
            classes=("a", "b", "c") if named and not colours else (),
            colours={"0,0,0": "a", "1,1,1": "b", "2,2,2": "c"} if colours else {},
            reduce_zero_label=reduce and not colours,
        )
    )


@given(
    name=st.sampled_from(CLASS_FILES),
    content=st.one_of(
        st.binary(max_size=40),
        st.text(max_size=40).map(str.encode),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(["name", "id", "color", "classes", "ignore_index", "3", "x"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
@example(name="classes.json", content=b'{"classes": {"name": null}}')
@example(name="classes.json", content=b"[" * 5000)
@example(name="class_dict.csv", content=b'"a')
@example(name="class_dict.csv", content=b"\r\x00")
@example(name="class_dict.csv", content=b"a" * 200_000)
@FAST
def test_class_files(masked: Make, name: str, content: bytes) -> None:
    root = masked(counts=(2, 1), named=False)
    for file in root.glob("*.*"):
        file.unlink()
    (root / name).write_bytes(content)
    check_what_is_left(MasksConfig(path=str(root)))


WORDS = st.sampled_from(
    ["images", "masks", "train", "val", "a", "train_labels", "gt", "test2017", "IMG", "label"]
)
STEMS = st.sampled_from(["1", "1_mask", "2", "2_L", "1_gtFine_labelIds", "1_leftImg8bit", "_mask"])
FILES = st.lists(
    st.builds(
        lambda folders, stem, ending: "/".join([*folders, f"{stem}.{ending}"]),
        st.lists(WORDS, max_size=3),
        STEMS,
        st.sampled_from(["png", "jpg", "txt"]),
    ),
    max_size=12,
    unique=True,
)


@given(files=FILES)
@settings(max_examples=150, deadline=None)
def test_every_image_and_mask_has_one_place(files: list[str]) -> None:
    """A mask is used once at most, an image never as its own mask, and nothing gets lost."""
    images, masks = find_places(sorted(files))
    faults = Faults()
    pairs, notes = match_pairs(images, masks, faults)
    used = [file for each in pairs.values() for file in (*each.images, *each.masks)]
    assert len(used) == len({*used})
    paired = sum(map(len, pairs.values()))
    counted = faults.counts
    unused = sum(int(note.split()[1]) for note in notes)
    images_left = counted.get("no_mask", 0) + counted.get("double_image", 0) + unused
    assert paired <= len(images) <= paired + images_left
    masks_left = counted.get("no_image", 0) + counted.get("second_mask", 0)
    assert paired <= len(masks)
    assert len(masks) <= paired + masks_left + counted.get("double_image", 0)


@given(
    codes=st.one_of(
        arrays.arrays(np.uint8, (5, 7)),
        arrays.arrays(np.int32, (5, 7), elements=st.integers(-3, 3)),
        arrays.arrays(np.int32, st.tuples(st.integers(1, 4), st.integers(1, 4))),
    )
)
@FAST
def test_counts_are_those_of_numpy(codes: np.ndarray) -> None:
    values, counts = np.unique(codes, return_counts=True)
    found, numbers = code_counts(codes)
    assert (found.tolist(), numbers.tolist()) == (values.tolist(), counts.tolist())


@given(place=st.integers(0, 400), byte=st.integers(0, 255))
@FAST
def test_a_damaged_byte(masked: Make, place: int, byte: int) -> None:
    root = masked(counts=(2, 1))
    file = root / "masks" / "train" / "train1.png"
    content = bytearray(file.read_bytes())
    content[place % len(content)] = byte
    file.write_bytes(content)
    report = check_source(MasksConfig(path=str(root)))
    try:
        found = open_source(MasksConfig(path=str(root))).sample("train", 1)
    except DataError:
        assert report.errors
        return
    if not report.errors:
        assert found.target["mask"].shape == labels(1).shape
    shutil.rmtree(root)
