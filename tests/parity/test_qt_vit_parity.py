"""Our QT-ViT against outputs of the authors' code, and EfficientViT against timm's.

The golden logits were made by the official code (AMD-AIG-AIMA/AMD_QTViT) with the same weights.
Weights and images follow a rule: entry i of the sorted state names of our model is drawn from
``numpy.random.default_rng(i)``, images of s pixels from ``default_rng(1000 + s)``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import castling
from castling.attention.multi_scale import MultiScaleAttention
from castling.models.qt_vit import QTViTLarge

GOLDEN = json.loads((Path(__file__).parent / "golden_qt_vit.json").read_text())["logits"]


def value(name, shape, seed):
    normal = np.random.default_rng(seed).standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if name.endswith("ones_scale1"):
        return np.asarray(0.7)
    if name.endswith("positional_encoding"):
        return 0.5 * normal
    if name.endswith("running_var"):
        return np.exp(0.2 * normal)
    if name.endswith(("running_mean", "bias")):
        return 0.1 * normal
    if len(shape) == 1:
        return 1 + 0.1 * normal
    return normal / np.sqrt(np.prod(shape[1:]))


def fill(model):
    state = model.state_dict()
    for index, name in enumerate(sorted(state)):
        drawn = torch.from_numpy(value(name, tuple(state[name].shape), index))
        state[name].copy_(drawn)
    return model.eval()


def build(name):
    if name == "large":
        return QTViTLarge(
            widths=(8, 16, 24, 32, 64),
            depths=(1, 1, 1, 1, 2),
            head_dim=32,
            head_widths=(96, 80),
            num_classes=10,
        )
    return timm.create_model(name, num_classes=10)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_logits_of_the_official_code(name):
    model = fill(build(name))
    for size, logits in GOLDEN[name].items():
        images = np.random.default_rng(1000 + int(size)).standard_normal(
            (1, 3, int(size), int(size))
        )
        with torch.no_grad():
            ours = model(torch.from_numpy(images).float())[0]
        assert torch.allclose(ours, torch.tensor(logits), rtol=0, atol=1e-5), size


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, "pico"])
def test_eps_of_every_norm(number):
    """The authors' ``create_cls_model``: PyTorch's 1e-5 in B1–B3, 1e-7 in every norm of L1–L3.

    Built on the meta device, at full size.
    """
    with torch.device("meta"):
        model = timm.create_model(f"qt_vit_{number}")
    norms = {
        name: module.eps
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm)
    }
    # As many as the networks of the authors have (pico is ours).
    counts = {1: 43, 2: 58, 3: 82, 4: 39, 5: 51, 6: 51, "pico": 19}
    assert len(norms) == counts[number]
    assert set(norms.values()) == {1e-7 if number in (4, 5, 6) else 1e-5}


def test_eps_of_the_large_networks_is_an_option():
    shape = {"widths": (8, 16, 24, 32, 64), "depths": (1, 1, 1, 1, 2), "head_widths": (64, 64)}
    model = timm.create_model("qt_vit_4", norm_eps=1e-3, **shape)
    norms = (torch.nn.BatchNorm2d, torch.nn.LayerNorm)
    assert {m.eps for m in model.modules() if isinstance(m, norms)} == {1e-3}


@pytest.mark.parametrize(
    "names", [("efficientvit_b0", "qt_vit_1"), ("efficientvit_l1", "qt_vit_4")]
)
def test_relu_kernel_gives_timms_efficientvit(names):
    """Small versions of both networks; eps so small that its place in the formula is nothing."""
    theirs, ours = names
    shape = {"widths": (8, 16, 24, 32, 64), "depths": (1, 1, 1, 1, 2), "head_widths": (64, 64)}
    torch.manual_seed(0)
    host = timm.create_model(theirs, **shape)
    for module in host.modules():
        if hasattr(module, "kernel_func"):
            module.eps = 1e-12
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    if theirs == "efficientvit_b0":
        shape["head_dim"] = 16
    model = timm.create_model(
        ours,
        attention=castling.ReLULinear(eps=1e-14),
        shortcut=False,
        position=False,
        **shape,
    )
    model.load_state_dict(host.state_dict())
    images = torch.randn(2, 3, 96, 160)
    host.eval()
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model(images), host(images), rtol=0, atol=1e-5)
    assert sum(isinstance(m, MultiScaleAttention) for m in model.modules()) > 0
