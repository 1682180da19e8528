"""Evaluation mode for a while, every module's own mode given back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def kept_in_eval(model: nn.Module) -> Iterator[None]:
    """Within the context ``model`` is in evaluation mode; afterwards each module is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Parents come first, so children that differ from them get their own mode back. train() is
        # called, not the attribute set: timm's LeViT drops its bias cache there.
        for module, mode in modes:
            if module.training != mode:
                module.train(mode)
