"""The one error that says that the data, and not the program, is at fault."""

from __future__ import annotations


class DataError(ValueError):
    """Something about the given images is wrong; the message names the file or folder.

    It takes a single string, so that it survives the way out of a data-loading worker process.
    """
