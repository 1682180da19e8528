"""Figures of one attention on one image, and their averages over images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from castling.explanation import figures
from castling.explanation.figures import Grid
from castling.explanation.implied import Implied, implied_attention
from castling.explanation.recording import Recorded
from castling.explanation.records import LayerExplanation

#: Entries of a ``LayerExplanation`` that hold one value per head.
PER_HEAD = (
    *("entropy", "effective_rank", "distance", "negative_mass", "own_weight"),
    *("kernel_share", "local_share", "auxiliary_share"),
)


@dataclasses.dataclass(frozen=True)
class LayerOnImage:
    """What one attention did with one image.

    Attributes:
        figures: of this image.
        query: (h, w) weights of the patches, or None; see ``ImageExplanation.query``.
        matrix: (H, N, N) of the kernel, for rollout; None where queries and keys are not the same
            tokens.
    """

    figures: LayerExplanation
    query: Tensor | None
    matrix: Tensor | None


def explain_layer(
    name: str, attention: str, recorded: Recorded, size: tuple[int, int], max_tokens: int
) -> LayerOnImage:
    """Figures of a recorded call.

    Args:
        name: of the layer.
        attention: its name.
        recorded: the call.
        size: (height, width) of the image in pixels.
        max_tokens: N_q·N_k may be at most its square.

    Raises:
        NotLinearError: there is no matrix.
        ValueError: the matrix would be too large; the message says how to allow it.
    """
    call, grid, prefix = recorded.call, recorded.grid, recorded.prefix
    queries, keys = call.query.shape[1], call.key.shape[1]
    if queries * keys > max_tokens**2:
        raise ValueError(
            f"{queries:,} × {keys:,} tokens: above max_tokens={max_tokens:,} no matrix is made; "
            "raise it, or give a smaller image"
        )
    implied = implied_attention(recorded.layer, call)
    kernel = implied.kernel.cpu()  # there are devices without float64
    query_grid = None if grid is None else figures.fitting_grid(queries - prefix, grid)
    patches = _patch_positions(call.to_queries, grid, query_grid, size, prefix, queries)
    square = call.to_queries is None and queries == keys
    found = LayerExplanation(
        name=name,
        attention=attention,
        grid=grid,
        queries=queries,
        keys=keys,
        prefix=prefix,
        exact=implied.exact,
        entropy=_by_head(kernel, figures.entropy),
        effective_rank=_by_head(kernel, figures.effective_rank),
        distance=None
        if patches is None
        else _by_head(
            kernel[..., prefix:, prefix:],
            lambda matrix: figures.mean_distance(matrix, *patches),
        ),
        negative_mass=_by_head(kernel, figures.negative_mass),
        own_weight=_by_head(kernel, figures.own_weight) if square else None,
        note=_note(recorded),
        **_shares(implied),
    )
    return LayerOnImage(
        found,
        _query_row(kernel, grid, query_grid, prefix),
        kernel[0] if square and len(kernel) == 1 else None,
    )


def averaged(each: Sequence[LayerExplanation]) -> LayerExplanation:
    """The mean over images, value by value; exact only if it is on all of them."""
    first = each[0]
    means: dict[str, Any] = {}
    for field in PER_HEAD:
        values = [getattr(one, field) for one in each]
        if None not in values:
            means[field] = tuple(sum(heads) / len(heads) for heads in zip(*values, strict=True))
    return dataclasses.replace(first, exact=all(one.exact for one in each), **means)


def _by_head(matrices: Tensor, figure: Callable[[Tensor], Tensor]) -> tuple[float, ...]:
    """A figure of (B, H, N_q, N_k), averaged over B; head by head, as float64 doubles a matrix."""
    heads = [torch.stack([figure(one) for one in head]) for head in matrices.transpose(0, 1)]
    return tuple(float(values.mean()) for values in heads)


def _shares(implied: Implied) -> dict[str, tuple[float, ...]]:
    """Norms of the parts of the output, in parts of their sum, per head."""
    parts = {
        "kernel_share": implied.kernel_output,
        "local_share": implied.local_output,
        "auxiliary_share": implied.auxiliary_output,
    }
    norms = {
        name: torch.zeros(implied.kernel.shape[1], dtype=torch.float64)
        if part is None
        else part.cpu().double().permute(2, 0, 1, 3).flatten(1).norm(dim=1)
        for name, part in parts.items()
    }
    total = sum(norms.values(), torch.zeros(())).clamp(min=1e-300)
    return {name: tuple((norm / total).tolist()) for name, norm in norms.items()}


def _patch_positions(
    to_queries: Callable[[Tensor], Tensor] | None,
    grid: Grid | None,
    query_grid: Grid | None,
    size: tuple[int, int],
    prefix: int,
    queries: int,
) -> tuple[Tensor, Tensor] | None:
    """Where queries and keys stand, (n, 2) each in pixels, prefix tokens left out."""
    if grid is None or query_grid is None:
        return None
    keys = figures.positions(grid, size)
    if to_queries is None or queries > len(keys) + prefix:
        return figures.positions(query_grid, size), keys
    # A host that takes some of the keys' places says which.
    with_prefix = torch.cat([keys.new_zeros(prefix, 2), keys])
    return to_queries(with_prefix[None, :, None])[0, prefix:, 0], keys


def _query_row(
    kernel: Tensor, grid: Grid | None, query_grid: Grid | None, prefix: int
) -> Tensor | None:
    """(h, w) weights of the patches for one query; see ``ImageExplanation.query``."""
    if grid is None or query_grid is None or len(kernel) != 1:
        return None
    place = 0 if prefix else query_grid[0] // 2 * query_grid[1] + query_grid[1] // 2
    row = figures.magnitudes(kernel[0, :, place]).mean(dim=0)
    return row[prefix:].reshape(grid)


def _note(recorded: Recorded) -> str:
    notes = []
    if recorded.calls > 1:
        notes.append(f"it runs {recorded.calls} times an image: the figures are of the first")
    if recorded.grid is None:
        notes.append("the grid of its tokens is not known: no distances, no pictures")
    elif not recorded.told:
        notes.append("its grid is taken to have the proportions of the image")
    return "; ".join(notes)
