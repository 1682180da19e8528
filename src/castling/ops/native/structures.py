"""Argument structures of the C++ kernels: one description makes the C++ header and the packing.

- Every number takes eight bytes, so that neither side needs padding rules.
- A structure is packed by name: a misspelt, missing or surplus field is a TypeError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

#: Kinds of fields that are no plain numbers: a tensor, and a tensor that may be None.
TENSOR, OPTIONAL_TENSOR = "Tensor4", "Tensor4?"
INTEGER, REAL = "int64_t", "double"
_NO_TENSOR = (0, 0, 0, 0, 0)


class Field(NamedTuple):
    """One field.

    Attributes:
        name: in C++, and the keyword in Python.
        kind: ``TENSOR``, ``OPTIONAL_TENSOR`` (B, N, H, d), ``INTEGER``, ``REAL``, or a C++ pointer
            type, which is given as an address, 0 for none.
        comment: for readers of the header.
    """

    name: str
    kind: str
    comment: str = ""


class Block(NamedTuple):
    """Fields that are packed apart, because they are often the same or absent.

    Attributes:
        name: keyword of the packed block; ``b""`` fills it with zeros.
        comment: for readers of the header.
        fields: its fields.
    """

    name: str
    comment: str
    fields: tuple[Field, ...]


class Structure(NamedTuple):
    """A C++ structure; a kernel takes the address of one.

    Attributes:
        name: in C++.
        comment: for readers of the header.
        members: in the order of memory.
    """

    name: str
    comment: str
    members: tuple[Field | Block, ...]


def packer(members: Sequence[Field | Block]) -> Callable[..., bytes]:
    """A function that packs members given by name.

    It is compiled from source, as ``dataclasses`` does: a loop over the fields would take several
    microseconds, as long as small attention itself.
    """
    formats = "".join(_format(member) for member in members)
    names = ", ".join(member.name for member in members)
    values = ", ".join(_values(member) for member in members)
    namespace = {"pack": struct.Struct("=" + formats).pack, "strided": _strided}
    exec(f"def packed(*, {names}):\n    return pack({values})", namespace)
    packed: Callable[..., bytes] = namespace["packed"]  # type: ignore[assignment]
    return packed


def header(
    structures: Sequence[Structure], enumerations: Mapping[str, Sequence[str]], command: str
) -> str:
    """The C++ header of structures and enumerations.

    Args:
        structures: in the order of the header.
        enumerations: name to enumerators, numbered from 0.
        command: that wrote it, for its first line.
    """
    lines = [
        f"// Written by `{command}` from arguments.py; do not edit.",
        *("#pragma once", "", "#include <cstdint>", "", "namespace castling {"),
    ]
    for name, enumerators in enumerations.items():
        numbered = ", ".join(f"{each} = {number}" for number, each in enumerate(enumerators))
        lines += ["", f"enum {name} : int64_t {{ {numbered} }};"]
    lines += [
        "",
        "// Address and strides in elements of (batch, tokens, heads, channels); address 0: none.",
        "struct Tensor4 {",
        "  char* data;",
        "  int64_t batch, token, head, channel;",
        "};",
    ]
    for structure in structures:
        lines += ["", f"// {structure.comment}", f"struct {structure.name} {{"]
        for member in structure.members:
            if isinstance(member, Block):
                lines.append(f"  // {member.comment}")
            lines += map(_declaration, member.fields if isinstance(member, Block) else (member,))
        size = struct.calcsize("=" + "".join(map(_format, structure.members)))
        lines += ["};", f'static_assert(sizeof({structure.name}) == {size}, "no padding");']
    return "\n".join([*lines, "", "}  // namespace castling", ""])


def _format(member: Field | Block) -> str:
    if isinstance(member, Block):
        return f"{struct.calcsize('=' + ''.join(map(_format, member.fields)))}s"
    return {TENSOR: "5q", OPTIONAL_TENSOR: "5q", REAL: "d"}.get(member.kind, "q")


def _values(member: Field | Block) -> str:
    """The expression of what is packed, of a variable with the member's name."""
    if isinstance(member, Field) and member.kind == TENSOR:
        return f"{member.name}.data_ptr(), *{member.name}.stride()"
    if isinstance(member, Field) and member.kind == OPTIONAL_TENSOR:
        return f"*strided({member.name})"
    return member.name


def _strided(tensor: Tensor | None) -> tuple[int, ...]:
    return _NO_TENSOR if tensor is None else (tensor.data_ptr(), *tensor.stride())


def _declaration(field: Field) -> str:
    declaration = f"  {field.kind.rstrip('?')} {field.name};"
    return f"{declaration}  // {field.comment}" if field.comment else declaration
