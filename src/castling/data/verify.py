"""Every image visited once, and all damaged ones reported together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from castling.data.errors import DataError


class Damage:
    """Damaged images of all splits, for one report."""

    def __init__(self) -> None:
        self._counts: list[str] = []
        self._complaints: list[str] = []

    def visit(self, count: int, visit: Callable[[int], object], what: str) -> None:
        """Visit every image, on several threads, and remember the damaged ones.

        Args:
            count: how many images there are.
            visit: called with every position; raises DataError for a damaged image.
            what: which images, for the report.
        """
        complaints = visit_all(count, visit)
        if complaints:
            self._counts.append(f"{len(complaints)} of {count} {f'{what} ' if what else ''}images")
            self._complaints += complaints

    def report(self) -> None:
        """Raise DataError naming the first damaged files and their numbers, if there are any."""
        if not self._complaints:
            return
        more = len(self._complaints) - 5
        raise DataError(
            f"{' and '.join(self._counts)} are damaged:\n"
            + "\n".join(self._complaints[:5])
            + (f"\n… and {more} more" if more > 0 else "")
        )


def visit_all(count: int, visit: Callable[[int], object]) -> list[str]:
    """Visit every image, on several threads.

    Args:
        count: how many images there are.
        visit: called with every position; raises DataError for a damaged image.

    Returns:
        The complaints, in order.
    """

    def stretch(start: int) -> list[str]:
        complaints = []
        for index in range(start, min(start + 64, count)):
            try:
                visit(index)
            except DataError as error:
                complaints.append(str(error))
        return complaints

    # Threads hide the latency of disks; a stretch of 64 keeps their own cost low.
    with ThreadPoolExecutor(max_workers=8) as pool:
        return [text for found in pool.map(stretch, range(0, count, 64)) for text in found]
