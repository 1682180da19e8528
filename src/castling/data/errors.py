"""The error for faults of the data, as opposed to faults of the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DataError(ValueError):
    """Something about the given images is wrong; the message names the file or folder.

    It takes a single string, so that PyTorch can raise it again outside a worker process.
    """


@contextmanager
def plain_data_errors() -> Iterator[None]:
    """Reduce a DataError from a loader's worker process to its message.

    PyTorch puts the worker's traceback before it.
    """
    try:
        yield
    except DataError as error:
        _, within_worker, message = str(error).rpartition(
            f"{DataError.__module__}.{DataError.__qualname__}: "
        )
        if not within_worker:
            raise
        raise DataError(message.strip()) from error
