"""Validation of the plain values in a plan's file."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from castling.attention import AttentionConfig, config_from_dict

Choice = Literal["softmax", "linear"]


class PlanError(ValueError):
    """The file is no plan, or the plan is of another model."""


def build(kind: type[Any], values: object, what: str, **ready: Any) -> Any:
    """A dataclass of plain values; ``ready`` fields are built already."""
    if not isinstance(values, dict):
        raise PlanError(f"{what} must be an object, got {type(values).__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    wrong = sorted({str(name) for name in values} ^ set(fields))
    if set(wrong) - {"verified"}:
        raise PlanError(f"{what} must have the entries {', '.join(fields)}; see {wrong[0]:.60}")
    checks = {"str": text, "int": _count, "float": _time, "Choice": _choice}
    plain = {
        name: checks[str(field.type)](values.get(name), f"{what}'s {name}")
        for name, field in fields.items()
        if name not in ready
    }
    return kind(**plain, **ready)


def text(value: object, what: str) -> str:
    """A short printable text."""
    if not isinstance(value, str) or not value or len(value) > 500 or not value.isprintable():
        raise PlanError(f"{what} must be a short text")
    return value


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 40:
        raise PlanError(f"{what} must be a positive integer, got {value!r:.60}")
    return value


def _time(value: object, what: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < 1e12:  # type: ignore[operator]  # NaN is refused as well
        raise PlanError(f"{what} must be a time in milliseconds, got {value!r:.60}")
    return float(value)  # type: ignore[arg-type]


def _choice(value: object, what: str) -> Choice:
    if value not in get_args(Choice):
        raise PlanError(f"{what} must be one of {', '.join(get_args(Choice))}, got {value!r:.60}")
    return value  # type: ignore[return-value]


def entries(value: object, what: str) -> list[Any]:
    """A list that is not empty."""
    if not isinstance(value, list) or not value:
        raise PlanError(f"{what} must be a list with entries")
    return value


def size_of(value: object) -> tuple[int, int]:
    """(height, width) in pixels."""
    sides = entries(value, "image_size")
    if len(sides) != 2:
        raise PlanError("image_size must be [height, width]")
    return _count(sides[0], "image_size"), _count(sides[1], "image_size")


def attention_of(value: object) -> AttentionConfig:
    """A registered attention's configuration."""
    if not isinstance(value, dict):
        raise PlanError(f"attention must be an object, got {type(value).__name__}")
    try:
        return config_from_dict(value)
    except (ValueError, TypeError) as error:
        raise PlanError(f"attention: {error}") from error
