"""What is compared when a model is changed: its raw outputs, and what is concluded from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor, nn

Outputs = dict[str, Tensor]


class Compared(Protocol):
    """What :func:`castling.switch_` and :func:`castling.fold_` ask of a task; every task is one."""

    def raw_outputs(self, model: nn.Module, images: Tensor) -> Outputs:
        """Tensors (B, …) for images (B, 3, H, W), continuous functions of them."""
        ...

    def postprocess(self, model: nn.Module, raw: Outputs, size: tuple[int, int]) -> Outputs:
        """What is concluded from raw outputs for images of (height, width)."""
        ...

    def agreement(self, before: Outputs, after: Outputs) -> Tensor | None:
        """(B,) share in [0, 1] of the conclusions that are the same; None without such a notion."""
        ...


class ModelOutputs:
    """Of any model: all tensors that it returns; it concludes the best class from one (B, K)."""

    def raw_outputs(self, model: nn.Module, images: Tensor) -> Outputs:
        """The tensors in what the model returns, by their place."""
        return named_tensors(model(images))

    def postprocess(self, model: nn.Module, raw: Outputs, size: tuple[int, int]) -> Outputs:
        """The same."""
        return raw

    def agreement(self, before: Outputs, after: Outputs) -> Tensor | None:
        """(B,) 1 where the best class is the same, for a model that returns one tensor (B, K)."""
        if list(before) != [""] or before[""].dim() != 2:
            return None
        return (before[""].argmax(1) == after[""].argmax(1)).float()


def named_tensors(output: Any) -> Outputs:
    """The tensors in a model's output: ``""`` for one alone, else by their place."""
    if isinstance(output, Tensor):
        return {"": output}
    return {str(index): tensor for index, tensor in enumerate(tensors_in(output))}


def tensors_in(output: Any) -> Iterable[Tensor]:
    """The tensors in nested containers and dataclasses."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for part in output.values():
            yield from tensors_in(part)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from tensors_in(part)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        yield from tensors_in(vars(output))


def first_tensor(output: Any) -> Tensor | None:
    """The first of :func:`tensors_in`: some layers return a grid or weights beside their tokens."""
    return next(iter(tensors_in(output)), None)
