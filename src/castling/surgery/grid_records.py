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
    """One image batch that went through a patch embedding: where tokens come from.

    Attributes:
        grid: of its tokens.
        batch: B.
        readers: id of an attention's place -> the tokens of this image that reached it first, or
            the module around it that starts with it.
    """

    __slots__ = ("batch", "grid", "readers")

    def __init__(self, grid: TokenGrid, batch: int) -> None:
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


class ThreadRecords:
    """What one thread does with a host.

    Attributes:
        embeddings: image batches embedded: in the host's running call, else the last few.
        in_call: whether the host's own ``forward`` is running.
        task: the backward pass that the embeddings belong to; -1 outside.
        calls: running modules that hold attentions, outermost first.
        outputs: what such modules returned lately, and where it comes from.
        given: id of a place -> the grid that ``token_grid`` gives it.
        expected: the grid that the patch embedding now running makes by its image's size, until
            its projection tells.
    """

    def __init__(self) -> None:
        self.embeddings: deque[Embedding] = deque(maxlen=_RECENT)
        self.in_call = False
        self.task = -1
        self.calls: list[Call] = []
        self.outputs: deque[tuple[weakref.ref[Tensor], int, Embedding]] = deque(maxlen=_RECENT)
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
        if self.in_call and self.task == task and not known.grid.level:
            grids = {embedding.grid for embedding in self.embeddings}
            if len(grids) == 1 and known.grid not in grids:
                (other,) = grids
                if other.tokens(level) == known.grid.tokens(level):
                    return _either((known.grid, other))
        return known

    def embedding_of(
        self, tokens: Tensor, reader: int, level: int, prefix: int, *, one_size: bool
    ) -> Embedding | str:
        """The only embedding that these tokens can come from, or why there is none.

        Args:
            tokens: (B, N, C).
            reader: id of the place of the first attention that they meet.
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
            return fitting[0] if fitting else _misfit(self.embeddings, prefix)
        exact = [e for e in fitting if e.batch == batch]
        # A module that had an image's tokens already is now called with those of another.
        new = [e for e in exact if one_size or e.is_new_to(reader, tokens)]
        new = new or self._joined(fitting, batch)
        grids = {embedding.grid for embedding in new}
        if len(grids) > 1:
            return _either(grids)  # until the host is called: the others may come later
        if not new:
            return ALREADY_READ if exact else _misfit(self.embeddings, prefix)
        return next((e for e in new if not e.readers), new[0])

    def _joined(self, fitting: list[Embedding], batch: int) -> list[Embedding]:
        """Images embedded in parts that together make the batch, as one embedding."""
        for grid in {e.grid for e in fitting}:
            parts = [e for e in fitting if e.grid == grid and not e.readers]
            if sum(e.batch for e in parts) == batch:
                for part in parts:
                    self.embeddings.remove(part)
                self.embeddings.append(Embedding(grid, batch))
                return [self.embeddings[-1]]
        return []


NO_IMAGE = "no image went through the patch embedding in this forward"
ALREADY_READ = "this module already had the tokens of the images embedded last"


def _version(tokens: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count it."""
    return -1 if tokens.is_inference() else tokens._version


def _either(grids: Iterable[TokenGrid]) -> str:
    return f"images of {_listed(grids)} patches were embedded and the tokens could be of either"


def conflicting(known: TokenGrid, others: Iterable[TokenGrid]) -> str:
    """Why tokens are not taken to be of ``known``: as many make another grid; "" if none does."""
    count = known.tokens(known.level)
    alike = {g for g in others if g.level == known.level and g.tokens(g.level) == count}
    return _either(alike | {known}) if alike - {known} else ""


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
    """Where every input comes from that a backward pass may compute again, by its memory.

    Gradient checkpointing keeps the inputs of what it will recompute. An input that is still alive
    was recorded by its own forward. One that was written to in the meantime has another version and
    is not found.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int], tuple[StorageWeakRef, int, Embedding]] = {}
        self._limit = 64

    def record(self, tokens: Tensor, source: Embedding) -> None:
        """Remember ``tokens`` for as long as they live."""
        try:
            storage, version = tokens.untyped_storage(), tokens._version
            key = (storage._cdata, int(tokens.storage_offset()))
            known = self._entries.get(key)
            if known is not None and known[1] == version and known[2] is source:
                return
            self._entries[key] = (StorageWeakRef(storage), version, source)
        except (NotImplementedError, RuntimeError):  # tensors without memory or without versions
            return
        if len(self._entries) > self._limit:
            for key, (reference, *_) in list(self._entries.items()):
                if reference.expired():
                    self._entries.pop(key, None)
            self._limit = max(64, 2 * len(self._entries))

    def find(self, tokens: Tensor) -> Embedding | None:
        """The recorded source; a weak reference keeps its address from being used again."""
        try:
            key = (tokens.untyped_storage()._cdata, int(tokens.storage_offset()))
            entry = self._entries.get(key)
            return entry[2] if entry is not None and entry[1] == tokens._version else None
        except (NotImplementedError, RuntimeError):
            return None
