"""How an attention deep inside a host learns the token grid of the image in flight.

DeiT and LeViT hand their blocks a flat row of tokens. A hook on the host's patch embedding notes
the grid; the attentions of that host share the note. It is plain Python state: it survives
``deepcopy`` and pickling, and leaves no operation in a compiled or exported graph.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Geometry:
    """The grid (h, w) of tokens that the host's patch embedding makes of the present image."""

    def __init__(self) -> None:
        self.grid: tuple[int, int] | None = None

    def at_level(self, level: int) -> tuple[int, int] | None:
        """The grid after ``level`` downsamplings by two, each rounding up."""
        if self.grid is None:
            return None
        height, width = self.grid
        for _ in range(level):
            height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
        return height, width

    def before_patch_embed(self, patch_embed: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook for timm's ``PatchEmbed``: grid from image and patch size.

        Raises:
            ValueError: the image is not a whole number of patches.
        """
        height, width = args[0].shape[-2:]
        patch_height, patch_width = patch_embed.patch_size  # type: ignore[misc]
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
        """Forward hook for a convolutional stem: grid from the (B, C, h, w) that it returns."""
        height, width = output.shape[-2:]
        self.grid = (height, width)
