"""Settings that overlapping contexts share."""

import logging
import threading
import warnings

import torch

from castling.export.target import quiet_exporter
from castling.utils.shared import SharedSetting


def overlap(context):
    """A opens, B opens, A closes, B closes."""
    opened, closed = threading.Event(), threading.Event()

    def first():
        with context():
            opened.set()
            closed.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    opened.wait(10)
    with context():
        closed.set()
        thread.join()
        yield "inside"
    yield "outside"


def test_the_first_sets_and_the_last_restores():
    value = ["old"]

    def change():
        before, value[0] = value[0], "new"

        def undo():
            value[0] = before

        return undo

    setting = SharedSetting(change)
    assert [(where, value[0]) for where in overlap(setting)] == [
        ("inside", "new"),
        ("outside", "old"),
    ]


def test_overlapping_exports_leave_logging_and_warnings_as_they_were():
    before = logging.root.manager.disable, list(warnings.filters)
    found = [logging.root.manager.disable for _ in overlap(quiet_exporter)]
    assert found == [logging.WARNING, before[0]]
    assert list(warnings.filters) == before[1]


def test_overlapping_counts_leave_the_fused_attention_on():
    from castling.ops.macs import _plain_attention

    enabled = torch.backends.mha.get_fastpath_enabled
    assert enabled()
    assert [enabled() for _ in overlap(_plain_attention)] == [False, True]
