import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

import castling  # noqa: F401 registers models
from castling.train import ClipConfig, EmaConfig, OptimConfig, ScheduleConfig
from castling.train.callbacks import WeightAverage
from castling.train.optimization import build_optimizer, clip_gradients, learning_rate


def decayed(model, **options):
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1, **options), 64)
    return {
        names[id(p)]: group["weight_decay"] > 0
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_weight_decay_spares_offsets_and_one_dimensional_tensors():
    model = timm.create_model("deit_pico")
    for name, yes in decayed(model).items():
        matrix = dict(model.named_parameters())[name].ndim > 1
        assert yes == (matrix and name not in ("pos_embed", "cls_token")), name


def test_weight_decay_spares_scalar_and_position_table_of_qt_vit():
    choice = decayed(timm.create_model("qt_vit_pico"))
    special = [n for n in choice if "ones_scale" in n or "positional_encoding" in n]
    assert special
    assert not any(choice[name] for name in special)


def test_weight_decay_spares_what_a_backbone_names_within_a_dense_model():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(2, 2))
            self.weight = nn.Parameter(torch.ones(2, 2))

        def no_weight_decay(self):
            return {"table"}

    model = nn.Sequential(Backbone())
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1), 1)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(model[0].weight)}


def test_parameters_of_a_task_are_trained_too():
    projection = nn.Parameter(torch.zeros(2, 2))
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(weight_decay=0.1), 64, [projection])
    found = [group for group in optimizer.param_groups for p in group["params"] if p is projection]
    assert found[0]["weight_decay"] == 0.1
    assert found[0]["peak_lr"] == optimizer.param_groups[0]["peak_lr"]


def test_learning_rate_scales_with_images_per_step():
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(lr=1e-3, lr_batch=256), 1024)
    assert optimizer.param_groups[0]["peak_lr"] == pytest.approx(4e-3)


def test_layer_decay_grows_towards_the_head():
    model = timm.create_model("deit_pico", depth=2)
    optimizer = build_optimizer(model, OptimConfig(layer_decay=0.5), 64)
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    blocks = [scale[id(model.blocks[i].mlp.fc1.weight)] for i in range(2)]
    assert scale[id(model.head.weight)] == 1.0
    assert blocks[0] == pytest.approx(0.5 * blocks[1])


def test_unknown_optimiser():
    with pytest.raises(ValueError, match="adamwww"):
        build_optimizer(nn.Linear(2, 2), OptimConfig(name="adamwww"), 1)


def test_cosine_with_warm_up():
    config = ScheduleConfig(warmup_lr=0.1, min_lr=0.2)
    rate = [learning_rate(config, 1.0, step, 20, 4) for step in range(21)]
    assert rate[0] == 0.1
    assert rate[2] == pytest.approx(0.55)
    assert rate[4] == 1.0
    assert rate[12] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rate[20] == pytest.approx(0.2)
    assert learning_rate(ScheduleConfig(kind="constant"), 1.0, 19, 20, 0) == 1.0


@pytest.mark.parametrize("mode", ["norm", "value", "adaptive"])
def test_clipping_bounds_what_its_mode_says(mode):
    weight = nn.Parameter(torch.full((3, 4), 2.0))
    weight.grad = torch.randn(3, 4) * 100
    clip_gradients([weight], ClipConfig(mode=mode, value=0.1))
    found = {
        "norm": weight.grad.norm(),
        "value": weight.grad.abs().max(),
        "adaptive": (weight.grad.norm(dim=1) / weight.detach().norm(dim=1)).max(),
    }[mode]
    assert 0.09 < float(found) <= 0.1001


def test_learning_rate_drops_after_epochs():
    config = ScheduleConfig(kind="steps", drop_epochs=(8, 11), warmup_steps=2, warmup_lr=0.0)
    rate = [learning_rate(config, 1.0, step, 120, 2, steps_per_epoch=10) for step in range(120)]
    assert rate[:3] == [0.0, 0.5, 1.0]
    assert rate[79] == 1.0
    assert rate[80] == rate[109] == pytest.approx(0.1)
    assert rate[110] == pytest.approx(0.01)


def test_a_power_of_what_is_left():
    config = ScheduleConfig(kind="poly", power=0.9, warmup_steps=10, warmup_lr=0.0, min_lr=0.1)
    rate = [learning_rate(config, 1.0, step, 110, 10) for step in range(111)]
    assert rate[:11] == pytest.approx(np.linspace(0, 1, 11))
    expected = [0.1 + 0.9 * (1 - k / 100) ** 0.9 for k in range(101)]
    assert rate[10:] == pytest.approx(expected)


def test_a_cosine_may_be_longer_than_training():
    whole = ScheduleConfig()
    longer = ScheduleConfig(cosine_epochs=30)
    for step in (0, 100, 249):
        rate = learning_rate(longer, 1.0, step, 250, 0, steps_per_epoch=10)
        assert rate == learning_rate(whole, 1.0, step, 300, 0)


def test_schedules_refuse_options_of_another_kind():
    with pytest.raises(ValueError, match="drop_epochs"):
        ScheduleConfig(kind="steps")
    with pytest.raises(ValueError, match="drop_epochs"):
        ScheduleConfig(drop_epochs=(8,))
    with pytest.raises(ValueError, match="cosine_epochs"):
        ScheduleConfig(kind="constant", cosine_epochs=3)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_learning_rates_of_named_parameters_are_scaled(layer_decay):
    model = timm.create_model("deit_pico", depth=2)
    plain = build_optimizer(model, OptimConfig(layer_decay=layer_decay), 64)
    options = {"lr_scale": {"head.*": 2.0, "*.bias": 0.5, "head.bias": 3.0}}
    scaled = build_optimizer(model, OptimConfig(layer_decay=layer_decay, **options), 64)

    def scale(optimizer):
        return {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}

    before, after = scale(plain), scale(scaled)
    assert len(before) == len(after) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        factor = 2.0 if name == "head.weight" else 3.0 if name == "head.bias" else 1.0
        factor = 0.5 if name.endswith(".bias") and name != "head.bias" else factor
        assert after[id(p)] == pytest.approx(before[id(p)] * factor), name
    assert decayed(model, **options) == decayed(model)


def test_a_pattern_that_matches_no_parameter_is_refused():
    with pytest.raises(ValueError, match="matches 'neck"):
        build_optimizer(nn.Linear(2, 2), OptimConfig(lr_scale={"neck.*": 2.0}), 64)


def test_the_decay_of_the_average_rises_as_picodet_s():
    average = WeightAverage(EmaConfig(decay=0.9998, warmup=10, rise="ratio"))
    assert average.decay(1) == pytest.approx(2 / 11)
    assert average.decay(990) == pytest.approx(991 / 1000)
    assert average.decay(10**6) == 0.9998
