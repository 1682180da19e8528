"""Models without their memory: for names and shapes of weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """The model that ``build`` makes, on the meta device where it can be built there."""
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, NotImplementedError):  # some constructors compute with tensors
        return build()
