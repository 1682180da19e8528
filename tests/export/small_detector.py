"""Detectors for the tests of exports: a small one, and weights that find distinct things."""

import torch
from torch import nn
from torch.nn.functional import interpolate

from castling.heads import Detector
from castling.heads.selection import best_pairs, clip_boxes, keep_best, take

STRIDE = 8


class Cells(Detector):
    """A box around each cell of 8 pixels, several classes; exported in seconds."""

    multiple = STRIDE
    detections = 20

    def __init__(self, num_classes=3, threshold=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.num_classes, self.threshold = num_classes, threshold
        self.conv = nn.Conv2d(3, 8, STRIDE, stride=STRIDE)
        self.act = nn.Hardswish(inplace=True)
        self.head = nn.Conv2d(8, num_classes + 4, 1)

    def forward(self, images):
        return {"cells": self.head(self.act(3 * self.conv(images)))}

    def decode(self, raw, size, valid=None):
        cells = raw["cells"]
        ys, xs = (STRIDE * torch.arange(side) for side in cells.shape[-2:])
        middles = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).flatten(0, 1)
        cells = cells.flatten(2).transpose(1, 2)
        best = best_pairs(cells[..., :-4].sigmoid(), self.threshold, 50)
        middle = middles[best.places]
        sides = 16 * take(cells[..., -4:], best.places).exp()
        boxes = torch.cat((middle - sides[..., :2], middle + sides[..., 2:]), -1)
        return keep_best(
            clip_boxes(boxes, size, valid),
            best.scores,
            best.labels,
            threshold=0.5,
            keep=self.detections,
            num_classes=self.num_classes,
        )


def smooth_images(count, side, seed=0):
    """Noise of large spots: (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, side // 8, side // 8, generator=generator)
    return 2 * interpolate(noise, size=(side, side), mode="bicubic")


def distinct_(model):
    """Give an untrained detector statistics and weights by which its scores differ."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.momentum = None  # the mean over all batches
            module.reset_running_stats()
    model.train()
    with torch.no_grad():
        for seed in range(2):
            model(smooth_images(4, 192, seed))
    return model.eval()
