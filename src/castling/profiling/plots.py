"""Figures: as SVG that takes the page's colours, and as PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

if TYPE_CHECKING:
    from castling.profiling.results import BenchResult

#: Told apart by colour-blind readers, visible on white and on black.
PALETTE = ("#4c78dd", "#e8743b", "#2aa876", "#b45fcf", "#d9a40f", "#d6455d", "#17a2b8", "#8c7355")
_COLUMNS = 4
#: Stands for the text colour until it is replaced by the page's.
_INK = "#010203"


class Plot:
    """A drawing that can be written on a page or into a file.

    Args:
        draw: each paints on an axes of its own, side by side, at most four in a row.
        width: inches.
        height: inches.
        y: label of all vertical axes.
        title: above all.
        legend: (name, colour, line style) of entries right of all; empty for none.
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

    def _figure(self, ink: str) -> Figure:
        with matplotlib.rc_context(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "castling",
                "font.size": 10,
                "font.family": ["sans-serif"],
                **{
                    f"{name}": ink
                    for name in (
                        "text.color",
                        "axes.labelcolor",
                        "axes.edgecolor",
                        "xtick.color",
                        "ytick.color",
                    )
                },
            }
        ):
            figure = Figure(figsize=(self.width, self.height), layout="constrained")
            columns = min(len(self.draw), _COLUMNS)
            rows = -(-len(self.draw) // columns)
            panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
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
                figure.legend(handles=handles, loc="outside right center", frameon=False)
            return figure

    def svg(self) -> str:
        """An inline SVG element in the text colour of the page around it."""
        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "castling"}):
            self._figure(_INK).savefig(
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
        """A PNG file on white."""
        buffer = io.BytesIO()
        self._figure("#222222").savefig(buffer, format="png", dpi=dpi, facecolor="white")
        return buffer.getvalue()


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = True,
) -> Plot:
    """Curves with a legend.

    Args:
        series: name → (x values, y values).
        x: axis label with its unit.
        y: axis label with its unit.
        log_x: logarithmic axis.
        log_y: logarithmic axis.
        markers: dots at the values.
    """

    def draw(axes: Any) -> None:
        for index, (name, (xs, ys)) in enumerate(series.items()):
            axes.plot(
                xs,
                ys,
                label=name,
                color=PALETTE[index % len(PALETTE)],
                linewidth=2,
                marker="o" if markers else None,
                markersize=4.5,
                linestyle="-" if index < len(PALETTE) else "--",
            )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if log_x:
            axes.set_xscale("log", base=2)
            values = sorted({value for xs, _ in series.values() for value in xs})
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
        if log_y:
            axes.set_yscale("log")
        if len(series) > 1:
            axes.legend(frameon=False)

    return Plot(draw)


def time_against_size(result: BenchResult[Any]) -> Plot:
    """Milliseconds per call against size, one curve per candidate."""
    return _against_size(result, "milliseconds", "milliseconds a call")


def memory_against_size(result: BenchResult[Any]) -> Plot:
    """Peak megabytes of activations against size, one curve per candidate."""
    return _against_size(result, "peak_megabytes", "peak activations, MB")


def _against_size(result: BenchResult[Any], field: str, label: str) -> Plot:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in result.measurements:
        if getattr(row, field) is not None:
            xs, ys = series.setdefault(row.label, ([], []))
            xs.append(row.size)
            ys.append(getattr(row, field))
    return lines(dict(series), x=result.axis, y=label, log_x=True, log_y=True)


#: Line styles of the ways to run one candidate, in the order in which they are met.
_STYLES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (5, 4)))


def speedups(
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]],
    *,
    x: str,
    y: str,
    title: str = "",
) -> Plot:
    """Ratios against size, above 1 the better; a colour for each candidate, a style for each way.

    Args:
        panels: panel → candidate → way (path, runtime) → (x values, ratios).
        x: axis label with its unit.
        y: axis label.
        title: above all.
    """
    candidates = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    ways = list(
        dict.fromkeys(way for panel in panels.values() for one in panel.values() for way in one)
    )

    values = [
        y
        for panel in panels.values()
        for one in panel.values()
        for _, ys in one.values()
        for y in ys
    ]
    ticks = _ratio_ticks(values)

    def draw_panel(name: str) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            sizes: set[float] = set()
            for candidate, curves in panels[name].items():
                for way, (xs, ys) in curves.items():
                    axes.plot(
                        xs,
                        ys,
                        color=PALETTE[candidates.index(candidate) % len(PALETTE)],
                        linestyle=_STYLES[ways.index(way) % len(_STYLES)],
                        marker="o",
                        markersize=4,
                        markerfacecolor=None if way == ways[0] else "none",
                        linewidth=1.8,
                    )
                    sizes |= set(xs)
            axes.axhline(1.0, color="#888888", linewidth=1)
            axes.set_xlabel(x)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sorted(sizes), [f"{size:g}" for size in sorted(sizes)])
            axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
            axes.minorticks_off()
            if name:
                axes.set_title(name, fontsize=10)

        return draw

    legend: list[tuple[str, str, Any]] = [
        (name, PALETTE[i % len(PALETTE)], _STYLES[0]) for i, name in enumerate(candidates)
    ]
    if len(ways) > 1:
        legend += [(way, "#888888", _STYLES[i % len(_STYLES)]) for i, way in enumerate(ways)]
    return Plot(
        *(draw_panel(name) for name in panels),
        width=2.7 * min(len(panels), _COLUMNS) + 3.4,
        height=3.6 * -(-len(panels) // _COLUMNS) + 0.4,
        y=y,
        title=title,
        legend=legend,
    )


def _ratio_ticks(values: Sequence[float]) -> list[float]:
    """Round ratios that cover ``values`` and 1, the closer the less they differ."""
    low, high = min(1.0, *values), max(1.0, *values)
    steps = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [round(step * 10.0**decade, 9) for decade in decades for step in steps]
    if high / low < 2:
        ticks = [round(0.1 * tenth, 1) for tenth in range(1, 41)]
    first = max((tick for tick in ticks if tick <= low), default=low)
    last = min((tick for tick in ticks if tick >= high), default=high)
    return [tick for tick in ticks if first <= tick <= last]
