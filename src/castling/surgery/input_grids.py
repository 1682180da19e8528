"""Where the inputs come from that gradient checkpointing computes with again."""

from __future__ import annotations

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from castling.surgery.grid_records import Embedding


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
