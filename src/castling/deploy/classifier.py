"""Trained classifiers as they are used: from a run, a saved model or an ONNX file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from castling.models.saved import CARD, ModelCard, open_model


class OnnxModel(nn.Module):
    """An ONNX file, called as a PyTorch model is; computes on the CPU in ONNX Runtime.

    Args:
        path: the file.

    Raises:
        ModuleNotFoundError: onnxruntime is missing.
        ValueError: the file is not an ONNX model.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "running an ONNX file needs onnxruntime: pip install 'castling[export]'"
            ) from error
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(f"{path} is not an ONNX model that can be run: {error}") from error
        self.path = str(path)
        self.input_name: str = self.session.get_inputs()[0].name
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.multiple = int(self.metadata.get("multiple", 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, classes).

        Raises:
            ValueError: the file is not made for images of this size. Of sides that are no multiple
                of the patch it would drop a rim where PyTorch refuses, so that is asked here.
        """
        height, width = images.shape[-2:]
        shape = self.session.get_inputs()[0].shape
        for side, fixed in ((height, shape[2]), (width, shape[3])):
            if isinstance(fixed, int) and side != fixed:
                raise ValueError(
                    f"{self.path} was exported for one size and does not run at {height}×{width} "
                    "pixels: castling export --dynamic all writes files of any size"
                )
            if side % self.multiple:
                raise ValueError(
                    f"{self.path} wants height and width in multiples of {self.multiple}, "
                    f"got {height}×{width} pixels"
                )
        return torch.from_numpy(self.session.run(None, {self.input_name: images.numpy()})[0])


def model_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of the model to use in a run: the switched one where there is one.

    A folder that is no run, or that holds no switched model, is given back as it is.
    """
    folder = Path(path)
    switched = folder / "switched"
    return switched if (switched / CARD).is_file() else folder


def open_classifier(path: str | os.PathLike[str]) -> tuple[nn.Module, ModelCard]:
    """Open what ``castling train`` or ``castling export`` wrote.

    Args:
        path: a run's folder (its switched model is taken where there is one), a saved model's
            folder, or an ONNX file.

    Returns:
        the model in evaluation mode, and what is needed to feed it.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: the file was not written by castling, or holds no class names.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        return open_model(model_folder(path))
    if not path.is_file():
        raise FileNotFoundError(f"no such ONNX file: {path}")
    model = OnnxModel(path)
    text = model.metadata.get("castling")
    if text is None:
        raise ValueError(
            f"{path} holds no classes and normalisation; castling export of a saved model "
            "puts them in"
        )
    values: dict[str, Any] = json.loads(text)
    return model.eval(), ModelCard.from_dict(values)
