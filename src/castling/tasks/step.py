"""What a task is given: its options, the recipe around them, and where training stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import nn


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Base of all task configurations; subclasses set ``name`` and add their options."""

    name: ClassVar[str] = ""


class Step(NamedTuple):
    """Where training stands; the only thing that random choices of a task may depend on.

    Attributes:
        seed: of the run.
        epoch: from 0.
        batch: position in the epoch, from 0.
        rank: number of this process.
        progress: share of all steps done, in [0, 1].
        averaged: the moving average of the model, where and when it takes part in the loss.
    """

    seed: int = 0
    epoch: int = 0
    batch: int = 0
    rank: int = 0
    progress: float = 0.0
    averaged: nn.Module | None = None


class RecipeLike(Protocol):
    """The parts of a recipe that a task may look at before anything is opened."""

    @property
    def task(self) -> Any:
        """The task's configuration."""

    @property
    def model(self) -> Any:
        """The model's section."""

    @property
    def data(self) -> Any:
        """The data section."""

    @property
    def ema(self) -> Any:
        """The section of the moving average."""
