"""Small teachers, their images, and plans of them."""

import pytest
import timm
import torch

import castling
from castling.surgery.plan import Plan, PlannedLayer, Predicted


def teacher(classes=10):
    """A small ViT whose attention is far from uniform."""
    torch.manual_seed(0)
    model = timm.create_model("deit_pico", num_classes=classes, img_size=32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.weight"):
                parameter.mul_(6.0)
            elif name.endswith(("proj.weight", "head.weight")):
                parameter.mul_(3.0)
    return model


def images(count=64):
    generator = torch.Generator().manual_seed(3)
    return list(torch.randn(count, 3, 32, 32, generator=generator).split(8))


def plan_of(times, tokens=300, names=None, rest=1.0):
    """A plan of layers with these (softmax, linear) milliseconds."""
    names = names or [f"blocks.{i}.attn" for i in range(len(times))]
    layers = tuple(
        PlannedLayer(name, tokens, 2, 32, 32, *both, "linear")
        for name, both in zip(names, times, strict=True)
    )
    softmax = rest + sum(a for a, _ in times)
    predicted = Predicted(softmax, rest + sum(b for _, b in times), softmax)
    config = castling.ReLULinear()
    facts = ("cpu", 1, "2.15", ("naive",), (64, 64), 1)
    return Plan("model", config, *facts, layers, predicted)


def transformers_vit(classes, **options):
    """A small ViT of Hugging Face, with random weights; skips the test without transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=classes,
        **options,
    )
    return transformers.ViTForImageClassification(config).eval()
