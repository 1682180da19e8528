"""The verb that puts runs side by side."""

from __future__ import annotations

from castling.cli.parts import check_files, parser_for, show


def compare(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for("compare")
    parser.add_argument("runs", nargs="+", help="folders of two or more finished runs")
    parser.add_argument("--output", help="write the comparison as a page, FILE.html")
    parser.add_argument(
        "--measure", action="store_true", help="time the models here, one image per call"
    )
    values = parser.parse_args(arguments)
    check_files(values, "output")
    from castling.profiling.compare import compare_runs

    found = compare_runs(values.runs, measure=values.measure)
    text = str(found)
    if values.output:
        text += f"\nwritten to {found.write_page(values.output)}"
    show(values, found.to_dict(), text)
    return 0
