"""Feature maps of quadratic Taylor attention: ⟨φ(q), φ(k)⟩ is, or is derived from, 1 + z + z²/2.

Xu et al., QT-ViT, NeurIPS 2024. Every map takes vectors u whose inner product ⟨u, w⟩ is z: unit
vectors (z = ⟨q̂, k̂⟩, |z| ≤ 1), or x/d^¼ (z = ⟨q, k⟩/√d). :func:`scaled_vectors` makes either.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from castling.ops.common import normalise_rows

TaylorForm = Literal["released", "compact", "exact", "kronecker", "pool", "chunk", "random"]
TAYLOR_FORMS: tuple[str, ...] = (
    *("released", "compact", "exact", "kronecker", "pool", "chunk", "random"),
)


def scaled_vectors(x: Tensor, *, qk_norm: bool, eps: float) -> Tensor:
    """x̂ = x/√(‖x‖² + eps) with ``qk_norm``, else x/d^¼."""
    return normalise_rows(x, eps) if qk_norm else x * x.shape[-1] ** -0.25


def squared_directions(x: Tensor, eps: float) -> Tensor:
    """x²/‖x²‖ with the square taken element by element; zero rows stay zero.

    The first normalisation only keeps the squares inside the floating-point range.
    """
    return normalise_rows(normalise_rows(x, eps).square(), eps)


def compact_features(u: Tensor, alpha: Tensor, beta: Tensor | None, gamma: Tensor) -> Tensor:
    """[α·u_i², β·√2·u_i, γ]: Eq. 11; (..., d) -> (..., 2d + 1), or (..., d + 1) without β.

    With u = x/d^¼ this is the paper's [α'·x_i², β·(4/d)^¼·x, γ], its α' being α/√d. The map keeps
    the diagonal of the Kronecker square only, so it does not preserve z².
    """
    parts = [u.square() * alpha]
    if beta is not None:
        parts.append(u * (beta * math.sqrt(2)))
    parts.append(gamma.to(u.dtype).expand(*u.shape[:-1], 1))
    return torch.cat(parts, dim=-1)


def symmetric_features(u: Tensor) -> Tensor:
    """[1, u, u_i²/√2, {u_i·u_j, i < j}]: exactly 1 + z + z²/2.

    (..., d) -> (..., 1 + d + d(d + 1)/2).
    """
    dim = u.shape[-1]
    row, column = torch.triu_indices(dim, dim, device=u.device)
    weight = u.new_ones(row.shape).masked_fill(row == column, math.sqrt(0.5))
    return torch.cat((torch.ones_like(u[..., :1]), u, u[..., row] * u[..., column] * weight), -1)


def kronecker_features(u: Tensor) -> Tensor:
    """[Kr([u, 1]), 1]/√2 with Kr(x) = vec(x ⊗ x): exactly ((z + 1)² + 1)/2 = 1 + z + z²/2.

    (..., d) -> (..., (d + 1)² + 1).
    """
    extended = F.pad(u, (0, 1), value=1.0)
    square = (extended.unsqueeze(-1) * extended.unsqueeze(-2)).flatten(-2)
    return F.pad(square, (0, 1), value=1.0) * math.sqrt(0.5)


def chunk_features(u: Tensor, chunks: int) -> Tensor:
    """[{Kr(u_c)}_c/√2, 1]: 1 + ½·Σ_c z_c², z_c the inner product inside chunk c (Table 3).

    (..., d) -> (..., d²/chunks + 1). One chunk is the whole Kronecker square: 1 + z²/2.
    """
    parts = u.unflatten(-1, (chunks, -1))
    square = (parts.unsqueeze(-1) * parts.unsqueeze(-2)).flatten(-3)
    return F.pad(square * math.sqrt(0.5), (0, 1), value=1.0)


def pool_features(u: Tensor, pool: int) -> Tensor:
    """[Kr(Pu)/√2, 1]: 1 + ½·⟨Pu, Pw⟩², P adding ``pool`` neighbours over √pool (Table 3).

    (..., d) -> (..., (d/pool)² + 1).
    """
    return chunk_features(u.unflatten(-1, (-1, pool)).sum(-1) * pool**-0.5, 1)


def random_features(u: Tensor, pairs: Tensor) -> Tensor:
    """[{u_i·u_j}_(i,j)∈S/√2, 1]: 1 + ½·Σ_S u_i u_j w_i w_j ≥ ½ for unit vectors (Table 3).

    (..., d) -> (..., |S| + 1).

    Args:
        u: vectors.
        pairs: (2, |S|) integers, each ordered pair (i, j) at most once.
    """
    products = u[..., pairs[0]] * u[..., pairs[1]]
    return F.pad(products * math.sqrt(0.5), (0, 1), value=1.0)


def random_pairs(dim: int, seed: int) -> Tensor:
    """``dim`` distinct ordered pairs (i, j) of 0 … dim − 1, drawn with ``seed``: (2, dim)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(dim * dim, generator=generator, device="cpu")[:dim]
    return torch.stack((drawn // dim, drawn % dim))


def taylor_feature_count(
    form: TaylorForm, dim: int, *, pool: int = 1, chunk: int = 1, linear_term: bool = False
) -> int:
    """Length of the feature vector that ``form`` makes of ``dim`` channels.

    Args:
        form: the form.
        dim: d.
        pool: neighbours added by ``"pool"``.
        chunk: number of chunks of ``"chunk"``.
        linear_term: whether ``"compact"`` keeps its β term.
    """
    if form == "compact":
        return (2 * dim if linear_term else dim) + 1
    return {
        "released": dim + 1,
        "random": dim + 1,
        "exact": 1 + dim + dim * (dim + 1) // 2,
        "kronecker": (dim + 1) ** 2 + 1,
        "pool": (dim // pool) ** 2 + 1,
        "chunk": dim * dim // chunk + 1,
    }[form]
