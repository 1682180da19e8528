"""Callbacks of the trainer, each on one idea."""

from castling.train.callbacks.auxiliary import AuxiliarySchedule
from castling.train.callbacks.average import WeightAverage
from castling.train.callbacks.batchnorm import BatchNormStatistics, reestimate_batchnorm
from castling.train.callbacks.best import BestWeights
from castling.train.callbacks.checkpoint import Checkpoints
from castling.train.callbacks.drop_path import DropPathRamp
from castling.train.callbacks.early_stopping import EarlyStopping
from castling.train.callbacks.finite import NonFiniteLossError, StopOnNonFiniteLoss
from castling.train.callbacks.history import History
from castling.train.callbacks.progress import Progress

__all__ = [
    "AuxiliarySchedule",
    "BatchNormStatistics",
    "BestWeights",
    "Checkpoints",
    "DropPathRamp",
    "EarlyStopping",
    "History",
    "NonFiniteLossError",
    "Progress",
    "StopOnNonFiniteLoss",
    "WeightAverage",
    "reestimate_batchnorm",
]
