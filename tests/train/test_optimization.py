import math

import pytest
import timm
import torch
from torch import nn

import castling  # noqa: F401 registers models
from castling.train import ClipConfig, OptimConfig, ScheduleConfig
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
