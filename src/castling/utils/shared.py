"""Process-wide settings of other libraries, changed for a while by contexts that may overlap."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SharedSetting:
    """A setting that holds as long as any context of any thread is open.

    Each context saving and restoring the value by itself would leave the process changed: of two
    that overlap, the second saves what the first has set, and restores that last.

    Args:
        change: changes the setting; returns a function that undoes it.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._open = 0
        self._undo: Callable[[], None] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within the context, the setting is changed."""
        with self._lock:
            if self._open == 0:
                self._undo = self._change()
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                if self._open == 0:
                    assert self._undo is not None
                    self._undo()
                    self._undo = None
