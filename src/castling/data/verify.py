"""Every image of a selection visited once: checks before training, and their sizes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from castling.data.errors import DataError
from castling.data.splits import Selection


def visit_all(count: int, visit: Callable[[int], object], what: str) -> None:
    """Visit every image, on several threads, and report all damaged ones at once.

    Args:
        count: how many images there are.
        visit: called with every position; raises DataError for a damaged image.
        what: which images, for the error.

    Raises:
        DataError: naming the first damaged files and their number.
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
        complaints = [text for found in pool.map(stretch, range(0, count, 64)) for text in found]
    if complaints:
        more = f"\n… and {len(complaints) - 5} more" if len(complaints) > 5 else ""
        raise DataError(
            f"{len(complaints)} of {count} {f'{what} ' if what else ''}images are damaged:\n"
            + "\n".join(complaints[:5])
            + more
        )


def total_pixels(selection: Selection, what: str) -> int:
    """Pixels of all images together, from the headers of the files.

    Raises:
        DataError: headers are damaged; the first files are named.
    """
    areas = [0] * len(selection)

    def measure(index: int) -> None:
        height, width = selection.size(index)
        areas[index] = height * width

    visit_all(len(selection), measure, what)
    return sum(areas)
