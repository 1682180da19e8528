"""Figures of an attention matrix: entropy, effective rank, distance, negative mass.

A (…, N_q, N_k) may hold negative entries, as those of kernels that are no averages do. Where a
figure needs a distribution it is that of the magnitudes, p_ij = |A_ij| / Σ_j |A_ij|; a row of zeros
stays one. Everything is computed in float64 and averaged over the rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Grid = tuple[int, int]


def magnitudes(matrix: Tensor) -> Tensor:
    """p: rows of magnitudes that sum to 1, (…, N_q, N_k) in float64."""
    size = matrix.double().abs()
    return size / size.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def entropy(matrix: Tensor) -> Tensor:
    """−Σ_j p ln p / ln N_k in [0, 1], (…): 1 is uniform, 0 is one key alone."""
    keys = matrix.shape[-1]
    if keys == 1:
        return matrix.new_zeros(matrix.shape[:-2], dtype=torch.float64)
    p = magnitudes(matrix)
    return -torch.special.xlogy(p, p).sum(dim=-1).mean(dim=-1) / math.log(keys)


def effective_rank(matrix: Tensor) -> Tensor:
    """The exponential of H(σ/Σσ) of the singular values σ, (…), in [1, min(N_q, N_k)].

    A matrix of zeros has 0.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(matrix.double())
    total = values.sum(dim=-1, keepdim=True)
    share = values / total.clamp(min=torch.finfo(torch.float64).tiny)
    rank = (-torch.special.xlogy(share, share).sum(dim=-1)).exp()
    return rank * (total[..., 0] > 0)


def mean_distance(matrix: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Σ_j p_ij ‖x_i − x_j‖, (…), in the unit of the positions.

    Args:
        matrix: between patches; class and register tokens have no place and are left out before.
        queries: (N_q, 2) positions.
        keys: (N_k, 2) positions.
    """
    distance = torch.cdist(queries.double()[None], keys.double()[None])[0]
    return (magnitudes(matrix) * distance).sum(dim=-1).mean(dim=-1)


def negative_mass(matrix: Tensor) -> Tensor:
    """Σ|A⁻| / Σ|A| in [0, 1], (…): 0 for an average."""
    matrix = matrix.double()
    total = matrix.abs().sum(dim=(-2, -1)).clamp(min=torch.finfo(torch.float64).tiny)
    return matrix.clamp(max=0).abs().sum(dim=(-2, -1)) / total


def own_weight(matrix: Tensor) -> Tensor:
    """The mean of p_ii in [0, 1], (…): the weight of a token's own value."""
    return magnitudes(matrix).diagonal(dim1=-2, dim2=-1).mean(dim=-1)


def positions(grid: Grid, size: tuple[int, int]) -> Tensor:
    """Centres of the patches of a grid, (h·w, 2) as (y, x) in pixels of an image of ``size``."""
    rows, columns = (
        (torch.arange(count, dtype=torch.float64) + 0.5) * pixels / count
        for count, pixels in zip(grid, size, strict=True)
    )
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


def fitting_grid(count: int, like: Grid, within: float = 1.5) -> Grid | None:
    """The (h, w) of ``count`` tokens with nearly the shape of ``like``; None where none is near.

    For layers that pool or subsample: sides that divide unevenly are a token off.

    Args:
        count: of tokens.
        like: sides in the same proportions.
        within: how many tokens each side may be off.
    """
    best, off = None, within
    for height in range(1, count + 1):
        if count % height == 0:
            width = count // height
            scale = math.sqrt(count / (like[0] * like[1]))
            error = max(abs(height - like[0] * scale), abs(width - like[1] * scale))
            if error < off:
                best, off = (height, width), error
    return best


def rolled(before: Tensor | None, matrix: Tensor) -> Tensor:
    """One more layer of attention rollout: (½·I + ½·mean of p over heads) · ``before``.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020.

    Args:
        before: (N, N) of the layers below; None for none.
        matrix: (H, N, N) of this layer.
    """
    mean = magnitudes(matrix).mean(dim=0)
    step = (mean + torch.eye(len(mean), dtype=mean.dtype, device=mean.device)) / 2
    return step if before is None else step @ before
