"""The report page: self-contained, escaped, in the page's colours."""

from xml.etree import ElementTree

import pytest
from PIL import Image

from castling.profiling.page import Page, cards, figures, gallery, table
from castling.profiling.plots import lines
from castling.profiling.run_report import write_run_report


def test_page_needs_nothing_else(tmp_path):
    page = Page("A <title>", "sub & title")
    plot = lines({"a<b": ([1, 2], [3.0, 4.0]), "c": ([1, 2], [4.0, 3.0])}, x="x", y="y", log_x=True)
    page.add("Section", figures([(plot, "caption")]), table(["a", "b"], [["<i>", "2"]], best=0))
    page.add("More", cards([("1", "one")]), gallery([(Image.new("RGB", (4, 4)), "x", "y", True)]))
    path = page.write(tmp_path / "deep" / "report.html")
    text = path.read_text()
    assert "A &lt;title&gt;" in text
    assert "<i>" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert text.index("Section") < text.index("More")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("count", [2, 6, 7, 12, 40])
def test_long_legends_stand_below_the_axes(count):
    series = {f"layer {index}": ([1, 2], [index, 3.0]) for index in range(count)}
    figure = lines(series, x="epoch", y="share").figure("#222222")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    inner, below = axes.get_legend(), figure.legends
    assert (inner is None) == (count > 6)
    assert len(below) == (count > 6)
    legend = below[0] if below else inner
    assert [text.get_text() for text in legend.get_texts()] == list(series)
    if below:
        assert legend.get_window_extent().y1 <= axes.get_window_extent().y0
        assert axes.get_window_extent().height > 200  # pixels, of 100 per inch
        looks = {(line.get_color(), str(line.get_linestyle())) for line in axes.get_lines()}
        assert len(looks) >= min(count, 32)


def test_svg_takes_the_colour_of_its_page():
    svg = lines({"a": ([1, 2], [3.0, 4.0])}, x="tokens", y="ms").svg()
    ElementTree.fromstring(svg)
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "tokens" in svg
    assert "viewBox" in svg


def test_report_of_an_unfinished_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a finished run"):
        write_run_report(tmp_path)
