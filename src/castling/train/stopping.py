"""Ctrl-C and SIGTERM: finish the step, save, say how to go on, end with 130 or 143."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

#: Signals within this time are one request: a terminal or scheduler sends to every process of a
#: group, and the first of them passes the signal on to the others as well.
SAME_REQUEST_SECONDS = 1.0
_Handler = Callable[[int, FrameType | None], Any] | int | None


class TrainingInterrupted(RuntimeError):  # noqa: N818 an event, not an error
    """Training was ended on request; the message says how to go on.

    Attributes:
        exit_code: for the process: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class _Terminated(BaseException):
    """SIGTERM outside of training steps; no ``except Exception`` may take it for a fault."""


class StopRequest:
    """What the signals SIGINT and SIGTERM ask of one run.

    During training the first signal is only noted: ``signum`` is set, and training stops after the
    step. At any other time, and from the second signal on, an exception is raised at once.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.noted_at = 0.0
        self.training = False
        #: Those handled here: none in a thread, where Python allows no handlers.
        self.signals: tuple[int, ...] = ()
        #: Passes a signal on to processes that train for this one.
        self.forward: Callable[[int], Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A process that trains for this one passes nothing on."""
        return {**self.__dict__, "forward": None}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the context, the signals of this process are handled.

        A handler of the caller's own for SIGTERM is left in place.

        Raises:
            TrainingInterrupted: training was stopped by a signal.
        """
        if threading.current_thread() is threading.main_thread():
            free = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            self.signals = (signal.SIGINT, signal.SIGTERM) if free else (signal.SIGINT,)
        previous: dict[int, _Handler] = {each: signal.getsignal(each) for each in self.signals}
        self.handle()
        try:
            yield
        except (KeyboardInterrupt, _Terminated, SystemExit) as error:
            signum = self._cause(error)
            if signum is None:
                raise
            raise TrainingInterrupted(
                "stopped at once without saving; the same command goes on from the last "
                "checkpoint, or from the beginning where there is none yet.",
                signum,
            ) from error
        finally:
            for each, handler in previous.items():
                if handler is not None:  # one that is not Python's cannot be set again
                    signal.signal(each, handler)

    def handle(self) -> None:
        """Install the handlers, in this process or in one that trains for it."""
        for signum in self.signals:
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum and now - self.noted_at < SAME_REQUEST_SECONDS:
            return
        first, self.noted_at = not self.signum, now
        self.signum = self.signum or signum
        if self.forward is not None:
            self.forward(signum)
            return
        if first and self.training:
            return
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise _Terminated

    def _cause(self, error: BaseException) -> int | None:
        """The signal behind an exception; None where there is none."""
        if isinstance(error, KeyboardInterrupt):
            return signal.SIGINT
        if isinstance(error, (_Terminated, SIGTERMException)):
            return signal.SIGTERM
        # Lightning turns a KeyboardInterrupt into an exit.
        return signal.SIGINT if isinstance(error.__context__, KeyboardInterrupt) else None
