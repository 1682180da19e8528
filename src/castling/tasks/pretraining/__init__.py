"""Pre-training from images alone: masked autoencoding, and features of a teacher."""

from castling.tasks.pretraining.config import PretrainingConfig
from castling.tasks.pretraining.prediction import PretrainingPrediction
from castling.tasks.pretraining.task import PretrainingTask

__all__ = ["PretrainingConfig", "PretrainingPrediction", "PretrainingTask"]
