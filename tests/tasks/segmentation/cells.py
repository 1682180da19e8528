"""A small segmenter: one score of each class per cell of 4 pixels, which see their neighbours."""

import torch
from torch import nn

from castling.heads import Segmenter

STRIDE = 4


class Cells(Segmenter):
    multiple = STRIDE

    def __init__(self, num_classes=3, context=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.num_classes = num_classes
        self.conv = nn.Conv2d(3, 8, STRIDE, stride=STRIDE)
        self.head = nn.Conv2d(8, num_classes, context, padding=context // 2)
        nn.init.normal_(self.head.weight, std=1.0)
        self.calls = []

    def forward(self, images):
        self.calls.append(tuple(images.shape))
        return {"logits": self.head(self.conv(images).relu())}
