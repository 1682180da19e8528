"""Corrections of low rank: nothing changes at first, a low-rank change is what remains."""

import dataclasses

import pytest
import torch
from tests.conversion.pretrained_vit import images, teacher
from torch import nn

import castling
from castling.conversion import ConversionConfig, convert
from castling.conversion.low_rank import low_rank

CONFIG = ConversionConfig(closed_form_images=0, layer_views=0, model_views=160, held_out=8)


def test_nothing_changes_until_something_learns():
    model = teacher()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = images()[0]
    wanted = model(batch)
    objects = {name: id(parameter) for name, parameter in model.named_parameters()}
    with low_rank(model, 3) as learning:
        assert torch.equal(model(batch), wanted)
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in learning}
        shapes = {tuple(p.shape) for p in learning}
        assert (3, 64) in shapes
        assert (64, 3) in shapes
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert objects == {name: id(parameter) for name, parameter in model.named_parameters()}
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("rank", [1, 4])
def test_a_conversion_changes_linear_weights_by_that_rank_alone(rank):
    config = dataclasses.replace(CONFIG, rank=rank, attention_lr=1e-2, rest_lr=1e-2)
    student, report = convert(teacher(), images(), "relu_linear", config=config)
    torch.manual_seed(1)  # what was drawn before does not matter
    again, _ = convert(teacher(), images(), "relu_linear", config=config)
    assert torch.equal(again.head.weight, student.head.weight)
    linears = {
        f"{name}.weight" for name, module in student.named_modules() if type(module) is nn.Linear
    }
    old = teacher().state_dict()
    for name, value in student.state_dict().items():
        if name in linears:
            ranks = torch.linalg.matrix_rank((value - old[name]).double(), rtol=1e-4)
            assert 0 < int(ranks) <= rank, name
        else:
            assert torch.equal(value, old[name]), name
    assert report.stages[-1].output_error < report.stages[0].output_error
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_an_error_leaves_the_model_as_it_was():
    model = teacher()
    model.pos_embed.requires_grad_(False)
    with pytest.raises(KeyError), low_rank(model, 2):
        raise KeyError
    assert not any("parametriz" in name for name, _ in model.named_modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["pos_embed"]


def test_weights_that_are_shared_stay_shared():
    one = nn.Linear(4, 4)
    other = nn.Linear(4, 4)
    other.weight = one.weight
    model = nn.Sequential(one, other, nn.Linear(4, 2))
    with low_rank(model, 2) as learning:
        assert len(learning) == 2
    assert one.weight is other.weight


def test_ranks_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match="rank must not be negative"):
        ConversionConfig(rank=-1)


def test_defaults_of_a_gpu_are_longer():
    assert ConversionConfig.for_device("cpu") == ConversionConfig()
    long = ConversionConfig.for_device("cuda")
    assert long.layer_views == 10 * ConversionConfig().layer_views
    assert castling.conversion.ConversionConfig.for_device(torch.device("cuda:1")) == long
