"""The token grid of a forward, for the attentions deep inside a host.

DeiT and LeViT pass their blocks a flat sequence of tokens. A :class:`Geometry` watches the host's
patch embedding and every module that holds attentions, and finds for tokens the grid of the image
they were made of:

- tokens that an earlier module returned, and inputs that gradient checkpointing kept for its
  recomputation, are known by their memory;
- others belong to the image that the same forward embedded, if they fit it in number and batch;
- where that leaves two possibilities or none, the call is refused. "The latest image" is no answer:
  checkpointing recomputes the blocks of several images in one backward, and code of one's own may
  run blocks without the host.

All of it is plain Python state, one for each thread; copies and pickles of a model start without
it. Compiled and traced code adds no operation for it and sees the image embedded last, which is
that of the same graph. (Compiled code cannot read its thread: give each thread its own compiled
model. Blocks compiled one by one read what the eager modules around them noted; after a forward,
in recomputation say, they are refused once the host has seen other shapes of as many tokens.)
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from castling.surgery.grid_records import (
    NO_IMAGE,
    TWO_IN_A_GRAPH,
    Call,
    Embedding,
    Grid,
    ThreadRecords,
    TokenGrid,
    conflicting,
    downsampled,
    recomputed,
)
from castling.surgery.grid_watch import Position, Watch, in_graph, owner_of_hook, watches_of
from castling.surgery.input_grids import InputGrids

__all__ = ["Geometry", "Grid", "GridUnknownError"]

_NO_BACKWARD = -1


class GridUnknownError(ValueError):
    """The grid of some tokens is not known; says what to do.

    Attributes:
        never_embedded: no image went through the patch embedding at all.
    """

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the grid of these tokens is not known: {why}. Call the whole model on its images, or "
            "say the grid: with castling.surgery.token_grid(module, (height, width)): ..."
        )
        self.never_embedded = why == NO_IMAGE


class Geometry:
    """The grids of the tokens of one host.

    Args:
        given: a grid that all tokens lie on, whatever was embedded.
    """

    def __init__(self, given: Grid | None = None) -> None:
        self._given = given is not None
        #: What compiled and traced code reads; set by such code, or by eager modules around it.
        #: None before the first image, a reason where it could be one of several.
        self._latest: Any = given
        self._by_graph = False
        #: Whether compiled or traced code, or eager modules around it, used ``_latest`` already.
        self._used = True
        #: Whether the patch embedding that runs in a graph told its grid before its projection.
        self._announced = False
        self._one_size = False
        self._inputs = InputGrids()
        self._seen: set[TokenGrid] = set()
        self._threads = threading.local()
        self._handles: list[RemovableHandle] = []

    def __getstate__(self) -> dict[str, Any]:
        """The current images are not part of a model's state."""
        return {"one_size": self._one_size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without an image; earlier versions pickled other entries."""
        self.__init__()  # type: ignore[misc]
        self._one_size = state.get("one_size", False)

    def grid_of(self, tokens: Tensor, place: Position) -> Grid:
        """The grid (h, w) of what an attention was called with.

        Args:
            tokens: (B, N, C).
            place: where the attention stands.

        Raises:
            GridUnknownError: the image that they come from is not known.
        """
        if self._given or in_graph():
            if self._latest is None or isinstance(self._latest, str):
                raise GridUnknownError(self._latest or NO_IMAGE)
            self._used = True
            return downsampled(self._latest, place.level)
        records = self._records()
        source = records.calls[-1].source if records.calls else self._find(records, tokens, place)
        if isinstance(source, str):
            raise GridUnknownError(source)
        if not records.calls:
            source.read(id(place), tokens)
            self._seen.add(source.grid)
            self._used = True
        self._record(tokens, source)
        height, width = grid = source.grid.at(place.level)
        count = tokens.shape[1] - place.num_prefix_tokens
        if height * width != count:
            raise GridUnknownError(f"{count} tokens do not make its image's {height}×{width} grid")
        return grid

    def watch_patch_embed(self, patch_embed: Any) -> None:
        """Take the grid from what timm's ``PatchEmbed`` or ``HybridEmbed`` projects.

        Where the projection does not return (B, C, h, w), the grid follows from the image's size.
        """
        self._handles += [
            patch_embed.register_forward_pre_hook(self.before_patch_embed),
            patch_embed.register_forward_hook(self.after_patch_embed),
        ]
        self._watch_projection(patch_embed)

    def watch_stem(self, stem: nn.Module) -> None:
        """Take the grid from the (B, C, h, w) that a convolutional stem returns."""
        self._handles.append(stem.register_forward_hook(self.after_stem))

    def watch_host(self, host: nn.Module) -> None:
        """Know where the host's own ``forward`` begins and ends."""
        if not any(owner_of_hook(hook) is self for hook in host._forward_pre_hooks.values()):
            self._handles += [
                host.register_forward_pre_hook(self.before_host),
                host.register_forward_hook(self.after_host, always_call=True),
            ]

    def watch_tokens(self, module: nn.Module, place: Position) -> None:
        """Follow the tokens through a module that holds attentions.

        Args:
            module: called with tokens.
            place: that of the first attention inside.
        """
        if all(watch.geometry is not self for watch in watches_of(module)):
            watch = Watch(self, place)
            self._handles += [
                module.register_forward_pre_hook(watch.before, with_kwargs=True),
                module.register_forward_hook(watch.after, always_call=True),
            ]

    def release(self) -> None:
        """Take the hooks of this geometry off again."""
        while self._handles:
            self._handles.pop().remove()

    def give(self, watch: Watch, grid: TokenGrid | None) -> TokenGrid | None:
        """Say the grid that a watched module is called with in this thread; None ends that.

        Returns:
            what was given before.
        """
        given = self._records().given
        before = given.pop(id(watch), None)
        if grid is not None:
            given[id(watch)] = grid
        return before

    def before_patch_embed(self, patch_embed: Any, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of :meth:`watch_patch_embed`.

        Rows and columns that make no whole patch are padded, or left out by a host that takes
        images of one size alone.

        Raises:
            ValueError: the image is not a whole number of patches, and its host takes several
                sizes.
        """
        if not args or not isinstance(args[0], Tensor) or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return
        height, width = args[0].shape[-2:]
        patch_height, patch_width = patch_embed.feat_ratio(as_scalar=False)
        cut = isinstance(patch_embed, PatchEmbed) and patch_embed.strict_img_size
        padded = getattr(patch_embed, "dynamic_img_pad", False)
        if not padded and not cut and (height % patch_height or width % patch_width):
            raise ValueError(
                f"an image of {height}×{width} pixels is not a whole number of "
                f"{patch_height}×{patch_width} patches: resize or pad it to multiples of the patch"
            )
        expected = (height // patch_height, width // patch_width)
        if padded:
            expected = (-(-height // patch_height), -(-width // patch_width))
        if in_graph():
            self._note_for_graphs(expected)
            self._by_graph = self._announced = True
        else:
            self._watch_projection(patch_embed)  # timm replaces it for another patch size
            self._records().expected = expected

    def after_patch_embed(self, patch_embed: Any, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of :meth:`watch_patch_embed`."""
        if not in_graph() and args and isinstance(args[0], Tensor):
            expected = self._records().expected
            if expected is not None:  # the projection did not tell
                self._note(expected, args[0].shape[0])

    def after_stem(self, stem: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of :meth:`watch_stem` and of a patch embedding's projection."""
        if isinstance(output, Tensor) and output.dim() == 4:
            self._note((output.shape[-2], output.shape[-1]), output.shape[0])

    def before_host(self, host: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of :meth:`watch_host`."""
        self._used = True  # what was embedded before is not part of this forward
        if not in_graph():
            self._by_graph = False
            self._records().begin(_backward_pass())

    def after_host(self, host: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of :meth:`watch_host`; also after a forward that raised."""
        if not in_graph():
            self._by_graph = False
            self._records().end()
            if len(self._seen) > 1 and isinstance(self._latest, tuple):
                # Compiled blocks that a checkpoint recomputes later cannot tell such images apart.
                self._latest = conflicting(TokenGrid(*self._latest), self._seen) or self._latest

    def enter(self, watch: Watch, tokens: Any) -> None:
        """A watched module is called."""
        records = self._records()
        source: Embedding | str = NO_IMAGE
        if records.calls:
            source = records.calls[-1].source
        elif isinstance(tokens, Tensor) and tokens.dim() == 3:
            given = records.given.get(id(watch))
            source = self._find(records, tokens, watch.place) if given is None else Embedding(given)
        records.calls.append(Call(watch, source))
        if isinstance(source, str) or not isinstance(tokens, Tensor):
            return
        source.read(id(watch.place), tokens)
        self._record(tokens, source)
        if len(records.calls) == 1:
            self._used = True
            self._seen.add(source.grid)
            if not self._by_graph:
                self._latest = None if source.grid.level else source.grid[:2]

    def leave(self, watch: Watch, output: Any) -> None:
        """A watched module has returned, or raised."""
        records = self._records()
        call = records.leave(watch)
        if call is None or isinstance(call.source, str) or not isinstance(output, Tensor):
            return
        self._record(output, call.source)
        if not records.calls:
            records.returned(output, call.source)

    def _note(self, grid: Grid, batch: int) -> None:
        """An image batch was embedded."""
        self._by_graph = in_graph() or any(type(side) is not int for side in grid)
        if self._by_graph:
            if not self._announced:
                self._note_for_graphs(grid)
            elif not isinstance(self._latest, str):
                self._latest = grid
            self._announced = False
        else:
            self._note_for_graphs(grid)
            noted = TokenGrid(*grid)
            self._seen.add(noted)
            self._records().embedded(noted, batch, _backward_pass())

    def _note_for_graphs(self, grid: Grid) -> None:
        """An image batch is embedded; says what compiled and traced code may read.

        Such code cannot follow tokens: with images of two shapes embedded, they could be of either.
        """
        two = not self._used and (isinstance(self._latest, str) or self._latest != grid)
        self._latest = TWO_IN_A_GRAPH if two else grid
        self._used = False

    def _watch_projection(self, patch_embed: Any) -> None:
        """Hook the module that makes (B, C, h, w) of the image: own forwards may call it alone."""
        projection = getattr(patch_embed, "proj", None)
        if isinstance(projection, nn.Module):
            if all(owner_of_hook(hook) is not self for hook in projection._forward_hooks.values()):
                self.watch_stem(projection)
            # Only PatchEmbed itself enforces it.
            self._one_size = isinstance(patch_embed, PatchEmbed) and bool(
                patch_embed.strict_img_size and patch_embed.img_size
            )

    def _find(self, records: ThreadRecords, tokens: Tensor, place: Position) -> Embedding | str:
        """Where tokens come from that no running module was called with, or why it is not known."""
        backward = _backward_pass()
        known = records.source_of_output(tokens) or self._inputs.find(tokens)
        if known is not None:
            return records.confirmed(known, backward, place.level)
        if self._by_graph and backward == _NO_BACKWARD and type(self._latest[0]) is int:
            by_graph = TokenGrid(*self._latest)
            self._used = True
            return conflicting(by_graph, records.grids_outside()) or Embedding(by_graph)
        level, prefix = place.level, place.num_prefix_tokens
        found = records.source(tokens, id(place), backward, level, prefix, one_size=self._one_size)
        if isinstance(found, str) and backward != _NO_BACKWARD:
            count = tokens.shape[1] - prefix
            fitting = [
                grid
                for grid in list(self._seen)
                if grid.level <= level and grid.tokens(level) == count
            ]
            # Every image was seen in its forward pass: if only one grid fits, it is that.
            return Embedding(fitting[0]) if len(fitting) == 1 else recomputed(fitting)
        return found

    def _record(self, tokens: Tensor, source: Embedding) -> None:
        """Remember tokens from which a backward pass may compute again."""
        # A reentrant checkpoint runs its forward without gradients, on inputs that require them.
        if torch.is_grad_enabled() or tokens.requires_grad:
            self._inputs.record(tokens, source)

    def _records(self) -> ThreadRecords:
        records: ThreadRecords | None = getattr(self._threads, "records", None)
        if records is None:
            records = self._threads.records = ThreadRecords()
        return records


def _backward_pass() -> int:
    """The backward pass that this thread is in, as checkpointing numbers them; -1 outside."""
    return torch._C._current_graph_task_id()
