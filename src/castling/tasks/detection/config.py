"""Options of detection; those of the head, its losses among them, are the model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from castling.tasks.interface import TaskConfig


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(TaskConfig):
    """Objects of an image, each with its box, and its mask where the head gives masks."""

    name: ClassVar[str] = "detection"
