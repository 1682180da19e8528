"""Weights made for another image or patch size: position tables and patch embeddings, resized.

Absolute positions and patch embeddings by timm's functions; relative positions as the adapters of
LeViT and MViTv2 resize them while running, so that resizing once or at every call is the same.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn
from torch.nn import functional as F

from castling.attention.multi_scale import MultiScaleAttention, resize_table

State = dict[str, Tensor]
Grid = tuple[int, int]


class TableError(ValueError):
    """A position table cannot be resized, because the grid that it was made for is not known."""


def resize_tables(
    model: nn.Module, state: State, own: State, image_size: Grid | None = None
) -> tuple[State, dict[str, str]]:
    """Fit tables of positions and patch embeddings to the model.

    Args:
        model: its modules say for which grids its tables are.
        state: weights of a file, floating point, by the names of ``model``.
        own: the model's state.
        image_size: (height, width) in pixels that the weights are for; None means a square.

    Returns:
        the weights, and what was resized: name -> "14×14 to 2×2".

    Raises:
        TableError: a table is not a square one and ``image_size`` is None or does not fit.
    """
    result, done = dict(state), {}
    for name, tensor in state.items():
        parent, _, entry = name.rpartition(".")
        if name not in own or entry not in _RESIZERS:
            continue
        module: Any = model.get_submodule(parent)
        if tensor.dim() != own[name].dim() or tensor.numel() == 0:
            continue
        resized = _RESIZERS[entry](name, module, tensor, own[name], state, image_size)
        if resized is not None:
            result[name], done[name] = resized
    return result, done


def timm_names(model: nn.Module, state: State) -> State:
    """``state`` as timm's own conversion for this family of models returns it.

    It knows the names of official files of many families (DINOv2, CLIP, MViTv2, …); where it fails,
    the state comes back as it was.
    """
    for base in type(model).__mro__:
        convert = getattr(sys.modules.get(base.__module__), "checkpoint_filter_fn", None)
        if convert is None:
            continue
        try:
            converted = dict(convert(dict(state), model))
        except Exception:  # any: it was written for the family's files, and this may be none
            return state
        return converted if all(isinstance(t, Tensor) for t in converted.values()) else state
    return state


Resized = tuple[Tensor, str] | None


def _absolute(
    name: str, module: Any, table: Tensor, own: Tensor, state: State, image_size: Grid | None
) -> Resized:
    """(1, prefix + h·w, C), the class and register tokens in front kept as they are."""
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    if grid is None or table.dim() != 3 or table.shape[-1] != own.shape[-1]:
        return None
    new = (int(grid[0]), int(grid[1]))
    prefix = own.shape[1] - new[0] * new[1]
    if prefix < 0 or table.shape[1] <= prefix:
        return None
    tokens = table.shape[1] - prefix
    if image_size is None:
        if table.shape == own.shape:
            return None
        old = _square(name, tokens)
    else:
        parent = name.rpartition("pos_embed")[0]
        weight = state.get(f"{parent}patch_embed.proj.weight")
        patch = module.patch_embed.patch_size if weight is None else weight.shape[-2:]
        old = (image_size[0] // patch[0], image_size[1] // patch[1])
        if old[0] * old[1] != tokens:
            old = _square(name, tokens)
    if old == new:
        return None
    resized = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=prefix)
    return resized, _change(old, new)


def _biases(
    name: str, module: Any, table: Tensor, own: Tensor, state: State, image_size: Grid | None
) -> Resized:
    """LeViT's (H, h·w), by distance."""
    resolution = getattr(module, "resolution", None)
    if resolution is None or table.dim() != 2 or table.shape[0] != own.shape[0]:
        return None
    new = (int(resolution[0]), int(resolution[1]))
    if image_size is None or image_size[0] == image_size[1]:
        if table.shape == own.shape:
            return None
        old = _square(name, table.shape[1])
    else:
        height = round(math.sqrt(table.shape[1] * image_size[0] / image_size[1]))
        old = (height, table.shape[1] // max(height, 1))
        if old[0] * old[1] != table.shape[1]:
            raise TableError(_unknown_grid(name, table.shape[1]))
    if old == new:
        return None
    resized = F.interpolate(table.unflatten(1, old)[None], size=new, mode="bilinear")[0]
    return resized.flatten(1), _change(old, new)


def _distances(
    name: str, module: Any, table: Tensor, own: Tensor, state: State, image_size: Grid | None
) -> Resized:
    """MViTv2's (2·size − 1, d), one axis each."""
    if table.dim() != 2 or table.shape[1] != own.shape[1] or table.shape == own.shape:
        return None
    resized = F.interpolate(table.t()[None], size=own.shape[0], mode="linear")[0].t()
    return resized, f"{table.shape[0]} to {own.shape[0]} distances"


def _key_table(
    name: str, module: Any, table: Tensor, own: Tensor, state: State, image_size: Grid | None
) -> Resized:
    """QT-ViT's (1, C, h, w)."""
    if not isinstance(module, MultiScaleAttention) or table.shape[:2] != own.shape[:2]:
        return None
    old, new = (table.shape[2], table.shape[3]), (own.shape[2], own.shape[3])
    return None if old == new else (resize_table(table, new), _change(old, new))


def _patches(
    name: str, module: Any, weight: Tensor, own: Tensor, state: State, image_size: Grid | None
) -> Resized:
    """A ViT's patch embedding (C, 3, h, w), by timm's pseudo-inverse resizing (FlexiViT)."""
    if not name.endswith("patch_embed.proj.weight") or weight.dim() != 4:
        return None
    old, new = (weight.shape[2], weight.shape[3]), (own.shape[2], own.shape[3])
    # Only embeddings whose patches do not overlap: those of MViTv2 and LeViT are convolutions.
    if weight.shape[:2] != own.shape[:2] or old == new or tuple(module.stride) != new:
        return None
    return resample_patch_embed(weight, list(new)), f"{_change(old, new)} pixels"


_RESIZERS: dict[str, Callable[..., Resized]] = {
    "pos_embed": _absolute,
    "attention_biases": _biases,
    "rel_pos_h": _distances,
    "rel_pos_w": _distances,
    "positional_encoding": _key_table,
    "weight": _patches,
}


def _square(name: str, tokens: int) -> Grid:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise TableError(_unknown_grid(name, tokens))
    return side, side


def _unknown_grid(name: str, tokens: int) -> str:
    return (
        f"{name} is a table of {tokens} positions, which are no square, and the image size that it "
        "was made for is not known: give image_size=(height, width)"
    )


def _change(old: Grid, new: Grid) -> str:
    return f"{old[0]}×{old[1]} to {new[0]}×{new[1]}"
