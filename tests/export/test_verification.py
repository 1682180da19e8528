"""Verification: every way in which a file can differ from the model is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from castling.export import ExportedModel, ExportError, OutputCheck, ShapeCheck
from castling.export.outputs import NamedOutputs
from castling.export.verification import Verification, verify

SHAPES = [(2, 3, 4, 4), (1, 3, 6, 4)]


class Model(nn.Module):
    def forward(self, x):
        return {"logits": x.mean((2, 3)), "map": 2 * x, "best": x.mean((2, 3)).argmax(1)}


class File(ExportedModel):
    """Computes what the model does, and changes the outputs afterwards."""

    def __init__(self, change):
        super().__init__(Path("file"), "test", {}, (None, 3, None, None), [])
        self.change = change

    def _bind(self, images):
        outputs = self.change(Model()(images))
        self.output_names = tuple(outputs)
        return lambda: list(outputs.values())


def check(change, tolerance=1e-3):
    return verify(NamedOutputs(Model()), File(change), Verification(SHAPES, tolerance, "Runtime"))


def test_differences_within_the_tolerance_are_reported_per_output():
    def change(outputs):
        logits = outputs["logits"].clone()
        logits[0] = torch.tensor([1.0, 0.0, 0.0]) * 5e-4 + logits[0]
        return {**outputs, "logits": logits, "map": outputs["map"] - 1e-4}

    first, second = check(change)
    assert first.shape == (2, 3, 4, 4)
    assert first.outputs["logits"].max_difference == pytest.approx(5e-4, rel=1e-3)
    assert first.outputs["map"].max_difference == pytest.approx(1e-4, rel=1e-2)
    assert first.max_difference == first.outputs["logits"].max_difference
    assert first.outputs["map"].argmax_agreement is None
    assert first.outputs["best"].argmax_agreement is None
    assert second.outputs["map"].shape == (1, 3, 6, 4)


def test_agreement_is_the_share_of_equal_rows():
    def change(outputs):
        return {**outputs, "logits": -outputs["logits"]}

    first, second = check(change, tolerance=100.0)
    assert first.agreement == 0.0
    assert second.agreement == 0.0

    def change_one(outputs):
        signs = torch.ones(len(outputs["logits"]), 1)
        signs[0] = -1
        return {**outputs, "logits": signs * outputs["logits"]}

    assert check(change_one, tolerance=100.0)[0].agreement == 0.5


def _with(name, function):
    return lambda outputs: {**outputs, name: function(outputs[name])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with("map", lambda x: x + 2e-3), r"output map .* differs from PyTorch by 0.002"),
        (_with("map", lambda x: x / 0 * 0), r"output map .* holds NaN in Runtime"),
        (_with("map", lambda x: x / 0), r"output map .* differs .* by inf"),
        (_with("best", lambda x: x.int()), r"best .* type torch.int32 in Runtime, torch.int64"),
        (_with("map", lambda x: x[:, :1]), r"map .* shape \(2, 1, 4, 4\) in Runtime, \(2, 3, 4, 4"),
        (lambda x: {"logits": x["logits"]}, r"returns the outputs logits, PyTorch best, logits"),
        (lambda x: {**x, "more": x["map"]}, r"returns the outputs best, logits, map, more"),
        (lambda x: x["absent"], r"Runtime cannot run the exported model at shape \(2, 3, 4, 4\)"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ExportError, match=message):
        check(change)


def test_integers_must_be_equal_whatever_the_tolerance():
    with pytest.raises(ExportError, match=r"output best .* by 1 in Runtime, above the tolerance 0"):
        check(_with("best", lambda x: x + 1), tolerance=100.0)


def test_the_report_of_a_shape_is_that_of_its_worst_output():
    check = ShapeCheck(
        (2, 3, 4, 4), {"a": OutputCheck((2, 5), 0.1, 0.5), "b": OutputCheck((2, 7), 0.2, 1.0)}
    )
    assert check.max_difference == 0.2
    assert check.agreement == 0.5


def test_nan_of_the_model_is_refused():
    class Broken(nn.Module):
        def forward(self, x):
            return x * float("nan")

    class Same(File):
        def _bind(self, images):
            self.output_names = ("output",)
            return lambda: [Broken()(images)]

    with pytest.raises(ExportError, match="holds NaN in PyTorch"):
        verify(NamedOutputs(Broken()), Same(None), Verification(SHAPES, 1.0, "Runtime"))


def test_equal_infinities_are_equal():
    class Infinite(nn.Module):
        def forward(self, x):
            return x / 0

    class Same(File):
        def _bind(self, images):
            self.output_names = ("output",)
            return lambda: [images / 0]

    checks = verify(NamedOutputs(Infinite()), Same(None), Verification(SHAPES, 0.0, "Runtime"))
    assert [check.max_difference for check in checks] == [0.0, 0.0]
