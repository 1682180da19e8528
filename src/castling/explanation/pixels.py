"""From layers back to pixels: receptive fields and class activation of a whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from castling.conversion.outputs import has_classes, model_output
from castling.explanation.choice import likely_grid_of, said_prefix
from castling.explanation.figures import Grid, fitting_grid
from castling.explanation.gradients import as_map, class_activation, half_area, receptive_field
from castling.explanation.records import ImageExplanation, ReceptiveField
from castling.surgery.compared import first_tensor
from castling.surgery.grid_watch import tokens_among
from castling.surgery.linearize_report import grouped
from castling.surgery.selection import owner_of
from castling.surgery.tap import AttentionCall, Taps, tap
from castling.utils.modes import out_of_place


class PixelSide:
    """What gradients say of a model, image by image.

    Args:
        model: in evaluation mode.
        layers: names of its attentions, in order of execution.
        unknown: those among them that ``castling.tap`` does not know.
        labels: names of its classes, in order; None where it has none or they are not known.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        unknown: Collection[str],
        labels: Sequence[str] | None,
    ) -> None:
        self.model, self.layers, self.unknown, self.labels = model, layers, unknown, labels
        self._prefix = said_prefix(model)
        self._sums: dict[str, Tensor] = {}
        self._images = 0
        self._without_field: dict[str, str] = {}
        self._without_activation = ""

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
        with torch.enable_grad(), out_of_place(self.model), self._observed() as taps:
            try:
                output: Tensor | None = model_output(self.model, leaf)
            except TypeError:  # a dense model's dictionary
                output = None
            self._add_fields(taps, leaf)
            seen = ImageExplanation(name=name, query=query, rollout=rollout)
            if output is None or not self._classifies(output):
                self._without_activation = "the model gives no scores of classes"
                return seen
            if not torch.isfinite(output).all():
                self._without_activation = "the model's output is not finite"
                return seen
            scores = output[0].detach().cpu().double().softmax(dim=-1)
            best = int(scores.argmax())
            heat, layer = self._activation(taps, output[0, best], leaf)
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
                self._without_field[name] = "no pixel moves its output"
        return tuple(found)

    def notes(self) -> tuple[str, ...]:
        """What could not be told, and why."""
        found = []
        if self._without_field:
            found.append(f"no receptive field of {grouped(self._without_field)}")
        if self._without_activation:
            found.append(f"no class activation: {self._without_activation}")
        return tuple(found)

    def _add_fields(self, taps: Taps, leaf: Tensor) -> None:
        for name in self.layers:
            if name not in taps:
                self._without_field[name] = "it did not run"
                continue
            tokens = self._central(taps[name][0], leaf)
            if tokens is None:
                self._without_field[name] = "its central position is not known"
                continue
            field = receptive_field(tokens, leaf).cpu().double()
            self._sums[name] = self._sums[name] + field if name in self._sums else field

    def _classifies(self, output: Tensor) -> bool:
        named = self.labels is not None and output.shape[1:] == (len(self.labels),)
        return output.dim() == 2 and (named or has_classes(self.model, output))

    def _label(self, best: int, count: int) -> str:
        fits = self.labels is not None and len(self.labels) == count
        return self.labels[best] if fits and self.labels else f"class {best}"

    def _activation(self, taps: Taps, score: Tensor, leaf: Tensor) -> tuple[Tensor | None, str]:
        """Of the input of the last attention through which the score depends on patches."""
        for name in reversed(self.layers):
            if name not in taps:
                continue
            tokens, grid = self._tokens(taps[name][0], leaf)
            if grid is None or not tokens.requires_grad:
                continue
            found = torch.autograd.grad(score, tokens, retain_graph=True, allow_unused=True)[0]
            inside = None if found is None else as_map(found, grid)
            values = as_map(tokens.detach(), grid)
            if inside is not None and values is not None and inside.any():
                return class_activation(values.cpu(), inside.cpu()), name
        self._without_activation = "the score depends on no attention whose grid is known"
        return None, ""

    def _tokens(self, call: AttentionCall, leaf: Tensor) -> tuple[Tensor, Grid | None]:
        """What an attention was called with, and its grid."""
        tokens = tokens_among(call.args, call.kwargs)
        if not isinstance(tokens, Tensor):
            return leaf, None
        size = (leaf.shape[-2], leaf.shape[-1])
        return tokens, call.grid or likely_grid_of(tokens, size, self._prefix)

    def _central(self, call: AttentionCall, leaf: Tensor) -> Tensor | None:
        """(C,) of the central position of one image's output; None where the grid is not known."""
        output = first_tensor(call.output)
        tokens, grid = self._tokens(call, leaf)
        if output is None:
            return None
        if output.dim() == 4:
            size = (leaf.shape[-2], leaf.shape[-1])
            after = likely_grid_of(output, size, 0) or grid
            middle = None if after is None else as_map(output, after)
            if middle is None:
                return None
            return middle[:, middle.shape[1] // 2, middle.shape[2] // 2]
        if output.dim() != 3 or grid is None or len(output) != 1:
            return None
        prefix = _prefix_of(tokens, grid)
        after = fitting_grid(output.shape[1] - prefix, grid)
        if after is None:
            return None
        return output[0, prefix + after[0] // 2 * after[1] + after[1] // 2]

    @contextmanager
    def _observed(self) -> Iterator[Taps]:
        """:func:`castling.tap`, of the attentions that it does not know as well."""
        known = [name for name in self.layers if name not in self.unknown]
        with ExitStack() as stack:
            taps: Taps = stack.enter_context(tap(self.model, known)) if known else {}
            for name in self.unknown:
                layer = owner_of(self.model).get_submodule(name)
                handle = layer.register_forward_hook(_recorder(taps, name), with_kwargs=True)
                stack.callback(handle.remove)
            yield taps


def _recorder(taps: Taps, name: str) -> Callable[..., None]:
    def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        taps.setdefault(name, []).append(AttentionCall(args, kwargs, out, None))

    return record


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
