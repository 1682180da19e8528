"""The machine's own limit of multiply-adds."""

import importlib
import math

import pytest

from castling.ops import native


@pytest.mark.skipif(not native.available(), reason="the native operators are not built")
def test_a_rate_is_measured():
    rate = native.multiply_add_rate()
    assert math.isfinite(rate)
    assert rate > 0


def test_without_a_library_it_says_why(monkeypatch):
    library = importlib.import_module("castling.ops.native.library")
    monkeypatch.setattr(library, "load", lambda: "no compiler")
    with pytest.raises(RuntimeError, match="no compiler"):
        native.multiply_add_rate()
