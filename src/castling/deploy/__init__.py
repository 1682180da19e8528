"""Models at work: exported, verified, predicting."""

from castling.deploy.classifier import OnnxModel, model_folder, open_classifier
from castling.deploy.onnx_export import export
from castling.deploy.onnx_verification import ExportError, ExportReport, ShapeCheck
from castling.deploy.prediction import Prediction, predict
from castling.deploy.switching import switch_saved

__all__ = [
    "ExportError",
    "ExportReport",
    "OnnxModel",
    "Prediction",
    "ShapeCheck",
    "export",
    "model_folder",
    "open_classifier",
    "predict",
    "switch_saved",
]
