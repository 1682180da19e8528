import csv
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from timm.layers import DropPath
from torch import nn

from castling.attention import auxiliaries
from castling.models.saved import open_model
from castling.train import NonFiniteLossError, recipe_from_dict, train
from castling.train.callbacks import reestimate_batchnorm


def recipe(**sections):
    values = {
        "model": {"name": "castling_deit_pico", "kwargs": {"depth": 1, "embed_dim": 16}},
        "data": {
            "source": "digits",
            "split": {"subset": 96},
            "transform": {"image_size": 16},
            "loader": {"batch_size": 32},
        },
        "epochs": 2,
        "hardware": {"accelerator": "cpu"},
    }
    size = sections.pop("image_size", None)
    if size is not None:
        values["data"]["transform"] = {"image_size": size}
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return recipe_from_dict(values)


def table(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


class Observer(Callback):
    """Calls ``note`` with the module at a hook, after the callbacks before it."""

    def __init__(self, hook, note):
        setattr(self, hook, lambda trainer, module, *_: note(module))


def test_average_follows_its_formula_and_is_what_is_saved(tmp_path):
    weights = []
    averages = []

    def note(module):
        weights.append(module.model.head.weight.detach().clone())
        averages.append(module.evaluated.head.weight.detach().clone())

    observer = Observer("on_train_batch_end", note)
    averaged = recipe(ema={"decay": 0.8, "warmup": 3})
    train(averaged, tmp_path, progress=False, callbacks=[observer])
    assert len(weights) == 6
    for step in range(1, 6):
        decay = 0.8 * (1 - math.exp(-(step + 1) / 3))
        expected = decay * averages[step - 1] + (1 - decay) * weights[step]
        torch.testing.assert_close(averages[step], expected)
    model, _ = open_model(tmp_path)
    torch.testing.assert_close(model.head.weight.detach(), averages[-1], rtol=0, atol=0)


def test_mask_schedule_follows_training(tmp_path):
    seen = []
    observer = Observer(
        "on_train_batch_start",
        lambda module: seen.extend(
            branch.progress for branch in auxiliaries(module.model).values()
        ),
    )
    result = train(recipe(), tmp_path, progress=False, callbacks=[observer])
    assert seen == pytest.approx([step / 6 for step in range(6)])
    rows = table(tmp_path / "auxiliary.csv")
    assert list(rows[0]) == [
        "step",
        "epoch",
        "layer",
        "nonzero_fraction",
        "surviving_mass",
        "output_gap",
        "threshold",
    ]
    assert [(row["step"], row["epoch"]) for row in rows] == [("3", "1"), ("6", "2")]
    assert float(rows[-1]["threshold"]) == 1.0
    assert float(rows[-1]["surviving_mass"]) == 0.0
    assert result.switch["exact"]


def test_penalty_joins_the_loss(tmp_path):
    attention = {"name": "linear_angular", "auxiliary": {"schedule": "constant", "alpha": 0.5}}
    losses = []
    for weight in (0.0, 10.0):
        auxiliary = {**attention["auxiliary"], "penalty": weight}
        folder = tmp_path / str(weight)
        train(
            recipe(
                model={"attention": {**attention, "auxiliary": auxiliary}},
                switch={"enabled": False},
                max_steps=1,
            ),
            folder,
            progress=False,
        )
        losses.append(float(table(folder / "metrics.csv")[0]["train_loss"]))
    assert losses[1] > losses[0] + 0.1


def test_non_finite_loss_stops_with_advice(tmp_path):
    def spoil(module):
        if module.global_step == 4:
            module.model.head.weight.data.fill_(float("nan"))

    with pytest.raises(NonFiniteLossError, match=r"nan at step 5 \(epoch 2.*--optim.lr"):
        train(
            recipe(),
            tmp_path,
            progress=False,
            callbacks=[Observer("on_train_batch_start", spoil)],
        )
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert train(recipe(), tmp_path, progress=False).steps == 6


def test_drop_path_grows(tmp_path):
    rates = []
    observer = Observer(
        "on_train_batch_start",
        lambda module: rates.append(
            max(m.drop_prob for m in module.model.modules() if isinstance(m, DropPath))
        ),
    )
    train(
        recipe(
            model={"drop_path": 0.3, "kwargs": {"depth": 2, "embed_dim": 16}},
            regularize={"drop_path_ramp": True},
        ),
        tmp_path,
        progress=False,
        callbacks=[observer],
    )
    assert rates == pytest.approx([0.3 * step / 6 for step in range(6)])


def test_batchnorm_statistics_become_plain_averages():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9)).eval()
    batches = [torch.randn(8, 3, 4, 4) * 3 + i for i in range(4)]
    reestimate_batchnorm(model, batches)
    expected = torch.stack([b.mean(dim=(0, 2, 3)) for b in batches]).mean(dim=0)
    torch.testing.assert_close(model[0].running_mean, expected)
    assert model[0].momentum == 0.1
    assert not model[0].training


def test_batchnorm_reestimation_leaves_training_alone(tmp_path):
    values = {"model": {"name": "cas_vit_pico", "kwargs": {}}, "image_size": 32}
    plain = train(recipe(**values), tmp_path / "a", progress=False)
    again = train(
        recipe(**values, regularize={"batchnorm_images": 64}), tmp_path / "b", progress=False
    )
    a, b = (table(tmp_path / x / "metrics.csv") for x in "ab")
    assert [row["train_loss"] for row in a] == [row["train_loss"] for row in b]
    assert plain.metrics["val_loss"] != again.metrics["val_loss"]
    # what is saved has the new statistics too
    assert again.metrics["val_loss"] == pytest.approx(float(b[-1]["val_loss"]), rel=1e-5)


def test_frozen_batchnorm_keeps_its_statistics(tmp_path):
    train(
        recipe(
            model={"name": "cas_vit_pico", "kwargs": {}},
            image_size=32,
            regularize={"freeze_batchnorm": True},
        ),
        tmp_path,
        progress=False,
    )
    model, _ = open_model(tmp_path)
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert layers
    assert all(int(layer.num_batches_tracked) == 0 for layer in layers)
