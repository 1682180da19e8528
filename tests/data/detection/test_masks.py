"""Packed masks against pycocotools and against pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference

from castling.data.detection.masks import (
    counts_to_rle,
    decode_masks,
    encode_masks,
    mask_areas,
    mask_boxes,
    pack_masks,
    polygons_to_rle,
    unpack_rles,
)

sizes = st.tuples(st.integers(1, 23), st.integers(1, 17))


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    height, width = draw(sizes)
    count, seed = draw(st.integers(0, 5)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, height, width, generator=generator) < 0.4).to(torch.uint8)


@given(masks())
@settings(deadline=None, max_examples=60)
def test_packing_loses_nothing(pixels: torch.Tensor) -> None:
    rles = encode_masks(pixels)
    packed = pack_masks(rles, (pixels.shape[1], pixels.shape[2]))
    assert packed.dtype == torch.uint8
    assert packed.dim() == 1
    assert torch.equal(decode_masks(packed), pixels)
    assert unpack_rles(packed) == rles
    assert decode_masks(packed).is_contiguous()
    assert mask_areas(rles).tolist() == pixels.sum((1, 2)).tolist()
    for rle, mask in zip(rles, pixels.numpy(), strict=True):
        theirs = reference.encode(np.asfortranarray(mask))
        assert theirs["counts"] == rle["counts"]
        assert np.array_equal(reference.decode(rle), mask)


def test_chosen_rows_are_decoded_alone() -> None:
    pixels = torch.eye(4, dtype=torch.uint8)[:, None].repeat(1, 3, 1)
    packed = pack_masks(encode_masks(pixels))
    assert torch.equal(decode_masks(packed, [2, 0]), pixels[[2, 0]])
    assert torch.equal(decode_masks(packed, torch.tensor([3])), pixels[3:])
    assert decode_masks(packed, []).shape == (0, 3, 4)


def test_many_objects_in_a_large_image_stay_small() -> None:
    rle = polygons_to_rle([[10, 10, 9000, 10, 9000, 9000, 10, 9000]], (10_000, 10_000))
    packed = pack_masks([rle] * 300)
    assert packed.numel() < 20e6  # decoded: 30 GB
    assert decode_masks(packed, [5]).sum() == mask_areas([rle])[0]


@given(sizes, st.lists(st.floats(-5, 30), min_size=6, max_size=12).filter(lambda v: not len(v) % 2))
@settings(deadline=None, max_examples=60)
def test_polygons_are_those_of_pycocotools(size: tuple[int, int], polygon: list[float]) -> None:
    ours = polygons_to_rle([polygon, [1, 1, 5, 1, 5, 5]], size)
    theirs = reference.merge(reference.frPyObjects([polygon, [1, 1, 5, 1, 5, 5]], *size))
    assert ours["counts"] == theirs["counts"]
    assert mask_areas([ours])[0] == reference.area(theirs)
    x, y, width, height = reference.toBbox(theirs)
    assert mask_boxes([ours])[0].tolist() == [x, y, x + width, y + height]


def test_plain_counts_are_those_of_pycocotools() -> None:
    theirs = reference.frPyObjects({"size": [4, 5], "counts": [3, 6, 11]}, 4, 5)
    ours = counts_to_rle([3, 6, 11], (4, 5))
    assert ours["counts"] == theirs["counts"]
    assert unpack_rles(pack_masks([{"size": [4, 5], "counts": theirs["counts"].decode()}])) == [
        {"size": [4, 5], "counts": theirs["counts"]}
    ]


def test_sizes_must_agree() -> None:
    one = encode_masks(torch.ones(1, 3, 4))
    with pytest.raises(ValueError, match=r"a mask is of size \(3, 4\), its image of \(4, 3\)"):
        pack_masks(one, (4, 3))
    with pytest.raises(ValueError, match="needs the size of the image"):
        pack_masks([])
    assert unpack_rles(pack_masks([], (4, 3))) == []
    assert decode_masks(pack_masks([], (4, 3))).shape == (0, 4, 3)
