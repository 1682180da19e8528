"""An exported file, opened in its runtime and called as a model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from castling.utils.files import parse_json


class ExportedModel(ABC):
    """An exported file in its runtime; each target has a subclass.

    Args:
        path: the file.
        target: name of the target that wrote it.
        metadata: as stored in the file, JSON text per key.
        input_shape: (batch, channels, height, width) of the file's input; None where any is
            accepted.
        output_names: in the order in which the runtime returns them.
        least: (height, width) below which the file does not run, in pixels.

    Attributes:
        metadata: decoded; ``input_size`` and ``multiple`` in every file that castling wrote,
            ``classes``, ``mean``, ``std`` and ``castling`` (the card) in those of saved models.
        multiple: height and width must be multiples of it, in pixels.
        least: smallest (height, width) that the file takes, in pixels.
    """

    def __init__(
        self,
        path: Path,
        target: str,
        metadata: Mapping[str, str],
        input_shape: Sequence[int | None],
        output_names: Sequence[str],
        least: tuple[int, int] = (1, 1),
    ) -> None:
        self.path, self.target = path, target
        self.metadata = {key: _decoded(text) for key, text in metadata.items()}
        self.input_shape, self.output_names = tuple(input_shape), tuple(output_names)
        self.multiple = int(self.metadata.get("multiple", 1))
        height, width = (-(-side // self.multiple) * self.multiple for side in least)
        self.least = (height, width)

    @abstractmethod
    def _bind(self, images: Tensor) -> Callable[[], Any]:
        """A call that runs the file once on ``images``; outputs are indexed by position."""

    def runner(self, images: Tensor) -> Callable[[], Any]:
        """A call without arguments that runs the file on ``images``, for timing.

        Nothing is converted or checked inside the call; the runtime reads the memory of ``images``
        where it can.

        Args:
            images: (B, 3, H, W) float32, kept alive by the call.

        Returns:
            a function whose result holds the runtime's own tensors or arrays, indexed by position
            in the order of ``output_names``.

        Raises:
            ValueError: the file does not accept images of this shape or precision.
        """
        self._require_accepted(images)
        return self._bind(images.detach().contiguous())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Named outputs for images (B, 3, H, W), float32.

        Raises:
            ValueError: the file does not accept images of this shape or precision.
        """
        found = self.runner(images)()
        return {name: torch.as_tensor(found[i]) for i, name in enumerate(self.output_names)}

    def _require_accepted(self, images: Tensor) -> None:
        """Refuse what the file was not verified for.

        Of sides that are no multiple of the patch, runtimes drop the rim without complaint.
        """
        if images.ndim != 4 or images.dtype != torch.float32:
            raise ValueError(
                f"{self.path} takes float32 images (batch, 3, height, width), "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        batch, channels, height, width = images.shape
        if channels != (self.input_shape[1] or channels):
            raise ValueError(
                f"{self.path} takes images of {self.input_shape[1]} channels, got {channels}"
            )
        if batch != (self.input_shape[0] or batch):
            raise ValueError(
                f"{self.path} was exported for batches of {self.input_shape[0]}, got {batch}: "
                "dynamic='batch' (castling export --dynamic batch) writes files for any batch"
            )
        for side, fixed in zip((height, width), self.input_shape[2:], strict=True):
            if side != (fixed or side):
                raise ValueError(
                    f"{self.path} was exported for one size and does not run at {height}×{width} "
                    "pixels: castling export --dynamic all writes files of any size"
                )
            if side % self.multiple:
                raise ValueError(
                    f"{self.path} wants height and width in multiples of {self.multiple}, "
                    f"got {height}×{width} pixels"
                )
        if height < self.least[0] or width < self.least[1]:
            raise ValueError(
                f"{self.path.name} takes images of at least {self.least[0]}×{self.least[1]} "
                f"pixels, got {height}×{width}: export for this size alone, with --size "
                f"{height}x{width} --dynamic batch, or to ONNX"
            )


def _decoded(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:  # the file was written by another program
        return text
