"""Surgery on models: replace attention, switch, fold, load."""

from castling.surgery.hosts import HostAttention, Place, register_host
from castling.surgery.linearize import convertible, linearize_
from castling.surgery.switch import (
    SwitchRefusedError,
    SwitchReport,
    is_switched,
    strip_,
    switch_,
)

__all__ = [
    "HostAttention",
    "Place",
    "SwitchRefusedError",
    "SwitchReport",
    "convertible",
    "is_switched",
    "linearize_",
    "register_host",
    "strip_",
    "switch_",
]
