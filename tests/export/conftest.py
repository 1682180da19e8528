"""Models for all export tests."""

import pytest
import timm
import torch
from tests.export.small_models import Convolutional

import castling


class Dense(Convolutional):
    """Several outputs: feature maps and scores, integers and booleans."""

    def forward(self, x):
        features = self.conv(x).relu()
        scores, classes = self.head(features.mean((2, 3))).softmax(-1).topk(2)
        return {"features": features, "scores": scores, "classes": classes, "high": scores > 0.3}


class Random(Convolutional):
    """Adds noise in evaluation mode too, so that no file can reproduce it."""

    def forward(self, x):
        logits = super().forward(x)
        return logits + 0.1 * torch.rand_like(logits)


@pytest.fixture
def convolutional():
    return Convolutional()


@pytest.fixture
def dense():
    return Dense()


@pytest.fixture
def random():
    return Random()


@pytest.fixture(scope="session")
def one_block():
    """A ViT of ours with one block and without auxiliary branch, for images of 32 × 32."""
    torch.manual_seed(0)
    return timm.create_model(
        "castling_deit_pico", attention=castling.LinearAngular(), num_classes=3, depth=1
    )


@pytest.fixture
def files():
    """Names of everything in a folder, sorted."""
    return lambda folder: sorted(path.name for path in folder.iterdir())
