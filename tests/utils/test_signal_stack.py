"""Signals are handled after libraries have changed the stack for it."""

import ctypes
import os
import signal
import sys

import pytest

from castling.utils.signal_stack import SignalStack, signal_stack, signal_stack_kept

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sigaltstack(2) of Linux")


def described():
    stack = signal_stack()
    return stack.pointer, stack.flags, stack.size


@linux
@pytest.mark.parametrize("fails", [False, True])
def test_the_stack_is_set_back(fails):
    before, size = described(), 1 << 16
    memory = ctypes.create_string_buffer(size)
    try:
        with signal_stack_kept():
            other = SignalStack(ctypes.addressof(memory), 0, size)
            assert ctypes.CDLL(None).sigaltstack(ctypes.byref(other), None) == 0
            assert described() == (ctypes.addressof(memory), 0, size) != before
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert described() == before


@linux
def test_a_stack_that_is_refused_is_left_out(monkeypatch):
    handled = []
    before = signal_stack()
    monkeypatch.setattr(
        "castling.utils.signal_stack.signal_stack", lambda: SignalStack(before.pointer, 0, 1)
    )
    with signal_stack_kept():
        pass
    try:
        assert described()[1] == 2
        old = signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, old)
        assert handled == [True]
    finally:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)


def test_other_systems_have_none(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert signal_stack() is None
    with signal_stack_kept():
        pass
