"""Bicubic scaling as products is PyTorch's, and makes exported tables of positions exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from castling import export
from castling.export.bicubic import BicubicAsProducts, bicubic

# To or from one column PyTorch 2.15 repeats the first row.
SIZES = st.tuples(st.integers(1, 24), st.integers(2, 24))


@given(SIZES, SIZES)
def test_products_are_pytorchs_bicubic_scaling(old, new):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *old, dtype=torch.float64)
    expected = F.interpolate(x, new, mode="bicubic", antialias=True)
    torch.testing.assert_close(bicubic(x, new), expected, rtol=0, atol=1e-12)
    half = bicubic(x.half(), new)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "bicubic"},
        {"mode": "bilinear", "antialias": True},
        {"mode": "nearest"},
        {"mode": "bicubic", "antialias": True, "align_corners": True},
    ],
)
def test_other_scalings_stay_as_they_are(options):
    x = torch.randn(1, 2, 7, 5)
    expected = F.interpolate(x, (11, 4), **options)
    with BicubicAsProducts():
        assert torch.equal(F.interpolate(x, (11, 4), **options), expected)
        by_factor = F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True)
    assert torch.equal(by_factor, F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True))


class Positions(nn.Module):
    """A table of 8 × 8 positions, resized to the image as timm's ViTs do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(1, 3, 8, 8))

    def forward(self, x):
        return (x * F.interpolate(self.table, x.shape[2:], mode="bicubic", antialias=True)).mean(1)


@pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=pytest.mark.slow), ".xml"])
def test_positions_are_scaled_alike_in_files_of_any_size(suffix, tmp_path):
    """OpenVINO's own bicubic scaling is 3e-3 away, more than any tolerance."""
    report = export(Positions(), tmp_path / f"model{suffix}", (16, 16))
    assert report.dynamic == "all"
    assert len({each.shape[2:] for each in report.checks}) == 3
