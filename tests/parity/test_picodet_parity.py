"""Our PicoDet against outputs and losses of a public port of PaddleDetection's.

The golden numbers were made by Bo396543018/Picodet_Pytorch (276ecbf), its own files of ESNet,
CSP-PAN, head and SimOTA, on the same weights, images and boxes, all of which follow a rule: entry i
of the sorted state names of our model is drawn from ``numpy.random.default_rng(i)``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import castling

GOLDEN = json.loads((Path(__file__).parent / "golden_picodet.json").read_text())


def value(name, shape, seed):
    normal = np.random.default_rng(seed).standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if name.endswith("running_var"):
        return np.exp(0.2 * normal)
    if name.startswith("head.outputs"):
        return normal - 3 if name.endswith("bias") else 12 * normal / np.sqrt(shape[1])
    if name.endswith(("running_mean", "bias")):
        return 0.1 * normal
    if len(shape) == 1:
        return 1 + 0.1 * normal
    return 1.4 * normal / np.sqrt(np.prod(shape[1:]))


def targets():
    random, found = np.random.default_rng(2000), []
    for count in (5, 12):
        corner = random.uniform(0, 100, (count, 2))
        sides = random.uniform(8, 60, (count, 2))
        boxes = torch.from_numpy(np.concatenate([corner, corner + sides], 1)).float()
        found.append({"boxes": boxes, "labels": torch.from_numpy(random.integers(0, 80, count))})
    return found


@pytest.mark.parametrize("size", ["s", "m"])
def test_outputs_assignment_and_losses_of_the_port(size):
    model = castling.create_model(f"picodet_{size}/esnet_{size}", num_classes=80).eval()
    state = model.state_dict()
    for index, name in enumerate(sorted(state)):
        state[name].copy_(torch.from_numpy(np.asarray(value(name, state[name].shape, index))))
    images = np.random.default_rng(1000).standard_normal((2, 3, 128, 160))
    images = torch.from_numpy(images).float()
    with torch.no_grad():
        raw = model(images)
        losses = model.losses(images, targets())
    for name, expected in GOLDEN[size]["raw"].items():
        flat = raw[name].flatten()
        found = flat[:: flat.numel() // 8][:8]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    for name, expected in GOLDEN[size]["losses"].items():
        assert losses[name].item() == pytest.approx(expected, rel=1e-4), name
