"""Figures: as SVG that takes the page's colours, and as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from castling.lens.bench import BenchResult

#: Told apart by colour-blind readers, visible on white and on black.
PALETTE = ("#4c78dd", "#e8743b", "#2aa876", "#b45fcf", "#d9a40f", "#d6455d", "#17a2b8", "#8c7355")
#: Stands for the text colour until it is replaced by the page's.
_INK = "#010203"


class Plot:
    """A drawing that can be written on a page or into a file.

    Args:
        draw: paints on an axes.
        width: inches.
        height: inches.
    """

    def __init__(
        self, draw: Callable[[Any], None], width: float = 6.4, height: float = 3.6
    ) -> None:
        self.draw, self.width, self.height = draw, width, height

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
            axes = figure.add_subplot()
            self.draw(axes)
            axes.spines[["top", "right"]].set_visible(False)
            for side in ("left", "bottom"):
                axes.spines[side].set_alpha(0.4)
            axes.grid(True, color=ink, alpha=0.1, linewidth=0.8)
            axes.set_axisbelow(True)
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


def time_against_tokens(result: BenchResult) -> Plot:
    """Milliseconds per call against tokens, one curve per subject.

    Where subjects differ in tokens at one size (hierarchical models) the horizontal axis is pixels.
    """
    return _against_size(result, "milliseconds", f"milliseconds, batch {_batch(result)}")


def memory_against_tokens(result: BenchResult) -> Plot:
    """Peak megabytes of activations against tokens, one curve per subject."""
    return _against_size(result, "peak_megabytes", f"peak activations, MB, batch {_batch(result)}")


def _batch(result: BenchResult) -> int:
    return result.measurements[0].batch if result.measurements else 1


def _against_size(result: BenchResult, field: str, label: str) -> Plot:
    shown = [m for m in result.measurements if getattr(m, field) is not None]
    tokens_of: dict[tuple[int, int], set[int | None]] = {}
    for m in shown:
        tokens_of.setdefault((m.height, m.width), set()).add(m.tokens)
    by_tokens = all(len(tokens) == 1 and None not in tokens for tokens in tokens_of.values())
    series: dict[str, tuple[list[float], list[float]]] = {}
    for m in shown:
        xs, ys = series.setdefault(m.name, ([], []))
        xs.append((m.tokens or 0) if by_tokens else (m.height * m.width) ** 0.5)
        ys.append(getattr(m, field))
    axis = "tokens" if by_tokens else "image side, pixels"
    return lines(
        {name: (xs, ys) for name, (xs, ys) in series.items()},
        x=axis,
        y=label,
        log_x=True,
        log_y=True,
    )
