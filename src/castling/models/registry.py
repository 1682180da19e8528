"""Which models of timm's registry are ours."""

from __future__ import annotations

import timm
from timm.models import model_entrypoint


def list_models(pattern: str = "*") -> list[str]:
    """Names of this package's models that match a shell pattern, sorted as timm sorts."""
    names: list[str] = timm.list_models(pattern)
    return [n for n in names if model_entrypoint(n).__module__.startswith("castling.")]
