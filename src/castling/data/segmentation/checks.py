"""What is wrong with scanned masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from castling.data.faults import Faults
from castling.data.segmentation.encoding import Encoding, Segments
from castling.data.segmentation.raw_mask import code_of, colour_of
from castling.data.segmentation.scan import MaskFacts
from castling.utils.labels import IGNORED
from castling.utils.text import few

_BYTE = 255


def check_mask(
    facts: MaskFacts, name: str, encoding: Encoding, segments: Segments | None, faults: Faults
) -> bool:
    """Faults of what one mask holds.

    Args:
        facts: of the mask.
        name: how a person finds it.
        encoding: what its numbers or colours mean.
        segments: of this mask alone.
        faults: takes what is found.

    Returns:
        Whether it can be used.
    """
    raw = facts.raw
    if raw.lossy:
        faults.add("lossy", name)
        return False
    if raw.colour and segments is None and not encoding.colours:
        faults.add("rgb", name)
        return False
    if raw.see_through:
        faults.add("alpha", name)
        return False
    if raw.see_through is not None:
        faults.add("opaque", name)
    counts, unknown = facts.label_counts(encoding, segments)
    if len(unknown):
        codes, colour = facts.read(encoding)
        ids = segments is not None and colour
        shown = [
            f"{code if ids or not colour else ','.join(map(str, colour_of(code)))} ({count} pixels)"
            for code, count in zip(
                codes[unknown].tolist(), facts.counts[unknown].tolist(), strict=True
            )
        ]
        wide = raw.wide and codes[unknown].max() > _BYTE
        kind = "wide" if wide else "unknown_segment" if ids else "unknown_value"
        kind = "unknown_colour" if colour and not ids else kind
        faults.add(kind, f"{name}: {few(shown, 3)}")
        return False
    if not counts[:IGNORED].any():
        faults.add("all_ignored", name)
    return True


def check_palettes(
    names: Sequence[str], masks: Sequence[MaskFacts], encoding: Encoding, faults: Faults
) -> None:
    """Whether the palettes of all masks agree on the numbers that are used.

    A number that has another colour than in masks before it only looks different. Where that colour
    belongs to another number there, somebody's program has numbered colours anew in every mask.
    """
    colour_of_number: dict[int, int] = {}
    numbers_of_colour: dict[int, set[int]] = {}
    table = {label: code for code, label in encoding.colours.items()}
    for value, label in encoding.values.items():
        if label in table and label != IGNORED:
            colour_of_number[value] = table[label]
            numbers_of_colour.setdefault(table[label], set()).add(value)
    for name, facts in zip(names, masks, strict=True):
        if facts.shown is None or facts.raw.colour:
            continue
        own = {
            int(number): code_of((red, green, blue))
            for number, (red, green, blue) in zip(
                facts.codes.tolist(), facts.shown.tolist(), strict=True
            )
            if encoding.values.get(int(number), IGNORED) != IGNORED
        }
        other = [n for n, code in own.items() if colour_of_number.get(n, code) != code]
        moved = [n for n in other if numbers_of_colour.get(own[n], {n}) - {n}]
        if moved:
            number = moved[0]
            before = min(numbers_of_colour[own[number]] - {number})
            shown = ",".join(map(str, colour_of(own[number])))
            faults.add("palette", f"{name}: {shown} is {number}, and {before} before")
        elif other:
            faults.add("other_palette", f"{name}: {few(map(str, other), 3)}")
        else:
            for number, code in own.items():
                colour_of_number.setdefault(number, code)
                numbers_of_colour.setdefault(code, set()).add(number)


def only_black_and_white(masks: Sequence[MaskFacts]) -> bool:
    """Whether numbers are 0 and 255 alone, both of them: masks of one object, as tools draw it."""
    used: set[int] = set()
    for facts in masks:
        if facts.raw.colour:
            return False
        used.update(facts.codes.tolist())
    return used == {0, _BYTE}


def highest_number(masks: Sequence[MaskFacts], ignore: Sequence[int]) -> int:
    """The highest number below 255 that means a class; -1 without one."""
    found = [
        facts.codes[(facts.codes < _BYTE) & ~np.isin(facts.codes, ignore)]
        for facts in masks
        if not facts.raw.colour
    ]
    return max((int(each.max()) for each in found if len(each)), default=-1)
