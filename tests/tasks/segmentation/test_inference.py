"""Windows, changed copies and original sizes, against loops over pixels."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tasks.segmentation.cells import STRIDE, Cells
from torch.nn import functional as F

from castling.tasks.segmentation import original
from castling.tasks.segmentation.inference import Windows, augmented, slide, window_starts
from castling.tasks.segmentation.original import original_labels


def scores_of(model, images):
    with torch.no_grad():
        return model.scores(model(images))


def images_of(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def bilinear(scores, y, x):
    """Scores (K, h, w) at a place in cells, whose centres are at .5."""
    rows, columns = scores.shape[1:]
    y, x = min(max(y - 0.5, 0), rows - 1), min(max(x - 0.5, 0), columns - 1)
    top, left = min(int(y), rows - 1), min(int(x), columns - 1)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    a, b = y - top, x - left
    above = (1 - b) * scores[:, top, left] + b * scores[:, top, right]
    below = (1 - b) * scores[:, bottom, left] + b * scores[:, bottom, right]
    return (1 - a) * above + a * below


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)),
    st.sampled_from([1, 60, 1 << 24]),
)
def test_original_sizes_against_a_loop(cells, size, shown, at_once):
    frame = (4 * cells[0], 4 * cells[1])
    valid = tuple(max(1, int(side * share)) for side, share in zip(frame, shown, strict=True))
    scores = images_of(4, *cells)
    kept, original._AT_ONCE = original._AT_ONCE, at_once
    try:
        found = original_labels(scores, frame, valid, size)
    finally:
        original._AT_ONCE = kept
    assert found.shape == size
    assert found.dtype == torch.uint8
    exact = scores.double().numpy()
    for i in range(size[0]):
        for j in range(size[1]):
            y = (i + 0.5) * valid[0] / size[0] * cells[0] / frame[0]
            x = (j + 0.5) * valid[1] / size[1] * cells[1] / frame[1]
            values = bilinear(exact, y, x)
            order = np.sort(values)
            if order[-1] - order[-2] > 1e-4:
                assert found[i, j] == values.argmax()


def test_original_sizes_as_pytorch_resizes():
    scores = images_of(7, 16, 24)
    expected = F.interpolate(scores[None], (101, 77), mode="bilinear")[0].argmax(0)
    found = original_labels(scores, (64, 96), (64, 96), (101, 77))
    assert (found == expected).float().mean() > 0.999


@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 100))
def test_windows_cover_a_side_and_end_with_it(side, window, stride):
    stride = min(stride, window)
    starts = window_starts(side, window, stride)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    if side <= window:
        assert starts == [0]
        return
    assert starts[-1] + window == side
    assert all(after - before <= stride for before, after in itertools.pairwise(starts))


def naive_windows(model, images, size, stride):
    """Sums of scores at their own resolution over their number, one window at a time."""
    height, width = images.shape[-2:]
    total = np.zeros((len(images), model.num_classes, height // STRIDE, width // STRIDE))
    count = np.zeros((height // STRIDE, width // STRIDE))
    tops = list(range(0, max(1, height - size[0]), stride[0]))
    lefts = list(range(0, max(1, width - size[1]), stride[1]))
    for top in {*tops, max(0, height - size[0])}:
        for left in {*lefts, max(0, width - size[1])}:
            part = images[:, :, top : top + size[0], left : left + size[1]]
            own = scores_of(model, part).numpy()
            for y in range(own.shape[2]):
                for x in range(own.shape[3]):
                    total[:, :, top // STRIDE + y, left // STRIDE + x] += own[:, :, y, x]
                    count[top // STRIDE + y, left // STRIDE + x] += 1
    return total / count


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        ((2, 3, 40, 56), (16, 24), (8, 16)),
        ((1, 3, 32, 72), (32, 32), None),
        ((1, 3, 44, 24), (20, 20), (20, 20)),
        ((1, 3, 16, 80), (64, 32), (12, 12)),
    ],
)
def test_windows_against_a_loop(shape, size, stride):
    model, images = Cells(), images_of(*shape)
    windows = Windows.rounded(size, stride, STRIDE)
    expected = naive_windows(model, images, windows.size, windows.stride)
    found = slide(partial(scores_of, model), images, windows)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert not np.allclose(found.numpy(), scores_of(model, images).numpy(), atol=1e-3)


@pytest.mark.parametrize("size", [(64, 64), (40, 56), (4000, 40)])
def test_a_window_that_holds_the_image_is_the_whole_image(size):
    model, images = Cells(), images_of(2, 3, 40, 40)
    found = slide(partial(scores_of, model), images, Windows.rounded(size, None, STRIDE))
    assert torch.equal(found, scores_of(model, images))


def test_sizes_of_windows_are_rounded_to_the_multiple():
    assert Windows.rounded((100, 120), None, 32)[:2] == ((128, 128), (64, 64))
    assert Windows.rounded((100, 120), (70, 20), 32)[:2] == ((128, 128), (64, 32))
    assert Windows.exactly((48, 64), None, 32)[:3] == ((48, 64), (32, 32), 16)


def test_scores_without_whole_cells_are_put_together_pixel_by_pixel():
    def uneven(images):  # 3 cells for 8 pixels
        return F.adaptive_avg_pool2d(images, tuple(3 * side // 8 for side in images.shape[-2:]))

    images = images_of(1, 3, 24, 16)
    found = slide(uneven, images, Windows((16, 16), (8, 8), 8))
    top, bottom = (
        F.interpolate(uneven(images[:, :, start : start + 16]), (16, 16), mode="bilinear")
        for start in (0, 8)
    )
    assert found.shape == (1, 3, 24, 16)
    torch.testing.assert_close(found[:, :, :8], top[:, :, :8])
    torch.testing.assert_close(found[:, :, 8:16], (top[:, :, 8:] + bottom[:, :, :8]) / 2)
    torch.testing.assert_close(found[:, :, 16:], bottom[:, :, 8:])


def test_files_of_a_fixed_size_see_that_size_alone():
    model, images = Cells(), images_of(1, 3, 20, 56)
    grey = torch.full((3, 1, 1), 0.5)
    windows = Windows.exactly((32, 24), None, STRIDE)
    found = slide(partial(scores_of, model), images, windows, grey)
    assert set(model.calls) == {(1, 3, 32, 24)}
    padded = torch.full((1, 3, 32, 56), 0.5)
    padded[:, :, :20] = images
    expected = naive_windows(model, padded, (32, 24), windows.stride)[:, :, :5]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.75)])
def test_copies_against_a_loop(scales, flip):
    model, images = Cells(), images_of(2, 3, 48, 64)
    found = augmented(
        partial(scores_of, model), model.probabilities, images, scales, flip, multiple=8
    )
    finest = tuple(round(side * max(scales) / 8) * 8 // STRIDE for side in (48, 64))
    total, count = np.zeros((2, 3, *finest)), 0
    for scale in scales:
        size = [round(side * scale / 8) * 8 for side in (48, 64)]
        scaled = F.interpolate(images, size, mode="bilinear", antialias=True)
        for mirrored in [False, True][: 1 + flip]:
            scores = scores_of(model, scaled.flip(3) if mirrored else scaled)
            scores = scores.flip(3) if mirrored else scores
            scores = F.interpolate(scores, finest, mode="bilinear").numpy()
            exponents = np.exp(scores - scores.max(1, keepdims=True))
            total += exponents / exponents.sum(1, keepdims=True)
            count += 1
    np.testing.assert_allclose(found.numpy(), total / count, atol=1e-5)
    np.testing.assert_allclose(found.sum(1).numpy(), 1, atol=1e-5)
    assert all(side % 8 == 0 for shape in model.calls for side in shape[2:])


def test_a_tiny_scale_leaves_one_multiple():
    model = Cells()
    augmented(
        partial(scores_of, model), model.probabilities, images_of(1, 3, 8, 8), (0.1,), False, 8
    )
    assert model.calls == [(1, 3, 8, 8)]
    assert math.isclose(model.multiple, STRIDE)
