"""The host families whose attention can be replaced: one file each, registered by being here."""

from importlib import import_module
from pkgutil import iter_modules

from castling.surgery.hosts.base import HostAttention, Place
from castling.surgery.hosts.registry import (
    adapter_for,
    adapter_on_request,
    register_host,
    supported_hosts,
    why_left,
)

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "HostAttention",
    "Place",
    "adapter_for",
    "adapter_on_request",
    "register_host",
    "supported_hosts",
    "why_left",
]
