"""The token grid of the current image, for the attentions deep inside a host.

DeiT and LeViT pass their blocks a flat sequence of tokens. A hook on the host's patch embedding
records the grid, and the attentions of that host share the record. It is plain Python state, one
for each thread; copies and pickles of a model start without it, and it adds no operation to a
compiled or exported graph. (Compiled code cannot read its thread: give each thread its own compiled
model.)
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Grid = tuple[int, int]


class Geometry:
    """The grid (h, w) of tokens that the host's patch embedding makes of the current image."""

    def __init__(self) -> None:
        self._latest: Grid | None = None
        self._by_thread: dict[int, Grid] = {}
        self._handles: list[RemovableHandle] = []

    def __getstate__(self) -> dict[str, Any]:
        """The current image is not part of a model's state."""
        return {"_latest": None, "_by_thread": {}, "_handles": []}

    @property
    def grid(self) -> Grid | None:
        """The grid of this thread's image, None before any."""
        if torch.compiler.is_compiling():
            return self._latest
        return self._by_thread.get(threading.get_ident(), self._latest)

    @grid.setter
    def grid(self, grid: Grid) -> None:
        self._latest = grid
        if torch.compiler.is_compiling():
            self._by_thread.clear()  # so that blocks left uncompiled do not see an older image
        else:
            self._by_thread[threading.get_ident()] = grid

    def at_level(self, level: int) -> Grid | None:
        """The grid after ``level`` downsamplings by two, each rounding up."""
        if self.grid is None:
            return None
        height, width = self.grid
        for _ in range(level):
            height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
        return height, width

    def watch_patch_embed(self, patch_embed: nn.Module) -> None:
        """Take the grid from the images that timm's ``PatchEmbed`` or ``HybridEmbed`` receives."""
        self._handles.append(patch_embed.register_forward_pre_hook(self.before_patch_embed))

    def watch_stem(self, stem: nn.Module) -> None:
        """Take the grid from the (B, C, h, w) that a convolutional stem returns."""
        self._handles.append(stem.register_forward_hook(self.after_stem))

    def release(self) -> None:
        """Take the hooks of this geometry off again."""
        while self._handles:
            self._handles.pop().remove()

    def before_patch_embed(self, patch_embed: Any, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of :meth:`watch_patch_embed`.

        Raises:
            ValueError: the image is not a whole number of patches.
        """
        height, width = args[0].shape[-2:]
        patch_height, patch_width = patch_embed.feat_ratio(as_scalar=False)
        if getattr(patch_embed, "dynamic_img_pad", False):
            self.grid = (-(-height // patch_height), -(-width // patch_width))
            return
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"an image of {height}×{width} pixels is not a whole number of "
                f"{patch_height}×{patch_width} patches: resize or pad it to multiples of the patch"
            )
        self.grid = (height // patch_height, width // patch_width)

    def after_stem(self, stem: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook of :meth:`watch_stem`."""
        height, width = output.shape[-2:]
        self.grid = (height, width)
