"""BatchNorm statistics re-estimated before an evaluation (QT-ViT, EfficientViT)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from castling.train.module import TrainingModule
from castling.utils.modes import eval_mode


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace running means and variances by plain averages over ``batches``.

    Only the BatchNorm layers run in training mode; everything else, dropout included, runs in
    evaluation mode. Momentum and modes are restored afterwards.

    Args:
        model: changed in place.
        batches: images (B, 3, H, W).
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    if not layers:
        return
    momenta = {layer: layer.momentum for layer in layers}
    with eval_mode(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # None: cumulative average
            layer.train()
        try:
            for images in batches:
                model(images)
        finally:
            for layer, momentum in momenta.items():
                layer.momentum = momentum


class BatchNormStatistics(Callback):
    """Re-estimates before each evaluation and restores afterwards; training is unaffected.

    Args:
        images: number of training images, at least one batch.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self.saved: dict[str, Tensor] = {}

    def on_validation_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Estimate on training images of this process."""
        model = module.evaluated
        names = ("running_mean", "running_var", "num_batches_tracked")
        self.saved = {
            name: value.clone()
            for name, value in model.state_dict().items()
            if name.split(".")[-1] in names
        }
        reestimate_batchnorm(model, training_images(module, self.images))

    def on_validation_end(self, trainer: Trainer, module: TrainingModule) -> None:
        """Restore the running statistics of training."""
        module.evaluated.load_state_dict(self.saved, strict=False)
        self.saved = {}


def training_images(module: TrainingModule, images: int) -> Iterable[Tensor]:
    """Batches (B, 3, H, W) of at least ``images`` training images in all, the same each time."""
    seen = 0
    for batch in module.data.loader("train", training=True):
        yield module.task.preprocess(batch.images.to(module.device))
        seen += len(batch)
        if seen >= images:
            return
