"""How long and how fast each stage of a conversion learns."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch

Outputs = Literal["auto", "logits", "features"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionConfig:
    """Three stages, each of which may be left out by giving it no images.

    A view is one image seen once in one step. The defaults are for small models on a CPU;
    :meth:`for_device` has those of a GPU.

    Attributes:
        closed_form_images: of stage 0, which solves each output projection by ridge regression on
            the teacher's outputs.
        ridges: weights of the pull to the pretrained projection, in parts of the mean square of its
            inputs; of these, every layer takes the one that carries over best from one half of the
            images to the other.
        layer_views: of stage 1, in which every attention learns its teacher's outputs from its
            teacher's inputs, all layers at once.
        layer_lr: of the pretrained projections in stage 1.
        new_lr: of parameters that the new attention brings, in stage 1.
        model_views: of stage 2, in which the whole model learns the teacher's outputs.
        attention_lr: of attention layers in stage 2.
        rest_lr: of everything else in stage 2.
        outputs: what stage 2 compares: ``"logits"`` by the KL divergence, ``"features"`` by cosine
            and smooth L1; ``"auto"`` takes logits where the model has classes.
        temperature: of the KL divergence.
        rank: of corrections to the linear layers that stage 2 learns in the place of all weights;
            0 learns the weights themselves. For models whose optimiser's state would not fit in
            memory, or for few images.
        weight_decay: of stage 2.
        clip: largest norm of all gradients of a step.
        warmup: part of each stage in which its learning rates rise; they then fall as a cosine.
        held_out: images from the front of the data, for the figures. No stage learns from them, if
            the data begin with the same images whenever they are read.
    """

    closed_form_images: int = 64
    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    layer_views: int = 10_000
    layer_lr: float = 1e-3
    new_lr: float = 2e-3
    model_views: int = 10_000
    attention_lr: float = 2e-4
    rest_lr: float = 3e-5
    outputs: Outputs = "auto"
    temperature: float = 2.0
    rank: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: float = 0.05
    held_out: int = 64

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        for name in ("closed_form_images", "layer_views", "model_views", "rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("layer_lr", "new_lr", "attention_lr", "rest_lr", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.closed_form_images == 1:
            raise ValueError("closed_form_images must be 0 or at least 2: halves are compared")
        if not self.ridges or min(self.ridges) <= 0:
            raise ValueError(f"ridges must be positive, one at least, got {self.ridges}")
        for name in ("temperature", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.held_out < 1:
            raise ValueError(f"held_out must be at least 1, got {self.held_out}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), got {self.warmup}")
        if self.outputs not in ("auto", "logits", "features"):
            raise ValueError(
                f'outputs must be "auto", "logits" or "features", got {self.outputs!r}'
            )

    @classmethod
    def for_device(cls, device: str | torch.device) -> ConversionConfig:
        """The defaults for where the conversion runs.

        On a GPU 100,000 views a stage (batches of 256 are meant) and faster learning layer by
        layer, slower end to end, as those who converted large models report; not measured here.
        """
        if torch.device(device).type == "cpu":
            return cls()
        return cls(
            closed_form_images=512,
            layer_views=100_000,
            new_lr=1e-2,
            model_views=100_000,
            attention_lr=1e-4,
            rest_lr=1e-5,
            held_out=512,
        )

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return dataclasses.asdict(self)
