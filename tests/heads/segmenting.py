"""Segmenters for tests: small, with weights of which every one matters."""

import torch
from torch import nn

from castling import create_model
from castling.heads import IGNORED

#: Heads of semantic segmentation, and options that switch every part on.
HEADS = {
    "semantic_fpn": {},
    "efficientvit_head": {"final_expansion": 2},
    "upernet": {"auxiliary": True},
    "mask2former": {},
}


def build(head, backbone="test_resnet", num_classes=5, **options):
    """A test-sized segmenter whose outputs differ from place to place."""
    model = create_model(
        f"{head}_pico/{backbone}", num_classes=num_classes, head={**HEADS[head], **options}
    )
    return varied(model)


@torch.no_grad()
def varied(module):
    """Add noise to all weights: some start at 0, and all classes alike."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.abs().max() < 0.1:
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    return module


def labels(batch=2, height=64, width=96, num_classes=5, ignored=0.3):
    """(B, H, W) rectangles of labels in cells of 8 pixels, some of no class."""
    cells = torch.randint(num_classes, (batch, height // 8, width // 8))
    cells[torch.rand(cells.shape) < ignored] = IGNORED
    return cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
