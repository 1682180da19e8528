"""Training: recipes, and the engine that follows them."""

from castling.tasks.result import TrainResult
from castling.train.build import open_data
from castling.train.callbacks import NonFiniteLossError
from castling.train.dry_run import dry_run
from castling.train.optim_config import (
    ClipConfig,
    EmaConfig,
    OptimConfig,
    RegularizeConfig,
    ScheduleConfig,
)
from castling.train.recipe import (
    EarlyStoppingConfig,
    HardwareConfig,
    ModelConfig,
    Recipe,
    SaveConfig,
    SwitchConfig,
)
from castling.train.recipe_file import (
    load_recipe,
    parse_recipe,
    recipe_changes,
    recipe_from_dict,
    recipe_to_dict,
    recipe_to_yaml,
)
from castling.train.recipe_parser import parse_flags, recipe_parser
from castling.train.run_lock import RunLockedError
from castling.train.stopping import TrainingInterrupted
from castling.train.trainer import train
from castling.train.tune import (
    BatchSizeFound,
    LearningRateFound,
    find_batch_size,
    find_learning_rate,
)

__all__ = [
    "BatchSizeFound",
    "ClipConfig",
    "EarlyStoppingConfig",
    "EmaConfig",
    "HardwareConfig",
    "LearningRateFound",
    "ModelConfig",
    "NonFiniteLossError",
    "OptimConfig",
    "Recipe",
    "RegularizeConfig",
    "RunLockedError",
    "SaveConfig",
    "ScheduleConfig",
    "SwitchConfig",
    "TrainResult",
    "TrainingInterrupted",
    "dry_run",
    "find_batch_size",
    "find_learning_rate",
    "load_recipe",
    "open_data",
    "parse_flags",
    "parse_recipe",
    "recipe_changes",
    "recipe_from_dict",
    "recipe_parser",
    "recipe_to_dict",
    "recipe_to_yaml",
    "train",
]
