"""Configurations are checked where they are built: each field against its own type.

The command line checks numbers by the types of jsonargparse (``PositiveInt``, …). The same types
are checked here when a configuration is built in Python or from plain values, so that a range is
stated once, in the annotation.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
)

from castling.utils.text import did_you_mean

ConfigT = TypeVar("ConfigT")

RightOpenUnitInterval = restricted_number_type(
    "RightOpenUnitInterval", float, [(">=", 0), ("<", 1)]
)
LeftOpenUnitInterval = restricted_number_type("LeftOpenUnitInterval", float, [(">", 0), ("<=", 1)])

_NUMBERS = {
    PositiveInt: "a whole number of at least 1",
    NonNegativeInt: "a whole number of at least 0",
    PositiveFloat: "a number above 0",
    NonNegativeFloat: "a number of at least 0",
    ClosedUnitInterval: "a number in [0, 1]",
    OpenUnitInterval: "a number in (0, 1)",
    RightOpenUnitInterval: "a number in [0, 1)",
    LeftOpenUnitInterval: "a number in (0, 1]",
    int: "a whole number",
    float: "a number",
}
_WRONG = object()
_HINTS: dict[type, dict[str, Any]] = {}
# Modules that ``import castling`` loads import these for type checking only: jsonargparse is slow.
_NUMBER_NAMES = {kind.__name__: kind for kind in _NUMBERS}


def check_fields(config: Any, section: str = "") -> None:
    """Check every field of a dataclass against its annotation; for ``__post_init__``.

    Lists become tuples and jsonargparse's numbers plain ``int`` and ``float`` where the annotation
    says so; the fields are set anew, also those of a frozen dataclass.

    Args:
        config: an instance of a dataclass.
        section: where the fields stand in a recipe, such as ``"data.loader"``; for messages.

    Raises:
        ValueError: a value does not fit; the message names the field, the value and what fits.
    """
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        checked = _fitted(value, hint)
        if checked is _WRONG:
            label = f"{section}.{name}" if section else name
            raise ValueError(f"{label} is {value!r}; it must be {_wanted(hint)}")
        object.__setattr__(config, name, checked)


def config_from_dict(
    config_class: type[ConfigT], values: Mapping[str, Any], section: str = ""
) -> ConfigT:
    """Build a configuration from plain values, as a YAML or JSON file gives them.

    Fields that are dataclasses themselves take a mapping.

    Args:
        config_class: a dataclass.
        values: by field.
        section: where they stand in a recipe; for messages.

    Raises:
        ValueError: a field is unknown or missing, or a value does not fit.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{section or config_class.__name__} is {values!r}; it must be a mapping")
    hints = _hints(config_class)
    check_known(values, hints, section)
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = [option for option in _options(hints[name]) if dataclasses.is_dataclass(option)]
        if nested and isinstance(value, Mapping):
            label = f"{section}.{name}" if section else name
            value = config_from_dict(nested[0], value, label)  # type: ignore[arg-type]
        found[name] = value
    missing = [
        field.name
        for field in dataclasses.fields(config_class)  # type: ignore[arg-type]
        if field.name not in found
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{section or config_class.__name__} lacks {', '.join(missing)}")
    return config_class(**found)


def check_known(values: Mapping[str, Any], known: Mapping[str, Any], section: str) -> None:
    """Raise ValueError unless every name is known; the message lists the nearest or all names."""
    for name in values:
        if name not in known:
            where = f" in {section}" if section else ""
            hint = did_you_mean(str(name), known)
            options = f"; known are {', '.join(known)}" if known else "; it has none"
            raise ValueError(f"there is no option {name!r}{where}{hint or options}")


def _hints(config_class: Any) -> dict[str, Any]:
    """Resolved annotations of the fields, in their order.

    The number types are known here, so that modules that ``import castling`` loads may import them
    under ``TYPE_CHECKING`` only, without jsonargparse.
    """
    if config_class not in _HINTS:
        hints = get_type_hints(config_class, localns=_NUMBER_NAMES)
        names = [field.name for field in dataclasses.fields(config_class)]
        _HINTS[config_class] = {name: hints[name] for name in names}
    return _HINTS[config_class]


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; the hint alone where it is none."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fitted(value: Any, hint: Any) -> Any:
    """``value`` in the form that the hint asks for, or ``_WRONG``."""
    for option in _options(hint):
        fitted = _fit_one(value, option)
        if fitted is not _WRONG:
            return fitted
    return _WRONG


def _fit_one(value: Any, hint: Any) -> Any:
    if hint is Any:
        return value
    if hint is None or hint is types.NoneType:
        return value if value is None else _WRONG
    origin = get_origin(hint)
    if origin is Literal:
        # 1 == True, but 1 is not what Literal[True] means.
        fits = any(value == each and type(value) is type(each) for each in get_args(hint))
        return value if fits else _WRONG
    if origin is tuple:
        return _fit_tuple(value, get_args(hint))
    if hint in _NUMBERS:
        return _fit_number(value, hint)
    return value if isinstance(value, origin or hint) else _WRONG


def _fit_number(value: Any, kind: type) -> Any:
    whole = issubclass(kind, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return _WRONG
    try:
        number = kind(value)
    except ValueError:  # jsonargparse's types refuse what lies out of their range
        return _WRONG
    if not math.isfinite(number):
        return _WRONG
    return int(number) if whole else float(number)


def describe_number(type_name: str) -> str:
    """What a number type of an option allows, in words; the name where it is none of ours."""
    return next(
        (words for kind, words in _NUMBERS.items() if kind.__name__ == type_name), type_name
    )


def _fit_tuple(value: Any, members: tuple[Any, ...]) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return _WRONG
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        return _WRONG
    fitted = tuple(_fitted(each, member) for each, member in zip(value, members, strict=True))
    return _WRONG if any(each is _WRONG for each in fitted) else fitted


def _wanted(hint: Any) -> str:
    """What fits, in words."""
    return " or ".join(_wanted_one(option) for option in _options(hint))


def _wanted_one(hint: Any) -> str:
    if hint is types.NoneType:
        return "none"
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if origin is tuple:
        members = get_args(hint)
        if members[-1] is Ellipsis:
            return f"a list, each of it {_wanted(members[0])}"
        return f"a list of {len(members)}, each of it {_wanted(members[0])}"
    words = {**_NUMBERS, bool: "true or false", str: "text"}
    return words.get(hint, f"a {getattr(hint, '__name__', hint)}")
