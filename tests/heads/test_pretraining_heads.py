"""SimMIM and the features of a teacher: what is shown, what is told, what stays frozen."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import castling
from castling.heads.masking import pixels_of, random_masks
from castling.utils.randomness import keys

KEYS = keys(0, np.arange(2))


@pytest.mark.parametrize(
    ("backbone", "unit", "side"),
    [
        ("cas_vit_pico", 32, 64),
        ("qt_vit_pico", 16, 64),
        ("castling_levit_pico", 32, 64),
        ("deit_pico", 8, 32),
        ("test_vit3", 16, 64),
    ],
)
def test_simmim_on_every_kind_of_backbone(backbone, unit, side):
    model = castling.create_model(f"simmim/{backbone}", head={"unit": unit})
    images = torch.randn(2, 3, side, side)
    loss = model.image_losses(images, KEYS)
    loss.mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    grid = side // unit, side // unit
    masks = random_masks(KEYS, grid, 0.6, 1, images.device)
    hidden = pixels_of(masks.hidden, grid, unit).expand(2, 3, side, side)
    told = model.pictures(images, KEYS)["reconstruction"]
    for row in range(2):  # the definition: mean absolute error of the hidden pixels
        errors = (told[row] - images[row])[hidden[row]].abs()
        torch.testing.assert_close(loss[row], errors.mean())
    assert torch.equal(told[~hidden], images[~hidden])


def test_simmim_never_sees_hidden_pixels():
    model = castling.create_model("simmim/cas_vit_pico").eval()
    nn.init.normal_(model.mask_token)
    images = torch.randn(2, 3, 64, 64)
    hidden = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    hidden[:, :, :32] = True
    expected = model.predicted(images, hidden)
    shown = model.shown(images, hidden)
    assert torch.equal(shown[0, :, :32, :32], model.mask_token[0])
    assert torch.equal(shown[:, :, 32:], images[:, :, 32:])
    assert torch.equal(model.predicted(images.masked_fill(hidden, float("nan")), hidden), expected)


def test_simmim_learns_a_constant_colour():
    torch.manual_seed(0)
    model = castling.create_model("simmim/deit_pico", head={"unit": 8})
    images = torch.full((2, 3, 32, 32), 0.7)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(40):
        loss = model.image_losses(images, keys(0, step, np.arange(2))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_sizes_that_do_not_fit_are_refused():
    model = castling.create_model("simmim/cas_vit_pico")
    with pytest.raises(ValueError, match="multiples of 32"):
        model.image_losses(torch.randn(2, 3, 48, 64), KEYS)
    with pytest.raises(ValueError, match="cannot be masked"):
        model.image_losses(torch.randn(2, 3, 32, 32), KEYS)


class Constant(nn.Module):
    """Features that do not depend on the images: (B, 4, 2, 2)."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.randn(1, 4, 2, 2) * 100)

    def forward(self, images):
        return self.value.expand(len(images), -1, -1, -1)


def distiller(teacher):
    torch.manual_seed(0)
    head = {"teacher": "test_vit", "teacher_pretrained": False}
    model = castling.create_model("distill_features/cas_vit_pico", head=head)
    model.projection = nn.Conv2d(64, 4, 1)
    model.set_teacher(teacher)
    return model


def test_features_are_whitened_and_brought_to_the_students_grid():
    teacher = Constant()
    model = distiller(teacher).eval()
    images = torch.randn(2, 3, 64, 64)
    goal = F.interpolate(teacher.value, (4, 4), mode="bilinear", antialias=True)
    goal = (goal - goal.mean(1)) / (goal.var(1, unbiased=False) + 1e-5).sqrt()
    own = model.projection(model(images)["features"])
    expected = F.smooth_l1_loss(own, goal.expand(2, -1, -1, -1), reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(model.image_losses(images, KEYS), expected)


def test_the_teacher_is_frozen_shared_and_no_part_of_the_state():
    teacher = Constant()
    model = distiller(teacher)
    model.image_losses(torch.randn(2, 3, 64, 64), KEYS).mean().backward()
    assert teacher.value.grad is None
    assert not any("teacher" in name or "value" in name for name in model.state_dict())
    assert copy.deepcopy(model)._hidden.teacher is teacher
    model.double()
    assert teacher.value.dtype == torch.float64


def test_a_student_is_drawn_by_the_teachers_components():
    """A student that says what the teacher says looks the same."""
    teacher = Constant()
    model = distiller(teacher).eval()
    goal = F.interpolate(teacher.value, (4, 4), mode="bilinear", antialias=True)
    goal = F.layer_norm(goal.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2).detach()
    model._both = lambda images: (goal, goal)
    drawn = model.pictures(torch.randn(1, 3, 64, 64), KEYS)
    torch.testing.assert_close(drawn["student"], drawn["teacher"], atol=1e-4, rtol=1e-4)
    assert drawn["teacher"].std() > 0.1


def test_without_a_teacher_there_is_no_loss():
    head = {"teacher": "test_vit", "teacher_pretrained": False}
    model = castling.create_model("distill_features/cas_vit_pico", head=head)
    assert model(torch.randn(1, 3, 64, 64))["features"].shape == (1, 64, 4, 4)
    with pytest.raises(ValueError, match="has no teacher"):
        model.image_losses(torch.randn(1, 3, 64, 64), KEYS[:1])
