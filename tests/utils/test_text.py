"""Nearest names, for error messages."""

import pytest

from castling.utils.text import did_you_mean, nearest

KNOWN = ["relu_linear", "elu", "linear_angular", "quadratic_angular", "Softmax", "deit_tiny_16_224"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("sofmax", ["Softmax"]),
        ("relu", ["relu_linear", "elu"]),
        ("angular", ["linear_angular", "quadratic_angular"]),
        ("liner_angular", ["linear_angular", "quadratic_angular"]),
        ("deit_tiny", ["deit_tiny_16_224"]),
        ("xyz", []),
        ("", []),
    ],
)
def test_nearest(name, near):
    assert nearest(name, KNOWN)[: len(near) or None] == near


def test_sentence():
    assert did_you_mean("sofmax", KNOWN) == "; did you mean Softmax?"
    assert did_you_mean("xyz", KNOWN) == ""
    assert did_you_mean("angular", KNOWN, count=1) == "; did you mean linear_angular?"
