"""Images for classification: sources, splits, checks, augmentation and loaders."""

from castling.data.config import AugmentConfig, DataConfig
from castling.data.dataset import ImageSet
from castling.data.decode import open_image, to_rgb
from castling.data.errors import DataError
from castling.data.images import ImageData, open_images
from castling.data.loading import Loaders, loaders
from castling.data.mixing import mixes, mixup_batch
from castling.data.sampler import BatchKey, EpochBatches
from castling.data.transforms import (
    EvalTransform,
    TrainTransform,
    eval_transform,
    train_transform,
)

__all__ = [
    "AugmentConfig",
    "BatchKey",
    "DataConfig",
    "DataError",
    "EpochBatches",
    "EvalTransform",
    "ImageData",
    "ImageSet",
    "Loaders",
    "TrainTransform",
    "eval_transform",
    "loaders",
    "mixes",
    "mixup_batch",
    "open_image",
    "open_images",
    "to_rgb",
    "train_transform",
]
