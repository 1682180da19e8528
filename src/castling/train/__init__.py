"""Training: recipes, the engine that follows them, evaluation."""

from castling.tasks.result import TrainResult
from castling.train.callbacks import NonFiniteLossError, TrainingInterrupted
from castling.train.dry_run import dry_run
from castling.train.evaluation import EvaluateResult, evaluate
from castling.train.recipe import (
    ClipConfig,
    EmaConfig,
    HardwareConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    RegularizeConfig,
    SaveConfig,
    ScheduleConfig,
    SwitchConfig,
)
from castling.train.recipe_file import (
    load_recipe,
    parse_recipe,
    recipe_from_dict,
    recipe_from_namespace,
    recipe_parser,
    recipe_to_dict,
    recipe_to_yaml,
)
from castling.train.trainer import train

__all__ = [
    "ClipConfig",
    "EmaConfig",
    "EvaluateResult",
    "HardwareConfig",
    "ModelConfig",
    "NonFiniteLossError",
    "OptimConfig",
    "Recipe",
    "RegularizeConfig",
    "SaveConfig",
    "ScheduleConfig",
    "SwitchConfig",
    "TrainResult",
    "TrainingInterrupted",
    "dry_run",
    "evaluate",
    "load_recipe",
    "parse_recipe",
    "recipe_from_dict",
    "recipe_from_namespace",
    "recipe_parser",
    "recipe_to_dict",
    "recipe_to_yaml",
    "train",
]
