"""From layers back to pixels: receptive fields and class activation of a whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from castling.conversion.outputs import has_classes, model_output
from castling.explanation.figures import Grid, fitting_grid
from castling.explanation.gradients import as_map, class_activation, half_area, receptive_field
from castling.explanation.recording import first_tensor
from castling.explanation.result import ImageExplanation, ReceptiveField
from castling.surgery.grid_watch import tokens_among
from castling.surgery.tap import AttentionCall, Taps, tap
from castling.utils.modes import out_of_place


class PixelSide:
    """What gradients say of a model, image by image.

    Args:
        model: in evaluation mode.
        layers: names of its attentions, in order of execution.
        labels: names of its classes, in order; None where it has none or they are not known.

    Attributes:
        notes: what could not be told, and why.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], labels: list[str] | None) -> None:
        self.model, self.layers, self.labels = model, layers, labels
        self.notes: list[str] = []
        self._sums: dict[str, Tensor] = {}
        self._images = 0

    def see(
        self, image: Tensor, name: str, query: dict[str, Tensor], rollout: Tensor | None
    ) -> ImageExplanation:
        """Add one image (1, 3, H, W) to the receptive fields; what the model made of it.

        Args:
            image: normalised.
            name: of the image.
            query: maps of attention, which are handed on.
            rollout: likewise.
        """
        self._images += 1
        leaf = image.detach().clone().requires_grad_()
        with torch.enable_grad(), out_of_place(self.model), tap(self.model, self.layers) as taps:
            try:
                output: Tensor | None = model_output(self.model, leaf)
            except TypeError:  # a dense model's dictionary
                output = None
            self._add_fields(taps, leaf)
            seen = ImageExplanation(name=name, query=query, rollout=rollout)
            if output is None or not self._classifies(output):
                self._note("no class activation: the model gives no scores of classes")
                return seen
            scores = output[0].detach().double().softmax(dim=-1)
            best = int(scores.argmax())
            heat, layer = self._activation(taps, output[0, best])
        return dataclasses.replace(
            seen,
            predicted=best,
            label=self._label(best, len(scores)),
            probability=float(scores[best]),
            activation=heat,
            activation_layer=layer,
        )

    def fields(self) -> tuple[ReceptiveField, ...]:
        """Means over the images seen, in order of execution."""
        found = []
        for name, total in self._sums.items():
            if total.any():
                field = total / self._images
                found.append(ReceptiveField(layer=name, field=field, half_area=half_area(field)))
            else:
                self._note(f"no receptive field of {name}: no pixel moves its output")
        return tuple(found)

    def _add_fields(self, taps: Taps, leaf: Tensor) -> None:
        for name in self.layers:
            tokens = _central(taps[name][0]) if name in taps else None
            if tokens is None:
                self._note(f"no receptive field of {name}: its central position is not known")
                continue
            field = receptive_field(tokens, leaf).double().cpu()
            self._sums[name] = self._sums[name] + field if name in self._sums else field

    def _classifies(self, output: Tensor) -> bool:
        named = self.labels is not None and output.shape[1:] == (len(self.labels),)
        return output.dim() == 2 and (named or has_classes(self.model, output))

    def _label(self, best: int, count: int) -> str:
        fits = self.labels is not None and len(self.labels) == count
        return self.labels[best] if fits and self.labels else f"class {best}"

    def _activation(self, taps: Taps, score: Tensor) -> tuple[Tensor | None, str]:
        """Of the input of the last attention through which the score depends on patches."""
        for name in reversed(self.layers):
            call = taps[name][0] if name in taps else None
            tokens = None if call is None else tokens_among(call.args, call.kwargs)
            if call is None or call.grid is None or not isinstance(tokens, Tensor):
                continue
            if not tokens.requires_grad:
                continue
            found = torch.autograd.grad(score, tokens, retain_graph=True, allow_unused=True)[0]
            inside = None if found is None else as_map(found, call.grid)
            values = as_map(tokens.detach(), call.grid)
            if inside is not None and values is not None and inside.any():
                return class_activation(values, inside).cpu(), name
        self._note("no class activation: no attention's input has a known grid")
        return None, ""

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _central(call: AttentionCall) -> Tensor | None:
    """(C,) of the central position of one image's output; None where the grid is not known."""
    output, grid = first_tensor(call.output), call.grid
    if output.dim() == 4:
        middle = as_map(output, grid or (output.shape[-2], output.shape[-1]))
        middle = output[0] if middle is None else middle
        return middle[:, middle.shape[1] // 2, middle.shape[2] // 2]
    tokens = tokens_among(call.args, call.kwargs)
    if output.dim() != 3 or grid is None or not isinstance(tokens, Tensor):
        return None
    prefix = _prefix_of(tokens, grid)
    after = fitting_grid(output.shape[1] - prefix, grid)
    if after is None or len(output) != 1:
        return None
    return output[0, prefix + after[0] // 2 * after[1] + after[1] // 2]


def _prefix_of(tokens: Tensor, grid: Grid) -> int:
    """Tokens (1, N, C) in front of the grid; maps have none."""
    return tokens.shape[1] - grid[0] * grid[1] if tokens.dim() == 3 else 0


def pictures_of(
    model: nn.Module, images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Tensor:
    """The images as uint8: the normalisation undone, or stretched where it is not known."""
    described = getattr(model, "pretrained_cfg", None) or {}
    mean, std = mean or described.get("mean"), std or described.get("std")
    plain = images.detach().float().cpu()
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        plain = plain * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    else:
        low = plain.amin(dim=(1, 2, 3), keepdim=True)
        high = plain.amax(dim=(1, 2, 3), keepdim=True)
        plain = (plain - low) / (high - low).clamp(min=1e-12)
    return (plain.clamp(0, 1) * 255).round().to(torch.uint8)
