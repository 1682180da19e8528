"""Loader processes and signals."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing.util  # noqa: F401, registers its function of atexit before ours
import os
import signal
from collections.abc import Callable
from functools import cache, partial
from multiprocessing.sharedctypes import RawValue
from typing import Any


@cache
def outliving_signals() -> Callable[[int], None]:
    """For ``DataLoader(worker_init_fn=…)``: leave Ctrl-C and the first SIGTERM to the main process.

    A terminal, ``timeout`` and schedulers send them to all processes of a group. The main process
    may want to finish a step, for which it needs its batches. It ends its workers by a message, and
    by SIGTERM where one hangs (PyTorch), or where a loader is still open as it exits (Python). The
    latter comes once only and is then waited for, so the main process says before
    that it is leaving.
    """
    leaving = RawValue(ctypes.c_bool, False)
    # Functions of atexit run in the reverse of the order in which they were registered: this one
    # before the one of multiprocessing.util, which sends the signal.
    atexit.register(_leave, leaving)
    return partial(_outlive_signals, leaving)


def _leave(leaving: Any) -> None:
    leaving.value = True


def _outlive_signals(leaving: Any, worker: int) -> None:
    """Runs in the worker; ``leaving`` is memory shared with the main process."""
    first = True

    def on_sigterm(signum: int, frame: Any) -> None:
        nonlocal first
        if leaving.value or not first:
            os._exit(0)
        first = False

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_sigterm)
