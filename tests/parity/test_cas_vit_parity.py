"""Our CAS-ViT against numbers that the authors' code gave for the same weights and images.

Weights and images follow a rule (``fixed_values``), so only outputs are stored: golden_cas_vit.json
was written by running the public code, file ``classification/model/rcvit.py``, in float32.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import castling  # noqa: F401

GOLDEN = json.loads((Path(__file__).parent / "golden_cas_vit.json").read_text())


def fixed_values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Values that depend on the state's name alone; BatchNorm statistics are not trivial.

    The mixer multiplies q with v: larger values would grow without bounds from block to block.
    """
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        values = random.uniform(1.0, 3.0, shape)
    elif name.endswith("bias") or name.endswith("running_mean"):
        values = random.normal(0, 0.1, shape)
    elif len(shape) == 1:
        values = random.uniform(0.3, 0.8, shape)
    else:
        values = random.normal(0, 1.1, shape) / np.sqrt(np.prod(shape[1:]))
    return torch.tensor(values, dtype=torch.float32)


def fill(model: nn.Module) -> None:
    state = model.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(fixed_values(name, tuple(tensor.shape)))
    model.load_state_dict(state)


def images(height: int, width: int) -> torch.Tensor:
    values = np.random.RandomState(height * 1000 + width).normal(0, 1, (2, 3, height, width))
    return torch.tensor(values, dtype=torch.float32)


def close(tensor: torch.Tensor, golden: list[float]) -> None:
    torch.testing.assert_close(
        tensor.flatten()[: len(golden)], torch.tensor(golden), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "case", GOLDEN["logits"], ids=lambda case: f"{case['model']}-{case['size']}"
)
def test_logits(case: dict) -> None:
    model = timm.create_model(
        case["model"], num_classes=10, distillation=case["distillation"]
    ).eval()
    fill(model)
    with torch.no_grad():
        close(model(images(*case["size"])), case["output"])


def test_training_returns_both_heads() -> None:
    case = GOLDEN["training"]
    model = timm.create_model(case["model"], num_classes=10, distillation=True).train()
    fill(model)
    logits, taught = model(images(*case["size"]))
    close(logits, case["head"])
    close(taught, case["dist_head"])
    close(model.network[0][0].norm1.running_mean, case["running_mean"])


def test_dense_features() -> None:
    case = GOLDEN["features"]
    model = timm.create_model(case["model"], features_only=True, feature_norm=True).eval()
    fill(model.model)
    with torch.no_grad():
        maps = model(images(*case["size"]))
    assert [list(m.shape) for m in maps] == case["shapes"]
    for own, golden in zip(maps, case["maps"], strict=True):
        close(own, golden)
