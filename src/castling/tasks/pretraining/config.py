"""Options of pre-training; what is hidden and what is learned are options of the model's head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from castling.tasks.interface import TaskConfig


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig(TaskConfig):
    """Nothing but images; whatever targets they have is ignored."""

    name: ClassVar[str] = "pretraining"
