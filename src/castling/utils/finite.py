"""Outputs that are not finite: found where they arise, and said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteOutputError(ValueError):
    """A model returned NaN or infinity.

    Args:
        message: where they arise.
        images: positions in the batch of the images concerned.
    """

    def __init__(self, message: str, images: Sequence[int]) -> None:
        super().__init__(message)
        self.images = tuple(images)


def non_finite_images(outputs: Any) -> Tensor:
    """Whether each image's outputs hold NaN or infinity: (B,) boolean.

    Args:
        outputs: tensors whose first dimension is the batch, in dictionaries or sequences.
    """
    broken: Tensor | None = None
    for tensor in _tensors(outputs):
        if tensor.is_floating_point() and tensor.dim():
            found = ~tensor.isfinite().flatten(1).all(1) if tensor.dim() > 1 else ~tensor.isfinite()
            broken = found if broken is None else broken | found
    return torch.zeros(0, dtype=torch.bool) if broken is None else broken


@contextmanager
def finite_outputs(model: nn.Module) -> Iterator[None]:
    """Check every output of ``model`` within the context.

    Raises:
        NonFiniteOutputError: an output holds NaN or infinity; the message names the first layer
            whose own output does, found by a second pass over the same images.
    """

    def check(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        broken = non_finite_images(output)
        if bool(broken.any()):
            handle.remove()
            raise NonFiniteOutputError(
                f"the model's outputs are not finite for {int(broken.sum())} of {len(broken)} "
                f"images of a batch: {explain_non_finite(module, *args)}",
                broken.nonzero().flatten().tolist(),
            )

    handle = model.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def explain_non_finite(model: nn.Module, *args: Any) -> str:
    """Where NaN or infinity first arises when ``model`` is called, in words."""
    if _broken(args):
        return "the images themselves hold NaN or infinity"
    names = {module: name for name, module in model.named_modules()}
    first: list[str] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not first and _broken(output):
            first.append(_described(names[module], module, _broken(inputs)))

    # Children end before their parents, so that the first found is the innermost.
    handles = [module.register_forward_hook(note) for module in names if module is not model]
    try:
        model(*args)
    finally:
        for handle in handles:
            handle.remove()
    return first[0] if first else f"they arise in {type(model).__name__} itself"


def _described(name: str, module: nn.Module, reached: bool) -> str:
    parent = name.rpartition(".")[0]
    if reached:  # by what its parent computes between its children
        return f"they arise in {parent or 'the model'}, before {name} ({type(module).__name__})"
    text = f"they arise in {name} ({type(module).__name__})"
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    broken = [n for n, t in own if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        return f"{text}, whose {', '.join(broken)} holds NaN or infinity"
    half = {t.dtype for _, t in own} & {torch.float16}
    return f"{text}{', which computes in float16: try bfloat16 or float32' if half else ''}"


def _broken(value: Any) -> bool:
    return any(
        not tensor.isfinite().all() for tensor in _tensors(value) if tensor.is_floating_point()
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested dictionaries and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
