"""Blocks that see some tokens of an image only, as the encoder of a masked autoencoder does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from castling.surgery.geometry import Grid
from castling.surgery.hosts import HostAttention
from castling.surgery.tap import token_grid


@contextmanager
def visible_tokens(module: nn.Module, grid: Grid, positions: Tensor) -> Iterator[None]:
    """Within the context, converted layers inside ``module`` are given visible tokens alone.

    Their local residual finds the neighbours on the grid of the whole image and takes those that
    are hidden as zero: equal to all tokens with a key mask, at the cost of the visible ones.
    Attentions of the host itself need no such word.

    Args:
        module: blocks of a plain vision transformer.
        grid: (h, w) of all tokens of the image, without prefix tokens.
        positions: (B, V) int64, distinct places in [0, h·w) of the tokens behind the prefix.

    Raises:
        ValueError: a layer inside is of a host that moves its tokens on the grid by itself.

    Example:
        >>> with visible_tokens(vit.blocks, (14, 14), positions):
        ...     tokens = vit.blocks(tokens)
    """
    layers = [layer for layer in module.modules() if isinstance(layer, HostAttention)]
    for layer in layers:
        if not layer.takes_positions:
            raise ValueError(
                f"{type(layer).__name__} needs all tokens of its grid: only plain vision "
                "transformers can do without the hidden ones"
            )
    with token_grid(module, grid):
        for layer in layers:
            layer.place = dataclasses.replace(layer.place, positions=positions)
        yield
