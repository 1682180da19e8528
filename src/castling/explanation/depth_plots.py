"""Figures over the depth of a model."""

from __future__ import annotations

from typing import Any

from castling.explanation.records import ModelExplanation
from castling.explanation.text import mean
from castling.profiling.plots import PALETTE, Plot

Points = list[tuple[int, tuple[float, ...]]]


def points(model: ModelExplanation, figure: str) -> Points:
    """A figure: (number of the attention in order of execution, values of its heads)."""
    numbers = {name: number for number, name in enumerate(model.attentions, 1)}
    return [
        (numbers[layer.name], getattr(layer, figure))
        for layer in model.layers
        if getattr(layer, figure) is not None
    ]


def depth_plot(found: dict[str, Points], label: str) -> Plot:
    """A dot for each head, a line through their means.

    Args:
        found: model → its :func:`points`.
        label: of the vertical axis.
    """

    def draw(axes: Any) -> None:
        for (name, layers), colour in zip(found.items(), PALETTE, strict=False):
            if not layers:
                continue
            pairs = [(number, value) for number, heads in layers for value in heads]
            axes.scatter(*zip(*pairs, strict=True), s=18, color=colour, alpha=0.45, linewidths=0)
            means = [(number, mean(heads)) for number, heads in layers]
            axes.plot(*zip(*means, strict=True), color=colour, linewidth=2, label=name)
        axes.set_xlabel("attention, in order of execution")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(found) > 1:
            axes.legend(frameon=False)

    return Plot(draw, height=3.2)


def shares_plot(model: ModelExplanation) -> Plot:
    """Shares of the output, one on top of the other, means over heads."""
    shares = {
        part: [mean(heads) for _, heads in points(model, f"{part}_share")]
        for part in ("kernel", "local", "auxiliary")
    }
    looks = {part: PALETTE[i] for i, (part, heights) in enumerate(shares.items()) if any(heights)}

    def draw(axes: Any) -> None:
        numbers = [number for number, _ in points(model, "kernel_share")]
        below = [0.0] * len(numbers)
        for part, colour in looks.items():
            heights = shares[part]
            axes.bar(numbers, heights, bottom=below, color=colour, width=0.8)
            below = [low + height for low, height in zip(below, heights, strict=True)]
        axes.set_xlabel("attention, in order of execution")
        axes.set_ylabel("share of the output")
        axes.set_ylim(0, 1)
        axes.xaxis.get_major_locator().set_params(integer=True)

    return Plot(draw, height=3.2, legend=[(part, look, "-") for part, look in looks.items()])
