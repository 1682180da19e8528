"""An image with lines of text below it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

#: The smallest letters, in pixels.
_SMALLEST = 12
#: Lines over which a long text is broken; what is longer still is cut.
_MOST_LINES = 3

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def with_caption(image: Image.Image, entries: Sequence[tuple[str, str]]) -> Image.Image:
    """A copy of ``image`` above a white strip with two columns of text.

    The strip is as wide as the image, and wider below a very small one; texts of the second column
    are broken over lines where they do not fit beside the first.

    Args:
        image: RGB.
        entries: (short text, longer text) of each row, such as a percentage and a class.
    """
    size = max(_SMALLEST, image.width // 25)
    font = ImageFont.load_default(size)
    margin, step = size // 2, size + size // 4
    column = 2 * margin + max((int(font.getlength(short)) + 1 for short, _ in entries), default=0)
    width = max(image.width, 12 * size)
    rows: list[tuple[str, str]] = []
    for short, text in entries:
        first, *others = broken(text, font, width - column - margin)
        rows += [(short, first), *(("", other) for other in others)]
    canvas = Image.new("RGB", (width, image.height + step * len(rows) + step // 2), "white")
    canvas.paste(image, ((width - image.width) // 2, 0))
    write = ImageDraw.Draw(canvas)
    for row, (short, text) in enumerate(rows):
        y = image.height + 2 + row * step
        write.text((column - margin, y), short, "black", font=font, anchor="ra")
        write.text((column, y), text, "black", font=font)
    return canvas


def broken(text: str, font: _Font, room: float) -> list[str]:
    """A text in lines that fit ``room`` pixels, broken at spaces where there are any.

    Of a text that needs more than three lines the end is left out, as three dots say.
    """
    lines: list[str] = []
    rest = text.strip()
    while rest and font.getlength(rest) > room and len(lines) < _MOST_LINES - 1:
        fits = _fitting(rest, font, room)
        space = rest.rfind(" ", 1, fits + 1)
        lines.append(rest[: space if space > 0 else fits].rstrip())
        rest = rest[len(lines[-1]) :].lstrip()
    if font.getlength(rest) > room:
        rest = rest[: _fitting(rest, font, room - font.getlength("..."))].rstrip() + "..."
    return [*lines, rest]


def _fitting(text: str, font: _Font, room: float) -> int:
    """How many of the first letters fit; at least one."""
    count = 1
    while count < len(text) and font.getlength(text[: count + 1]) <= room:
        count += 1
    return count
