"""Callbacks of the trainer, each on one idea."""

from castling.train.callbacks.auxiliary import AuxiliarySchedule
from castling.train.callbacks.average import WeightAverage
from castling.train.callbacks.batchnorm import BatchNormStatistics, reestimate_batchnorm
from castling.train.callbacks.checkpoint import Checkpoints, TrainingInterrupted
from castling.train.callbacks.drop_path import DropPathRamp
from castling.train.callbacks.finite import NonFiniteLossError, StopOnNonFiniteLoss
from castling.train.callbacks.history import History
from castling.train.callbacks.progress import Progress

__all__ = [
    "AuxiliarySchedule",
    "BatchNormStatistics",
    "Checkpoints",
    "DropPathRamp",
    "History",
    "NonFiniteLossError",
    "Progress",
    "StopOnNonFiniteLoss",
    "TrainingInterrupted",
    "WeightAverage",
    "reestimate_batchnorm",
]
