"""Texts for messages: nearest names, names that can be written, lists."""

from __future__ import annotations

import os

import pytest

from castling.utils.text import did_you_mean, few, nearest, printable

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


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (os.fsdecode(b"c\xe9t/1.png"), r"c\xe9t/1.png"),
        ("a\nb\x1b[31m.png", r"a\nb\x1b[31m.png"),
        ("caf\u00e9 \u732b\u00a0\U0001f408.jpg", "caf\u00e9 \u732b\u00a0\U0001f408.jpg"),
        ("plain.png", "plain.png"),
        ("\ud800.png", r"\ud800.png"),
    ],
)
def test_names_can_always_be_written(name: str, shown: str) -> None:
    assert printable(name) == shown
    printable(name).encode("utf-8")


def test_few_of_many() -> None:
    assert few(["a", "b"], 2) == "a, b"
    assert few(iter("abcd"), 2) == "a, b, … (4 in all)"
