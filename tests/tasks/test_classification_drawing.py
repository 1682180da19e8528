"""Captions below images: all of the text is there, and none runs out of the picture."""

import pytest
from PIL import Image, ImageFont

from castling.tasks.classification.drawing import broken, with_caption

FONT = ImageFont.load_default(12)


@pytest.mark.parametrize("width", [8, 170, 500])
def test_text_stays_within_the_strip(width):
    image = Image.new("RGB", (width, 40), "red")
    entries = [("39 %", "n02102040"), ("100 %", "W" * 200), ("8 %", "English springer " * 9)]
    drawn = with_caption(image, entries)
    place = (drawn.width - width) // 2
    assert drawn.crop((place, 0, place + width, 40)).tobytes() == image.tobytes()
    ink = drawn.convert("L").point(lambda value: 255 - value).crop((0, 40, *drawn.size)).getbbox()
    assert ink[0] >= 2
    assert ink[2] <= drawn.width - 2
    assert ink[3] <= drawn.height - 40 - 2


def test_percentage_and_name_do_not_touch():
    drawn = with_caption(Image.new("RGB", (170, 10)), [("39 %", "n02102040")]).convert("L")
    columns = [min(drawn.crop((x, 10, x + 1, drawn.height)).tobytes()) < 128 for x in range(170)]
    text = "".join("x" if dark else " " for dark in columns).strip()
    widest = max(len(gap) for gap in text.replace("x", "|").split("|"))
    assert widest >= 4  # pixels


def test_long_text_is_broken_at_spaces():
    text = "English springer spaniel of the north"
    lines = broken(text, FONT, 110)
    assert len(lines) > 1
    assert " ".join(lines) == text
    assert all(FONT.getlength(line) <= 110 for line in lines)
    assert broken("cat", FONT, 110) == ["cat"]


def test_what_needs_more_than_three_lines_is_cut():
    lines = broken("x" * 99, FONT, 60)
    assert len(lines) == 3
    assert "".join(lines).startswith("x" * 20)
    assert lines[2].endswith("...")
    assert all(FONT.getlength(line) <= 60 for line in lines)
