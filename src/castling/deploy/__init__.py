"""Models at work: predicting, switched on disk."""

from castling.deploy.classifier import OnnxModel, model_folder, open_classifier
from castling.deploy.prediction import Prediction, predict
from castling.deploy.switching import switch_saved

__all__ = [
    "OnnxModel",
    "Prediction",
    "model_folder",
    "open_classifier",
    "predict",
    "switch_saved",
]
