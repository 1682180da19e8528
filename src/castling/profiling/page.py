"""A report page: one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template

from PIL import Image

from castling.profiling.plots import Plot
from castling.utils.files import write_text


@dataclass
class Page:
    """A page of sections.

    Attributes:
        title: heading.
        subtitle: one sentence under it.
        footer: last line of the page.
    """

    title: str
    subtitle: str = ""
    footer: str = ""
    _sections: list[str] = field(default_factory=list)

    def add(self, title: str, *blocks: str, note: str = "") -> None:
        """Append a section.

        Args:
            title: its heading.
            *blocks: HTML from the functions below.
            note: plain text under the heading.
        """
        paragraph = f"<p>{html.escape(note)}</p>\n" if note else ""
        body = "\n".join(blocks)
        self._sections.append(
            f"<section>\n<h2>{html.escape(title)}</h2>\n{paragraph}{body}\n</section>"
        )

    def html(self) -> str:
        """The whole page."""
        folder = resources.files("castling.profiling")
        return Template(folder.joinpath("report.html").read_text(encoding="utf-8")).substitute(
            title=html.escape(self.title),
            subtitle=html.escape(self.subtitle),
            footer=html.escape(self.footer),
            style=folder.joinpath("report.css").read_text(encoding="utf-8"),
            sections="\n".join(self._sections),
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; returns its path."""
        write_text(path, self.html())
        return Path(path)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], best: int | None = None) -> str:
    """A table; the first column is left-aligned, row ``best`` is highlighted."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for index, row in enumerate(rows):
        kind = ' class="best"' if index == best else ""
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        lines.append(f"<tr{kind}>{cells}</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def figures(plots: Iterable[tuple[Plot, str]]) -> str:
    """Plots with captions, side by side on wide screens."""
    inside = "\n".join(
        f"<figure>{plot.svg()}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for plot, caption in plots
    )
    return f'<div class="figures">{inside}</div>'


def cards(facts: Iterable[tuple[str, str]]) -> str:
    """Large numbers: (value, description)."""
    inside = "".join(
        f"<div><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>"
        for value, label in facts
    )
    return f'<div class="cards">{inside}</div>'


def badge(text: str, *, good: bool) -> str:
    """A coloured word."""
    return f'<span class="badge {"good" if good else "bad"}">{html.escape(text)}</span>'


def subheading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{html.escape(text)}</h3>"


def gallery(images: Iterable[tuple[Image.Image, str, str, bool]]) -> str:
    """Images: (image, main line, small line, whether the main line is good news)."""
    parts = []
    for image, line, small, good in images:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        parts.append(
            f'<div><img src="data:image/png;base64,{data}" alt="{html.escape(line)}">'
            f'<span class="{"good" if good else "bad"}">{html.escape(line)}</span>'
            f"<br><small>{html.escape(small)}</small></div>"
        )
    return f'<div class="gallery">{"".join(parts)}</div>'
