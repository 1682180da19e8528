"""A model with named outputs: what is traced, written to a file and compared with it.

Of a detector these are its detections, whole: after decoding and suppression. They are compared as
sets, since runtimes may order equal scores differently. Of a segmenter these are its scores and the
label of every pixel, of which nearly all must be the same: at borders the last bit decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from castling.heads.agreement import LEAST_AGREEMENT
from castling.heads.detector import Detector
from castling.heads.matching import DetectorOutputs
from castling.heads.segmenter import Segmenter
from castling.heads.segmenter_outputs import SegmenterOutputs

#: (model, images (B, 3, H, W)) -> named tensors; ``outputs`` of a task is one.
RawOutputs = Callable[[nn.Module, Tensor], dict[str, Tensor]]

#: Name of the input in every exported file.
INPUT = "images"


def default_raw_outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What a model returns, named by :func:`name_outputs`."""
    return name_outputs(model(images))


def name_outputs(result: Any) -> dict[str, Tensor]:
    """Name what a model returned.

    Returns:
        ``{"logits": …}`` for one tensor (B, K), ``{"output": …}`` for one tensor of another rank;
        the model's own keys for a dictionary; ``output_0``, ``output_1``, … for a tuple or list.

    Raises:
        TypeError: the model returns something else.
    """
    named: dict[str, Any]
    if isinstance(result, Tensor):
        named = {"logits" if result.ndim == 2 else "output": result}
    elif isinstance(result, Mapping):
        named = {str(name): value for name, value in result.items()}
    elif isinstance(result, tuple | list):
        named = {f"output_{index}": value for index, value in enumerate(result)}
    else:
        named = {"output": result}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                "export needs a model that returns a tensor, or a dictionary or tuple of tensors; "
                f"{name} is {type(value).__name__}: pass raw_outputs=, a function "
                "(model, images) -> dict of tensors"
            )
    return named


class Outputs(Protocol):
    """What :func:`castling.export` asks of a task; every task is one."""

    @property
    def least_agreement(self) -> float:
        """Share of :meth:`agreement` that a file must reach, where outputs are aligned."""
        ...

    def outputs(self, model: Any, images: Tensor) -> dict[str, Tensor]:
        """Tensors (B, …) for normalised images (B, 3, H, W)."""
        ...

    def agreement(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor | None:
        """(B,) share in [0, 1] of what both say; None where there is no such notion."""
        ...

    def align(
        self, before: dict[str, Tensor], after: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both, to be compared element by element; of sets, what both hold."""
        ...


class PlainOutputs:
    """Of models without a task.

    Args:
        raw_outputs: names them; None is :func:`default_raw_outputs`.
    """

    least_agreement = LEAST_AGREEMENT

    def __init__(self, raw_outputs: RawOutputs | None = None) -> None:
        self.outputs = raw_outputs or default_raw_outputs

    def agreement(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        """No notion of it."""

    def align(
        self, before: dict[str, Tensor], after: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As they are."""
        return before, after


def outputs_of(
    model: nn.Module, raw_outputs: RawOutputs | None = None, task: Outputs | None = None
) -> Outputs:
    """What is exported: as asked for, else as the task says, else as the kind of model says."""
    if raw_outputs is not None:
        return PlainOutputs(raw_outputs)
    if task is not None:
        return task
    if isinstance(model, Detector):
        return DetectorOutputs()
    return SegmenterOutputs() if isinstance(model, Segmenter) else PlainOutputs()


class NamedOutputs(nn.Module):
    """A model whose forward returns a dictionary of tensors.

    Args:
        model: takes images (B, 3, H, W).
        outputs: names its outputs; None is that of :func:`outputs_of`.
    """

    def __init__(self, model: nn.Module, outputs: RawOutputs | None = None) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs or outputs_of(model).outputs
        parameter = next(model.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        # A new module starts in training mode; the model's own mode is not changed here.
        self.training = model.training

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Named outputs of images (B, 3, H, W), in a fixed order."""
        return dict(self.outputs(self.model, images))
