"""PicoDet whose outputs vary as after training, without training it."""

import torch
from torch import nn


@torch.no_grad()
def spread_out(model, side=128):
    """In evaluation mode: statistics of BatchNorm as they are, logits around -1.5 and distinct."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.reset_running_stats()
            module.momentum = None  # averages over all batches
    for _ in range(8):
        model.train()(torch.randn(4, 3, side, side))
    raw = model.eval()(torch.randn(16, 3, side, side))
    for stride, layer in zip(model.strides, model.head.outputs, strict=True):
        for name, rows in (
            ("logits", slice(None, model.num_classes)),
            ("bins", slice(model.num_classes, None)),
        ):
            spread = raw[f"{name}_{stride}"] - layer.bias[rows].mean()
            layer.weight[rows] *= 3 / spread.abs().max()
            layer.bias[rows] = -1.5 if name == "logits" else 0
    return model
