"""Where NaN and infinity arise."""

import pytest
import torch
from torch import nn

from castling.data import DataConfig
from castling.deploy import evaluate
from castling.utils.finite import (
    NonFiniteOutputError,
    explain_non_finite,
    finite_outputs,
    non_finite_images,
)


def test_images_with_outputs_that_are_not_finite():
    logits, boxes = torch.zeros(3, 4), torch.zeros(3, 5, 4)
    logits[0, 1], boxes[2, 0, 3] = torch.nan, -torch.inf
    raw = {"logits": logits, "boxes": boxes, "labels": torch.zeros(3, dtype=torch.long)}
    assert non_finite_images(raw).tolist() == [True, False, True]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.log(self.first(x).relu()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m[1].first.weight.fill_(torch.nan), "1.first (Linear), whose weight holds NaN"),
        (lambda m: m[1].second.bias.fill_(torch.inf), "1.second (Linear), whose bias holds NaN"),
        (lambda m: m[0].running_var.fill_(torch.nan), "0 (BatchNorm1d), whose running_var holds"),
        (lambda m: m[1].first.bias.fill_(-9.0), "they arise in 1, before 1.second (Linear)"),
        (lambda m: m[0].weight.fill_(3e38), "they arise in 0 (BatchNorm1d)"),
    ],
)
@torch.no_grad()
def test_the_first_layer_is_named(damage, message):
    model = nn.Sequential(nn.BatchNorm1d(4), Block()).eval()
    for linear in (model[1].first, model[1].second):
        linear.weight.fill_(0.1)
        linear.bias.fill_(1.0)
    images = torch.full((2, 4), 7.0)
    assert model(images).isfinite().all()
    damage(model)
    assert message in explain_non_finite(model, images)
    wrong = pytest.raises(NonFiniteOutputError, match="2 of 2 images of a batch")
    with wrong, finite_outputs(model):
        model(images)
    model(images)  # nothing is checked outside
    assert not any(m._forward_hooks for m in model.modules())


def test_images_that_are_not_finite_themselves():
    images = torch.full((1, 4), torch.nan)
    assert explain_non_finite(nn.Linear(4, 4), images) == (
        "the images themselves hold NaN or infinity"
    )


def test_evaluate_says_where():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    nn.init.constant_(network[1].bias, float("nan"))
    with pytest.raises(ValueError, match=r"digit.*not finite for \d+ of \d+.*1 \(Linear\).*bias"):
        evaluate(network, DataConfig())
