"""Models at work: predicting, evaluated, switched on disk. Nothing here trains."""

from castling.deploy.evaluation import evaluate
from castling.deploy.exporting import export_saved
from castling.deploy.predictor import ImageLike, Predictor
from castling.deploy.saved_data import model_folder, run_data
from castling.deploy.switching import switch_saved

__all__ = [
    "ImageLike",
    "Predictor",
    "evaluate",
    "export_saved",
    "model_folder",
    "run_data",
    "switch_saved",
]
