"""From samples to batches: one file per task, on torchvision's transforms v2."""

from castling.data.transforms.classification import (
    EvalTransform,
    TrainTransform,
    Transform,
    eval_transform,
    sample_keys_of,
    train_transform,
)

__all__ = [
    "EvalTransform",
    "TrainTransform",
    "Transform",
    "eval_transform",
    "sample_keys_of",
    "train_transform",
]
