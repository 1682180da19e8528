"""What a :class:`~castling.surgery.geometry.Geometry` remembers of images and their tokens.

Everything is kept by weak reference: a record never keeps a tensor alive.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

Grid = tuple[int, int]

# Embeddings and block outputs remembered outside of a host's own call. A forward has one of each;
# code that embeds several crops before it runs the blocks has a few.
_RECENT = 16


def downsampled(grid: Grid, times: int) -> Grid:
    """(h, w) after so many downsamplings by two, each rounding up."""
    height, width = grid
    for _ in range(times):
        height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
    return height, width


class TokenGrid(NamedTuple):
    """The grid of the tokens of one forward, after ``level`` downsamplings by two."""

    height: int
    width: int
    level: int = 0

    def at(self, level: int) -> Grid:
        """(h, w) after ``level`` downsamplings in all, each rounding up."""
        grid = self[:2]
        return grid if level == self[2] else downsampled(grid, level - self[2])

    def tokens(self, level: int) -> int:
        """h·w at ``level``."""
        height, width = self.at(level)
        return height * width


class Embedding:
    """One image batch that went through a patch embedding: where tokens come from.

    Attributes:
        grid: of its tokens.
        batch: B; 0 where it does not matter.
        readers: id of an attention's place -> the tokens of this image that reached it first, or
            the module around it that starts with it.
    """

    __slots__ = ("batch", "grid", "readers")

    def __init__(self, grid: TokenGrid, batch: int = 0) -> None:
        self.grid, self.batch = grid, batch
        self.readers: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def read(self, reader: int, tokens: Tensor) -> None:
        """A module was called with tokens of this image."""
        self.readers[reader] = (weakref.ref(tokens), _version(tokens))

    def is_new_to(self, reader: int, tokens: Tensor) -> bool:
        """Whether this module has not been called with other tokens of the image already."""
        seen = self.readers.get(reader)
        return seen is None or (seen[0]() is tokens and seen[1] == _version(tokens))


class Call:
    """A module that is running, and where its tokens come from, or why that is not known."""

    __slots__ = ("owner", "source")

    def __init__(self, owner: object, source: Embedding | str) -> None:
        self.owner, self.source = owner, source


class Embeddings:
    """The image batches that one forward embedded, or code outside of the host's own forward."""

    def __init__(self) -> None:
        #: (grid, B) -> how many were embedded whose tokens no module has seen yet.
        self._unread: dict[tuple[TokenGrid, int], int] = {}
        self._read: deque[Embedding] = deque(maxlen=_RECENT)

    def add(self, grid: TokenGrid, batch: int) -> None:
        """An image batch was embedded."""
        self._unread[grid, batch] = self._unread.get((grid, batch), 0) + 1

    def grids(self) -> set[TokenGrid]:
        """All grids."""
        return {grid for grid, _ in self._unread} | {e.grid for e in self._read}

    def only(self, count: int, level: int, prefix: int) -> Embedding | str:
        """The only image of a forward, in whatever batches it computes its tokens."""
        (grid,) = self.grids()
        if grid.tokens(level) + prefix != count:
            return _misfit(grid, prefix)
        if not self._read:
            self._read.append(Embedding(grid))
        return self._read[0]

    def source(
        self, tokens: Tensor, reader: int, level: int, prefix: int, *, one_size: bool
    ) -> Embedding | str:
        """The only image that these tokens can come from; see :meth:`ThreadRecords.source`."""
        batch, count = tokens.shape[:2]
        fitting = {grid for grid in self.grids() if grid.tokens(level) + prefix == count}
        if not fitting:
            return _misfit(max(self.grids()), prefix)
        unread = {grid for grid in fitting if self._share(grid, batch)}
        # A module that had an image's tokens already is now called with those of another.
        read = [
            e
            for e in self._read
            if e.grid in fitting and e.batch == batch and (one_size or e.is_new_to(reader, tokens))
        ]
        grids = unread | {e.grid for e in read}
        if len(grids) > 1:
            return _either(grids)
        if unread:
            (grid,) = unread
            for key in self._share(grid, batch):
                self._unread[key] -= 1
                if not self._unread[key]:
                    del self._unread[key]
            self._read.append(Embedding(grid, batch))
            return self._read[-1]
        return read[0] if read else ALREADY_READ

    def _share(self, grid: TokenGrid, batch: int) -> list[tuple[TokenGrid, int]]:
        """The unread batches of a grid that make ``batch`` images: one, or all together."""
        if (grid, batch) in self._unread:
            return [(grid, batch)]
        parts = [key for key, times in self._unread.items() if key[0] == grid for _ in range(times)]
        return parts if parts and sum(size for _, size in parts) == batch else []


class ThreadRecords:
    """What one thread does with a host.

    Attributes:
        calls: running modules that hold attentions, outermost first.
        outputs: what such modules returned lately, and where it comes from.
        given: id of a watch -> the grid that ``token_grid`` gives it.
        expected: the grid that the patch embedding now running makes by its image's size, until
            its projection tells.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.outputs: deque[tuple[weakref.ref[Tensor], int, Embedding]] = deque(maxlen=_RECENT)
        self.given: dict[int, TokenGrid] = {}
        self.expected: Grid | None = None
        # By backward pass, -1 outside of any: the running forward of the host, and other code.
        self._forward: tuple[int, Embeddings] | None = None
        self._outside = Embeddings()
        self._recomputed: tuple[int, Embeddings] = (-1, self._outside)

    def begin(self, task: int) -> None:
        """The host's own ``forward`` begins, in a backward pass or, -1, outside."""
        self.calls.clear()
        self._forward = (task, Embeddings())

    def end(self) -> None:
        """The host's ``forward`` has ended, and with it what it embedded."""
        self.calls.clear()
        self._forward = None

    def embedded(self, grid: TokenGrid, batch: int, task: int) -> None:
        """An image batch was embedded."""
        self.calls.clear()  # left over from a module that was interrupted
        self.expected = None
        if self._forward is not None and self._forward[0] == task:
            self._forward[1].add(grid, batch)
        elif task == -1:
            self._outside.add(grid, batch)
        else:
            if self._recomputed[0] != task:
                self._recomputed = (task, Embeddings())
            self._recomputed[1].add(grid, batch)

    def grids_outside(self) -> set[TokenGrid]:
        """Grids of the images embedded outside of the host's forward and of backward passes."""
        return self._outside.grids()

    def leave(self, owner: object) -> Call | None:
        """The call of the module that ends here, with those inside it that were interrupted."""
        if all(call.owner is not owner for call in self.calls):
            return None
        while True:
            call = self.calls.pop()
            if call.owner is owner:
                return call

    def returned(self, tokens: Tensor, source: Embedding) -> None:
        """The outermost running module returned ``tokens``."""
        self.outputs.append((weakref.ref(tokens), _version(tokens), source))

    def source_of_output(self, tokens: Tensor) -> Embedding | None:
        """Where tokens come from that an earlier module returned and nobody wrote to since."""
        for output, version, source in reversed(self.outputs):
            if output() is tokens:
                return source if version == _version(tokens) else None
        return None

    def confirmed(self, known: Embedding, task: int, level: int) -> Embedding | str:
        """A source known by memory, unless the host's running call is of one other image.

        Memory tells whose tokens these were first; a learned tensor, say, is the same for all.
        """
        if self._forward is not None and self._forward[0] == task and not known.grid.level:
            grids = self._forward[1].grids()
            if len(grids) == 1 and known.grid not in grids:
                (other,) = grids
                if other.tokens(level) == known.grid.tokens(level):
                    return _either((known.grid, other))
        return known

    def source(
        self, tokens: Tensor, reader: int, task: int, level: int, prefix: int, *, one_size: bool
    ) -> Embedding | str:
        """The only image that these tokens can come from, or why there is none.

        Args:
            tokens: (B, N, C).
            reader: id of the place of the first attention that they meet.
            task: the backward pass that this happens in, -1 outside.
            level: downsamplings between the patch embedding and ``tokens``.
            prefix: tokens in front of the grid.
            one_size: the host takes images of one size only.
        """
        if self._forward is not None and self._forward[0] == task:
            embeddings = self._forward[1]
            if len(embeddings.grids()) == 1:
                return embeddings.only(tokens.shape[1], level, prefix)
        elif task == -1:
            embeddings = self._outside
        elif self._recomputed[0] == task:
            embeddings = self._recomputed[1]
        else:
            return NO_IMAGE
        if not embeddings.grids():
            return NO_IMAGE
        return embeddings.source(tokens, reader, level, prefix, one_size=one_size)


NO_IMAGE = "no image went through the patch embedding in this forward"
ALREADY_READ = (
    "no image of this grid and as many in a batch were embedded since this module had such tokens"
)


def _version(tokens: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count it."""
    return -1 if tokens.is_inference() else tokens._version


def _either(grids: Iterable[TokenGrid]) -> str:
    return f"images of {_listed(grids)} patches were embedded and the tokens could be of either"


def recomputed(grids: Iterable[TokenGrid]) -> str:
    """Why a module recomputed in a backward pass does not know its grid."""
    return (
        "they are recomputed in a backward pass from an input that the forward pass did not see, "
        f"and could be of {_listed(grids) or 'any'} patches"
    )


TWO_IN_A_GRAPH = (
    "images of two shapes were embedded before a block was called, and compiled or traced code "
    "cannot tell them apart; send each through the blocks before the next"
)


def conflicting(known: TokenGrid, others: Iterable[TokenGrid]) -> str:
    """Why tokens are not taken to be of ``known``: as many make another grid; "" if none does."""
    count = known.tokens(known.level)
    alike = {g for g in others if g.level == known.level and g.tokens(g.level) == count}
    return _either(alike | {known}) if alike - {known} else ""


def _misfit(grid: TokenGrid, prefix: int) -> str:
    front = f" behind {prefix} prefix tokens" if prefix else ""
    return f"the images embedded here make {grid.height}×{grid.width} tokens{front}"


def _listed(grids: Iterable[TokenGrid]) -> str:
    return " or ".join(sorted({f"{grid.height}×{grid.width}" for grid in grids}))
