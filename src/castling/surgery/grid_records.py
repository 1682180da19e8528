"""What a :class:`~castling.surgery.geometry.Geometry` remembers of images and their tokens.

Everything is kept by weak reference: a record never keeps a tensor alive.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

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
    """One image batch that went through a patch embedding.

    Attributes:
        grid: of its tokens.
        batch: B.
        readers: id of a module's place -> the tokens it took this grid for.
    """

    __slots__ = ("batch", "grid", "readers")

    def __init__(self, grid: TokenGrid, batch: int) -> None:
        self.grid, self.batch = grid, batch
        self.readers: dict[int, weakref.ref[Tensor]] = {}

    def is_new_to(self, reader: int, tokens: Tensor) -> bool:
        """Whether this module has not taken the grid for other tokens already."""
        seen = self.readers.get(reader)
        return seen is None or seen() is tokens


class Call:
    """A module that is running, and the grid of the tokens it was called with."""

    __slots__ = ("grid", "owner", "why")

    def __init__(self, owner: object, grid: TokenGrid | None, why: str) -> None:
        self.owner, self.grid, self.why = owner, grid, why


class ThreadRecords:
    """What one thread does with a host.

    Attributes:
        embeddings: image batches embedded: in the host's running call, else the last few.
        in_call: whether the host's own ``forward`` is running.
        task: the backward pass that the embeddings belong to; -1 outside.
        calls: running modules that hold attentions, outermost first.
        outputs: what such modules returned lately, with its grid.
        given: id of a place -> the grid that ``token_grid`` gives it.
        expected: the grid that the patch embedding now running makes by its image's size, until
            its projection tells.
    """

    def __init__(self) -> None:
        self.embeddings: deque[Embedding] = deque(maxlen=_RECENT)
        self.in_call = False
        self.task = -1
        self.calls: list[Call] = []
        self.outputs: deque[tuple[weakref.ref[Tensor], TokenGrid]] = deque(maxlen=_RECENT)
        self.given: dict[int, TokenGrid] = {}
        self.expected: Grid | None = None

    def begin(self, task: int, *, in_call: bool) -> None:
        """Forget the embeddings of earlier forwards; the host's ``forward`` begins or has ended."""
        self.embeddings.clear()
        self.calls.clear()
        self.task, self.in_call = task, in_call

    def embedded(self, grid: TokenGrid, batch: int, task: int) -> None:
        """An image batch was embedded."""
        self.calls.clear()  # left over from a module that was interrupted
        self.expected = None
        if task != self.task:
            self.begin(task, in_call=False)
        self.embeddings.append(Embedding(grid, batch))

    def leave(self, owner: object) -> Call | None:
        """The call of the module that ends here, with those inside it that were interrupted."""
        if all(call.owner is not owner for call in self.calls):
            return None
        while True:
            call = self.calls.pop()
            if call.owner is owner:
                return call

    def returned(self, tokens: Tensor, grid: TokenGrid) -> None:
        """The outermost running module returned ``tokens``."""
        self.outputs.append((weakref.ref(tokens), grid))

    def output_grid(self, tokens: Tensor) -> TokenGrid | None:
        """The grid of tokens that are the very output of an earlier module."""
        for output, grid in reversed(self.outputs):
            if output() is tokens:
                return grid
        return None

    def confirmed(self, known: TokenGrid, task: int, level: int) -> TokenGrid | str:
        """A grid known by memory, unless the host's running call is of one other image.

        Memory tells whose tokens these were first; a learned tensor, say, is the same for all.
        """
        if self.in_call and self.task == task and not known.level:
            grids = {embedding.grid for embedding in self.embeddings}
            if len(grids) == 1 and known not in grids:
                (other,) = grids
                if other.tokens(level) == known.tokens(level):
                    return _either((known, other))
        return known

    def embedding_grid(
        self, tokens: Tensor, reader: int, level: int, prefix: int, *, one_size: bool
    ) -> TokenGrid | str:
        """The grid of the only embedding that these tokens can come from, or why there is none.

        Args:
            tokens: (B, N, C).
            reader: id of the place of the module that was called with them.
            level: downsamplings between the embedding and ``tokens``.
            prefix: tokens in front of the grid.
            one_size: the host takes images of one size only.
        """
        batch, count = tokens.shape[:2]
        grids = {embedding.grid for embedding in self.embeddings}
        if not grids:
            return NO_IMAGE
        fitting = [e for e in self.embeddings if e.grid.tokens(level) + prefix == count]
        if self.in_call and len(grids) == 1:
            # All tokens of this call are of one grid, in whatever batches it computes them.
            return fitting[0].grid if fitting else _misfit(self.embeddings, prefix)
        groups: list[list[Embedding]] = []
        for grid in dict.fromkeys(e.grid for e in fitting):
            same = [e for e in fitting if e.grid == grid]
            same = [e for e in same if not e.readers] or [
                e for e in same if one_size or e.is_new_to(reader, tokens)
            ]
            exact = [e for e in same if e.batch == batch]
            if exact:
                groups.append(exact[:1])
            elif same and sum(e.batch for e in same) == batch:  # embedded in parts
                groups.append(same)
        # Tokens of an image that no module has read yet come before those of one already read.
        unread = [group for group in groups if not group[0].readers]
        groups = unread or groups
        if len(groups) > 1:
            self.embeddings.clear()  # what embedded them is refused here
            return _either(group[0].grid for group in groups)
        if not groups:
            read = any(e.batch == batch for e in fitting)
            return ALREADY_READ if read else _misfit(self.embeddings, prefix)
        for embedding in groups[0]:
            embedding.readers[reader] = weakref.ref(tokens)
        return groups[0][0].grid


NO_IMAGE = "no image went through the patch embedding in this forward"
ALREADY_READ = "this module already had the tokens of the images embedded last"


def _either(grids: Iterable[TokenGrid]) -> str:
    return f"images of {_listed(grids)} patches were embedded and the tokens could be of either"


def recomputed(grids: Iterable[TokenGrid]) -> str:
    """Why a module recomputed in a backward pass does not know its grid."""
    return (
        "they are recomputed in a backward pass from an input that the forward pass did not see, "
        f"and could be of {_listed(grids) or 'any'} patches"
    )


def _misfit(embeddings: Iterable[Embedding], prefix: int) -> str:
    last = list(embeddings)[-1]
    front = f" behind {prefix} prefix tokens" if prefix else ""
    return (
        f"the images embedded last make {last.batch}×({last.grid.height}×{last.grid.width}){front}"
    )


def _listed(grids: Iterable[TokenGrid]) -> str:
    return " or ".join(sorted({f"{grid.height}×{grid.width}" for grid in grids}))


class InputGrids:
    """The grid of every input that a backward pass may compute again, by the input's memory.

    Gradient checkpointing keeps the inputs of what it will recompute. An input that is still alive
    was recorded by its own forward. One that was written to in the meantime has another version and
    is not found.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int], tuple[StorageWeakRef, int, TokenGrid]] = {}
        self._limit = 64

    def record(self, tokens: Tensor, grid: TokenGrid) -> None:
        """Remember ``tokens`` for as long as they live."""
        try:
            storage, version = tokens.untyped_storage(), tokens._version
            key = (storage._cdata, int(tokens.storage_offset()))
            known = self._entries.get(key)
            if known is not None and known[1] == version and known[2] == grid:
                return
            self._entries[key] = (StorageWeakRef(storage), version, grid)
        except (NotImplementedError, RuntimeError):  # tensors without memory or without versions
            return
        if len(self._entries) > self._limit:
            for key, (reference, *_) in list(self._entries.items()):
                if reference.expired():
                    self._entries.pop(key, None)
            self._limit = max(64, 2 * len(self._entries))

    def find(self, tokens: Tensor) -> TokenGrid | None:
        """The recorded grid; a weak reference keeps its address from being used again."""
        try:
            key = (tokens.untyped_storage()._cdata, int(tokens.storage_offset()))
            entry = self._entries.get(key)
            return entry[2] if entry is not None and entry[1] == tokens._version else None
        except (NotImplementedError, RuntimeError):
            return None
