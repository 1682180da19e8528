"""Training and evaluation modes of modules, restored after temporary changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def preserve_modes(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every module of ``model`` when the context ends."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        # Parents come first, so children that differ from them get their own mode back. train() is
        # called instead of setting the attribute: timm's LeViT drops its bias cache there.
        for module, mode in modes:
            if module.training != mode:
                module.train(mode)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode within the context; restore every module afterwards."""
    with preserve_modes(model):
        model.eval()
        yield


@contextlib.contextmanager
def out_of_place(model: nn.Module) -> Iterator[None]:
    """Within the context, activations of ``model`` do not overwrite their input.

    PyTorch's exporters decompose in-place operators one by one, which takes them several times as
    long; the result is the same.
    """
    changed = [module for module in model.modules() if getattr(module, "inplace", False) is True]

    def set_all(inplace: bool) -> None:
        for module in changed:
            setattr(module, "inplace", inplace)  # noqa: B010  # modules in general have none

    set_all(False)
    try:
        yield
    finally:
        set_all(True)
