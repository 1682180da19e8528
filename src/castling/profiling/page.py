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

#: Up to this side (pixels) an image is enlarged with its pixels visible.
_DOTS = 64
#: Of pictures as JPEG: no blocks to be seen in smooth colours.
_QUALITY = 90
#: Up to so many columns a table fits the screen of a phone.
_NARROW = 5


@dataclass
class Page:
    """A page of sections.

    Attributes:
        title: heading.
        subtitle: small text under it.
        headline: the one sentence that a reader should take away; large, above the subtitle.
        footer: last line of the page.
    """

    title: str
    subtitle: str = ""
    footer: str = ""
    headline: str = ""
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
            lead=f'<p class="headline">{html.escape(self.headline)}</p>\n' if self.headline else "",
            subtitle=html.escape(self.subtitle),
            footer=html.escape(self.footer),
            style=folder.joinpath("report.css").read_text(encoding="utf-8"),
            sections="\n".join(self._sections),
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; returns its path."""
        write_text(path, self.html())
        return Path(path)


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    best: int | None = None,
    *,
    fold_after: int = 40,
) -> str:
    """A table; the first column is left-aligned, row ``best`` is highlighted.

    Narrow screens show every row of a wide table as a block of its own, so that nothing is cut. A
    table of more than ``fold_after`` rows is folded.
    """
    kind = "rows" if len(head) <= _NARROW else "rows wide"
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for index, row in enumerate(rows):
        mark = ' class="best"' if index == best else ""
        cells = "".join(
            f'<td data-label="{html.escape(label)}">{html.escape(cell)}</td>'
            for label, cell in zip(head, row, strict=True)
        )
        lines.append(f"<tr{mark}>{cells}</tr>")
    text = f'<table class="{kind}">\n' + "\n".join(lines) + "\n</table>"
    count = len(lines) - 1
    return details(f"all {count}", text) if count > fold_after else text


def matrix(
    head: Sequence[str], rows: Iterable[Sequence[str]], shades: Sequence[Sequence[float]]
) -> str:
    """A square table of counts, each cell shaded by a value in [0, 1]; the diagonal is good."""
    top = "".join(f"<th><span>{html.escape(cell)}</span></th>" for cell in head[1:])
    lines = [f"<tr><th>{html.escape(head[0])}</th>{top}</tr>"]
    for index, (row, shade) in enumerate(zip(rows, shades, strict=True)):
        cells = "".join(
            f'<td class="{"hit" if index == column else "miss"}" style="--share:{value:.3f}" '
            f'title="{html.escape(row[0])} → {html.escape(head[column + 1])}">'
            f"{html.escape(cell)}</td>"
            for column, (cell, value) in enumerate(zip(row[1:], shade, strict=True))
        )
        lines.append(f"<tr><th>{html.escape(row[0])}</th>{cells}</tr>")
    return '<div class="scroll"><table class="matrix">\n' + "\n".join(lines) + "\n</table></div>"


def details(summary: str, *blocks: str) -> str:
    """Blocks that open on a click."""
    inside = "\n".join(blocks)
    return f"<details><summary>{html.escape(summary)}</summary>\n{inside}\n</details>"


def code(text: str) -> str:
    """Preformatted text, such as commands."""
    return f"<pre><code>{html.escape(text)}</code></pre>"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{html.escape(text)}</p>"


def figures(plots: Iterable[tuple[Plot, str]]) -> str:
    """Plots with captions, side by side on wide screens."""
    inside = "\n".join(
        f"<figure>{plot.svg()}"
        + (f"<figcaption>{html.escape(caption)}</figcaption>" if caption else "")
        + "</figure>"
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


def gallery(
    images: Iterable[tuple[Image.Image | Path, str, str, bool]], *, large: bool = False
) -> str:
    """Images: (image or its file, main line, small line, whether the main line is good news).

    Large ones show details, and fewer of them fit a row.
    """
    parts = []
    for image, line, small, good in images:
        source, side = _embedded(image)
        kind = ' class="dots"' if side <= _DOTS else ""
        parts.append(
            f'<div><img{kind} src="{source}" alt="{html.escape(line)}">'
            f'<span class="{"good" if good else "bad"}">{html.escape(line)}</span>'
            f"<br><small>{html.escape(small)}</small></div>"
        )
    kind = "gallery large" if large else "gallery"
    return f'<div class="{kind}">{"".join(parts)}</div>'


def strip(pictures: Sequence[tuple[Image.Image, str, str]], columns: int) -> str:
    """Pictures side by side, equally wide, ``columns`` to a row: (picture, line, small line).

    Narrow screens break the rows.
    """
    parts = [
        f'<div><img src="{_photo(image)}" alt="{html.escape(line)}">'
        f"<span>{html.escape(line)}</span><br><small>{html.escape(small)}</small></div>"
        for image, line, small in pictures
    ]
    return f'<div class="strip" style="--count:{columns}">{"".join(parts)}</div>'


def _photo(image: Image.Image) -> str:
    """A data URL of a picture with many colours: as JPEG a tenth of the size of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _embedded(image: Image.Image | Path) -> tuple[str, int]:
    """A data URL, and the longer side in pixels."""
    if isinstance(image, Path):
        data = image.read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            kind, side = opened.format or "PNG", max(opened.size)
    else:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        data, kind, side = buffer.getvalue(), "PNG", max(image.size)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}", side
