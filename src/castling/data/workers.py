"""Loader processes and signals."""

from __future__ import annotations

import os
import signal
from typing import Any


def outlive_signals(worker: int) -> None:
    """For ``DataLoader(worker_init_fn=…)``: leave Ctrl-C and the first SIGTERM to the main process.

    A terminal, ``timeout`` and schedulers send them to all processes of a group. The main process
    may want to finish a step, for which it needs its batches. It ends its workers by a message, and
    by SIGTERM only where one hangs: PyTorch sends it once, and Python once more at its exit.
    """
    first = True

    def on_sigterm(signum: int, frame: Any) -> None:
        nonlocal first
        if not first:
            os._exit(0)
        first = False

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_sigterm)
