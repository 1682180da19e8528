"""Figures: as SVG in the colours of the page around it, and as PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

#: Distinguishable for colour-blind readers, visible on white and on black.
PALETTE = ("#4c78dd", "#e8743b", "#2aa876", "#b45fcf", "#d9a40f", "#d6455d", "#17a2b8", "#8c7355")
#: Panels per row.
_COLUMNS = 2
#: With more series than this, the legend stands below the axes, where it covers none.
_INNER_LEGEND = 6
#: Entries per row of a legend below the panels.
_LEGEND_COLUMNS = 3
#: Height of such a row, inches.
_LEGEND_ROW = 0.25
#: Line styles of the variants of one candidate, in order of appearance, or of one colour.
_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (1, 3)), (0, (5, 4)))
#: Placeholder for the text colour; replaced by the page's in SVG.
_INK = "#010203"
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")

#: (x values, y values).
Curve = tuple[Sequence[float], Sequence[float]]
#: Panel → candidate → variant → (x values, y values).
Panels = dict[str, dict[str, dict[str, tuple[list[float], list[float]]]]]


class Plot:
    """A figure that can be written into a page or a file.

    Args:
        draw: each draws on its own axes.
        width: inches.
        height: inches.
        y: label of all vertical axes.
        title: above all panels.
        legend: (name, colour, line style) of the entries below all panels; empty for none.
    """

    def __init__(
        self,
        *draw: Callable[[Any], None],
        width: float = 6.4,
        height: float = 3.6,
        y: str = "",
        title: str = "",
        legend: Sequence[tuple[str, str, Any]] = (),
    ) -> None:
        self.draw, self.width, self.height = draw, width, height
        self.y, self.title, self.legend = y, title, legend

    def figure(self, ink: str) -> Figure:
        """The figure with text and axes in colour ``ink``."""
        with matplotlib.rc_context(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "castling",
                "font.size": 10,
                "font.family": ["sans-serif"],
                **dict.fromkeys(_INKED, ink),
            }
        ):
            figure = Figure(figsize=(self.width, self.height), layout="constrained")
            columns = min(len(self.draw), _COLUMNS)
            rows = -(-len(self.draw) // columns)
            panels = figure.subplots(rows, columns, sharey="row", squeeze=False)
            for axes in panels.flat[len(self.draw) :]:
                axes.set_axis_off()
            for axes, draw in zip(panels.flat, self.draw, strict=False):
                draw(axes)
                axes.spines[["top", "right"]].set_visible(False)
                for side in ("left", "bottom"):
                    axes.spines[side].set_alpha(0.4)
                axes.grid(True, color=ink, alpha=0.1, linewidth=0.8)
                axes.set_axisbelow(True)
            if self.y:
                figure.supylabel(self.y, fontsize=10)
            if self.title:
                figure.suptitle(self.title, fontsize=10)
            if self.legend:
                handles = [
                    Line2D([], [], color=colour, linestyle=style, label=name)
                    for name, colour, style in self.legend
                ]
                figure.legend(
                    handles=handles,
                    loc="outside lower center",
                    ncols=_LEGEND_COLUMNS,
                    frameon=False,
                    fontsize=9,
                )
            return figure

    def svg(self) -> str:
        """An inline SVG element in the text colour of the page around it."""
        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "castling"}):
            self.figure(_INK).savefig(
                buffer, format="svg", transparent=True, metadata={"Date": None}
            )
        text = buffer.getvalue()
        text = text[text.index("<svg") :].replace(_INK, "currentColor")
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font-size: \1px; font-family: inherit", text)
        return re.sub(
            r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"',
            r'<svg role="img" \1\2',
            text,
            count=1,
        )

    def png(self, dpi: int = 160) -> bytes:
        """A PNG file on white, which dark pages show as a white card."""
        buffer = io.BytesIO()
        self.figure("#222222").savefig(
            buffer, format="png", dpi=dpi, facecolor="white", bbox_inches="tight", pad_inches=0.15
        )
        return buffer.getvalue()


def lines(
    series: Mapping[str, Curve],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = True,
) -> Plot:
    """Curves with a legend: within the axes, or below them where it is long.

    Args:
        series: name → (x values, y values).
        x: axis label with its unit.
        y: axis label with its unit.
        log_x: logarithmic axis.
        log_y: logarithmic axis.
        markers: dots at the values.
    """
    looks = [
        (name, PALETTE[i % len(PALETTE)], _STYLES[i // len(PALETTE) % len(_STYLES)])
        for i, name in enumerate(series)
    ]
    below = looks if len(series) > _INNER_LEGEND else []

    def draw(axes: Any) -> None:
        for (name, colour, style), (xs, ys) in zip(looks, series.values(), strict=True):
            axes.plot(
                xs,
                ys,
                label=name,
                color=colour,
                linewidth=2,
                marker="o" if markers else None,
                markersize=4.5,
                linestyle=style,
            )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if log_x:
            axes.set_xscale("log", base=2)
            values = sorted({value for xs, _ in series.values() for value in xs})
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
        elif all(value == int(value) for xs, _ in series.values() for value in xs):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no epoch 1.25
        if log_y:
            axes.set_yscale("log")
        if len(series) > 1 and not below:
            axes.legend(frameon=False)

    return Plot(draw, height=3.6 + _LEGEND_ROW * -(-len(below) // _LEGEND_COLUMNS), legend=below)


def speedups(panels: Panels, *, x: str, y: str, title: str = "") -> Plot:
    """Speedups against size on logarithmic axes, with a line at 1.

    Args:
        panels: see ``Panels``; a colour per candidate, a line style per variant.
        x: axis label with its unit.
        y: axis label.
        title: above all panels.
    """
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    variants = list(dict.fromkeys(variant for _, variant, _ in _curves(panels)))
    values = [1.0, *(value for _, _, (_, ys) in _curves(panels) for value in ys)]
    limits = min(values) / 1.2, max(values) * 1.2
    ticks = _ratio_ticks(values)

    def draw_panel(title: str) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            axes.axhline(1.0, color="#888888", linewidth=1)
            for name, variant, (xs, ys) in _curves({title: panels[title]}):
                axes.plot(
                    xs,
                    ys,
                    color=PALETTE[names.index(name) % len(PALETTE)],
                    linestyle=_STYLES[variants.index(variant) % len(_STYLES)],
                    marker="o",
                    markersize=4,
                    markerfacecolor=None if variant == variants[0] else "none",
                    linewidth=1.8,
                )
            sizes = sorted({x for _, _, (xs, _) in _curves({title: panels[title]}) for x in xs})
            axes.set_xlabel(x)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
            axes.set_ylim(*limits)
            axes.minorticks_off()
            if title:
                axes.set_title(title, fontsize=10)

        return draw

    legend: list[tuple[str, str, Any]] = [
        (name, PALETTE[i % len(PALETTE)], _STYLES[0]) for i, name in enumerate(names)
    ]
    if len(variants) > 1:
        legend += [(name, "#888888", _STYLES[i % len(_STYLES)]) for i, name in enumerate(variants)]
    rows = -(-len(panels) // _COLUMNS)
    return Plot(
        *(draw_panel(name) for name in panels),
        width=8.6 if len(panels) > 1 else 6.4,
        height=3.0 * rows + _LEGEND_ROW * -(-len(legend) // _LEGEND_COLUMNS) + 0.5,
        y=y,
        title=title,
        legend=legend,
    )


def _curves(panels: Panels) -> Iterator[tuple[str, str, Curve]]:
    """(candidate, variant, curve) of all panels."""
    for panel in panels.values():
        for name, variants in panel.items():
            for variant, curve in variants.items():
                yield name, variant, curve


def _ratio_ticks(values: Sequence[float]) -> list[float]:
    """Round ratios that cover ``values``; the smaller their range, the denser."""
    low, high = min(values), max(values)
    if high / low < 2:
        ticks = [round(0.1 * tenth, 1) for tenth in range(1, 41)]
    else:
        steps: tuple[float, ...] = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
        if high / low > 8:
            steps = (1, 2, 5) if high / low < 1000 else (1,)
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = [round(step * 10.0**decade, 9) for decade in decades for step in steps]
    first = max((tick for tick in ticks if tick <= low), default=low)
    last = min((tick for tick in ticks if tick >= high), default=high)
    return [tick for tick in ticks if first <= tick <= last]
