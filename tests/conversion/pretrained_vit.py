"""A small teacher, its images, and plans of it."""

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
