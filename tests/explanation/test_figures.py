"""Figures of matrices, receptive fields and class activation whose values are known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from castling.explanation import figures, gradients

UNIFORM, IDENTITY = torch.full((6, 6), 1 / 6), torch.eye(6)
#: Each of six tokens in a row attends to the next one alone, the last to the one before.
NEIGHBOUR = torch.eye(6)[[1, 2, 3, 4, 5, 4]]
ROW = figures.positions((1, 6), (16, 96))


def test_entropy():
    assert figures.entropy(UNIFORM) == pytest.approx(1)
    assert figures.entropy(IDENTITY) == 0
    two = torch.eye(6) / 2 + torch.eye(6).roll(1, 0) / 2
    assert figures.entropy(two) == pytest.approx(math.log(2) / math.log(6))
    assert figures.entropy(torch.ones(3, 1)) == 0
    assert figures.entropy(torch.zeros(2, 6)) == 0


def test_effective_rank():
    assert figures.effective_rank(UNIFORM) == pytest.approx(1)
    assert figures.effective_rank(IDENTITY) == pytest.approx(6)
    assert figures.effective_rank(torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0]))) == pytest.approx(
        3
    )
    values = torch.tensor([0.75, 0.25])
    wanted = math.exp(-(values * values.log()).sum())
    assert figures.effective_rank(torch.diag(values)) == pytest.approx(wanted)
    assert figures.effective_rank(torch.zeros(3, 3)) == 0


def test_distance():
    assert figures.mean_distance(IDENTITY, ROW, ROW) == 0
    assert figures.mean_distance(NEIGHBOUR, ROW, ROW) == pytest.approx(16)
    away = torch.eye(6)[[5] * 6]
    assert figures.mean_distance(away, ROW, ROW) == pytest.approx(16 * (5 + 4 + 3 + 2 + 1) / 6)
    assert figures.mean_distance(-NEIGHBOUR, ROW, ROW) == pytest.approx(16)


def test_signs_and_own_tokens():
    signed = torch.tensor([[3.0, -1.0], [0.0, 4.0]])
    assert figures.negative_mass(signed) == pytest.approx(1 / 8)
    assert figures.negative_mass(UNIFORM) == 0
    assert figures.own_weight(signed) == pytest.approx((3 / 4 + 1) / 2)
    assert figures.own_weight(NEIGHBOUR) == 0


def test_figures_keep_leading_dimensions():
    both = torch.stack([UNIFORM, IDENTITY])
    assert figures.entropy(both).tolist() == pytest.approx([1, 0])
    assert figures.effective_rank(both).tolist() == pytest.approx([1, 6])
    assert figures.own_weight(both).tolist() == pytest.approx([1 / 6, 1])
    assert figures.mean_distance(both, ROW, ROW)[1] == 0


def test_positions_are_centres_in_pixels():
    places = figures.positions((2, 3), (8, 24))
    assert places.tolist() == [[2, 4], [2, 12], [2, 20], [6, 4], [6, 12], [6, 20]]


@pytest.mark.parametrize(
    ("count", "like", "grid"),
    [(196, (14, 14), (14, 14)), (49, (14, 14), (7, 7)), (20, (7, 9), (4, 5)), (6, (3, 2), (3, 2))],
)
def test_grid_of_pooled_tokens(count, like, grid):
    assert figures.fitting_grid(count, like) == grid


def test_no_grid_fits_a_prime():
    assert figures.fitting_grid(197, (14, 14)) is None


def test_rollout():
    first = figures.rolled(None, NEIGHBOUR[None])
    torch.testing.assert_close(first, (IDENTITY + NEIGHBOUR).double() / 2)
    second = figures.rolled(first, torch.stack([UNIFORM, IDENTITY]))
    step = ((UNIFORM + IDENTITY) / 2 + IDENTITY) / 2
    torch.testing.assert_close(second, step.double() @ first)
    torch.testing.assert_close(second.sum(dim=1), torch.ones(6).double())


@given(height=st.integers(9, 14), width=st.integers(9, 14), layers=st.integers(1, 2))
@settings(max_examples=10, deadline=None)
def test_receptive_field_of_convolutions(height, width, layers):
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(layers))).double()
    images = torch.randn(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    out = network(images)
    field = gradients.receptive_field(out[0, :, height // 2, width // 2], images)
    rows, columns = field.nonzero().unbind(1)
    reach = 2 * layers + 1
    assert (rows.min(), rows.max()) == (height // 2 - layers, height // 2 + layers)
    assert (columns.min(), columns.max()) == (width // 2 - layers, width // 2 + layers)
    assert gradients.half_area(field) <= reach**2 / (height * width)


def test_receptive_field_is_the_sum_of_magnitudes():
    convolution = nn.Conv2d(3, 1, 1, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([1.0, -2.0, 4.0]).view(1, 3, 1, 1))
    images = torch.zeros(1, 3, 3, 3, requires_grad=True)
    field = gradients.receptive_field(convolution(images)[0, :, 1, 1], images)
    assert field[1, 1] == 7
    assert field.sum() == 7
    apart = torch.ones(2, requires_grad=True)
    assert not gradients.receptive_field(apart, images).any()


def test_half_area():
    assert gradients.half_area(torch.ones(10, 10)) == 0.5
    peak = torch.zeros(10, 10)
    peak[3, 3] = 1
    assert gradients.half_area(peak) == 0.01
    assert gradients.half_area(torch.tensor([[4.0, 3.0, 2.0, 1.0]])) == 0.5  # 4 + 3 of 10
    assert gradients.half_area(torch.zeros(4, 4)) == 0


def test_class_activation_of_a_linear_head():
    """Of mean pooling and a linear head the map is Σ w_c a_c, negative parts cut off."""
    activation = torch.randn(3, 4, 5, requires_grad=True)
    weight = torch.tensor([2.0, -1.0, 0.5])
    score = weight @ activation.mean(dim=(1, 2))
    (gradient,) = torch.autograd.grad(score, activation)
    heat = gradients.class_activation(activation.detach(), gradient)
    wanted = torch.einsum("c,chw->hw", weight, activation.detach()).relu().double()
    torch.testing.assert_close(heat, wanted / wanted.max(), rtol=1e-5, atol=1e-6)
    against = gradients.class_activation(torch.ones(3, 2, 2), -torch.ones(3, 2, 2))
    assert not against.any()


def test_tokens_as_maps():
    tokens = torch.arange(14.0).view(1, 7, 2)
    wanted = tokens[0, 1:].T.reshape(2, 2, 3)
    assert torch.equal(gradients.as_map(tokens, (2, 3)), wanted)
    image = wanted[None]
    assert torch.equal(gradients.as_map(image, (2, 3)), wanted)
    assert torch.equal(gradients.as_map(image.permute(0, 2, 3, 1), (2, 3)), wanted)
    assert gradients.as_map(tokens.expand(2, -1, -1), (2, 3)) is None
    assert gradients.as_map(tokens, (3, 3)) is None
