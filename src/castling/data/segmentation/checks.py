"""What is wrong with scanned masks, and with their images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from castling.data.decode import read_image, read_orientation
from castling.data.faults import Faults
from castling.data.files import FileStore
from castling.data.problems import Depth
from castling.data.segmentation.encoding import Encoding, Segments
from castling.data.segmentation.pairs import Pairs
from castling.data.segmentation.raw_mask import code_of, colour_of, segment_id
from castling.data.segmentation.scan import MaskFacts
from castling.data.verify import visit_all
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
        codes, _ = facts.read(encoding)
        shown = [f"{_rgb(code)} ({count} pixels)" for code, count in _most(codes, facts.counts)]
        faults.add("rgb", f"{name}: {few(shown, 6)}")
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
        show = segment_id if ids else _rgb if colour else int
        shown = [
            f"{show(code)} ({count} pixels)"
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


def check_images(
    store: FileStore, pairs: Pairs, masks: Sequence[MaskFacts | str], depth: Depth
) -> tuple[Faults, list[str], dict[int, int]]:
    """Sizes and orientations of images against those of their masks.

    Args:
        store: holds the images.
        pairs: of one split.
        masks: the facts of each; a text for those that cannot be read.
        depth: ``full`` decodes images; otherwise their headers are read.

    Returns:
        The faults, a complaint for each image that cannot be read, and the bytes of the others.
    """
    found: dict[int, tuple[str, str]] = {}
    bytes_of: dict[int, int] = {}

    def visit(index: int) -> None:
        file, facts = pairs.images[index], masks[index]
        name = store.describe(file)
        with store.open(file) as stream:
            stored, upright, turned = read_orientation(stream, name)
            if depth == "full":
                stream.seek(0)
                read_image(stream, name)
            bytes_of[index] = stream.seek(0, 2)
        if isinstance(facts, MaskFacts) and facts.size[::-1] not in (stored, upright):
            sizes = (f"{width}×{height}" for width, height in (facts.size[::-1], upright))
            found[index] = (
                "other_size",
                f"{pairs.masks[index]}: {' for an image of '.join(sizes)}",
            )
        elif turned:
            found[index] = ("rotated", file)

    complaints = visit_all(len(pairs), visit)
    faults = Faults()
    for index in sorted(found):
        faults.add(*found[index])
    return faults, complaints, dict(sorted(bytes_of.items()))


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
            faults.add("palette", f"{name}: {_rgb(own[number])} is {number}, and {before} before")
        elif other:
            faults.add("other_palette", f"{name}: {few(map(str, other), 3)}")
        else:
            for number, code in own.items():
                colour_of_number.setdefault(number, code)
                numbers_of_colour.setdefault(code, set()).add(number)


def _most(codes: NDArray[np.int32], counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Codes with their counts, the most frequent first."""
    pairs = zip(codes.tolist(), counts.tolist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def _rgb(code: int) -> str:
    return ",".join(map(str, colour_of(code)))


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
