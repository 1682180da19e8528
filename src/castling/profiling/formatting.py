"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text in columns; the first two are flush left, the others right."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def short(value: float | None, digits: int = 3) -> str:
    """``value`` with this many significant digits and no exponent; a dash for None."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:.10f}".rstrip("0").rstrip(".")


def shown(value: float | None, form: str) -> str:
    """``value`` in a format such as ``".1f"``; a dash for None."""
    return "-" if value is None else format(value, form)


def ratio(value: float | None) -> str:
    """``2.35×``; a dash for None."""
    return "-" if value is None else f"{value:.2f}×" if value < 10 else f"{short(value)}×"


def percent(value: float | None) -> str:
    """A share in [0, 1] as ``35%``; a dash for None."""
    return "-" if value is None else f"{100 * value:.0f}%"
