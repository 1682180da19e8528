"""Tasks: what a model is trained for. Loss, metrics, predictions, drawing; plain torch, no trainer.

Importing the package registers every task.
"""

from castling.tasks.classification import ClassificationConfig
from castling.tasks.detection import DetectionConfig
from castling.tasks.evaluation import EvaluateResult, evaluate_loader
from castling.tasks.interface import Step, Task, TaskConfig
from castling.tasks.prediction import Prediction
from castling.tasks.pretraining import PretrainingConfig
from castling.tasks.registry import (
    build_task,
    list_tasks,
    register_task,
    task_class,
    task_config_class,
    task_from_card,
    task_to_dict,
    with_task_options,
)
from castling.tasks.result import TrainResult
from castling.tasks.segmentation import SegmentationConfig

#: Configuration of recipes that name no task.
DEFAULT_TASK = ClassificationConfig

__all__ = [
    "DEFAULT_TASK",
    "DetectionConfig",
    "EvaluateResult",
    "Prediction",
    "PretrainingConfig",
    "SegmentationConfig",
    "Step",
    "Task",
    "TaskConfig",
    "TrainResult",
    "build_task",
    "evaluate_loader",
    "list_tasks",
    "register_task",
    "task_class",
    "task_config_class",
    "task_from_card",
    "task_to_dict",
    "with_task_options",
]
