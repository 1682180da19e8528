"""Quadratic Taylor attention (QT-ViT) as a kernel, in the published forms and the exact ones."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from castling.attention.config import AttentionConfig
from castling.attention.inputs import AttentionInputs
from castling.attention.kernel import Kernel
from castling.attention.registry import register_attention
from castling.ops.exact_taylor import exact_taylor
from castling.ops.quadratic_taylor import released_taylor, taylor_attention
from castling.ops.taylor_features import (
    TAYLOR_FORMS,
    TaylorForm,
    chunk_features,
    compact_features,
    kronecker_features,
    pool_features,
    random_features,
    random_pairs,
    scaled_vectors,
    taylor_feature_count,
)
from castling.ops.taylor_inputs import Order


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadraticTaylor(AttentionConfig):
    """Sim(q, k) is, or is derived from, 1 + z + z²/2, divided by its row sum.

    QT-ViT (Xu et al., NeurIPS 2024). Only ``exact`` and ``kronecker`` equal the polynomial.
    ``released`` and ``compact`` (with β = 0) ignore the signs of q and k and do not approximate
    softmax: they work in networks trained with them.

    Attributes:
        form: ``"released"`` ⟨q²,k²⟩/(‖q²‖‖k²‖) + s², s learned, as the published code, O(N·d²);
            ``"compact"`` the paper's Eq. 11, [α·u_i², β·√2·u_i, γ] with learned scalars, O(N·d²);
            ``"exact"`` 1 + z + z²/2 by N×N products or symmetric features, O(min(N²·d, N·d³/2));
            ``"kronecker"`` the same by the whole Kronecker square, O(N·d³);
            ``"pool"``, ``"chunk"``, ``"random"`` the alternatives in the paper's Table 3.
        order: of ``exact``: ``"direct"`` N×N, ``"features"``, or the cheaper one with ``"auto"``.
        qk_norm: z = ⟨q̂, k̂⟩, |z| ≤ 1, where the polynomial is monotone; False: z = ⟨q, k⟩/√d.
            ``released`` always normalises.
        pool: of ``pool``: neighbouring channels added; must divide the head's channels.
        chunk: of ``chunk``: number of chunks; must divide the head's channels.
        seed: of ``random``: draws the products kept.
        beta: of ``compact``: β, 0 in the paper's experiments, which saves d features.
        beta_trainable: of ``compact``: learn β, starting from ``beta``. With β ≠ 0 similarities may
            turn negative.
        eps: under the norms and beside the mean row sum, in float32.
    """

    name: ClassVar[str] = "quadratic_taylor"

    form: TaylorForm = "released"
    order: Order = "auto"
    qk_norm: bool = True
    pool: int = 2
    chunk: int = 4
    seed: int = 0
    beta: float = 0.0
    beta_trainable: bool = False
    eps: float = 1e-9

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        super().__post_init__()
        if self.form not in TAYLOR_FORMS:
            raise ValueError(f"form must be one of {', '.join(TAYLOR_FORMS)}, got {self.form!r}")
        if self.order not in ("auto", "direct", "features"):
            raise ValueError(f'order must be "auto", "direct" or "features", got {self.order!r}')
        if self.pool < 1 or self.chunk < 1:
            raise ValueError(f"pool and chunk must be positive, got {self.pool} and {self.chunk}")
        if self.eps <= 0:
            raise ValueError(f"eps must be positive, got {self.eps}")
        if self.form == "random" and not self.qk_norm:
            raise ValueError('form="random" needs qk_norm=True: other row sums may cross zero')


@register_attention(QuadraticTaylor)
class QuadraticTaylorKernel(Kernel):
    """Quadratic Taylor attention; adds the auxiliary branch's output to its own.

    State: ``ones_scale1`` (s, by the official checkpoints' name) in the released form; ``alpha``,
    ``gamma`` and, where trainable, ``beta`` in the compact one; ``pairs`` in the random one.

    Raises:
        ValueError: pool or chunk does not divide ``head_dim``.
    """

    pairs: Tensor

    def __init__(
        self, config: QuadraticTaylor, num_heads: int, head_dim: int, value_dim: int
    ) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        self.config = config
        for option in ("pool", "chunk"):
            parts = getattr(config, option)
            if config.form == option and head_dim % parts:
                raise ValueError(
                    f"{option}={parts} does not divide the {head_dim} channels of a head"
                )
        self.beta: Tensor | None = None
        if config.form == "released":
            self.ones_scale1 = nn.Parameter(torch.ones(()))
        elif config.form == "compact":
            self.alpha = nn.Parameter(torch.ones(()))
            self.gamma = nn.Parameter(torch.ones(()))
            if config.beta_trainable:
                self.beta = nn.Parameter(torch.tensor(float(config.beta)))
        elif config.form == "random":
            self.register_buffer("pairs", random_pairs(head_dim, config.seed))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The scalars' starting values, and the products that the seed draws."""
        for name, scalar in self.named_parameters():
            scalar.fill_(self.config.beta if name == "beta" else 1.0)
        if self.config.form == "random":
            self.pairs.copy_(random_pairs(self.head_dim, self.config.seed))

    @property
    def num_features(self) -> int:
        """D, the length of a query's or key's feature vector."""
        return taylor_feature_count(
            self.config.form,
            self.head_dim,
            pool=self.config.pool,
            chunk=self.config.chunk,
            linear_term=self.config.beta_trainable or self.config.beta != 0,
        )

    def features(self, x: Tensor) -> Tensor:
        """φ(x) of the forms that are computed through features: (..., d) -> (..., D)."""
        config = self.config
        u = scaled_vectors(x, qk_norm=config.qk_norm, eps=config.eps)
        if config.form == "compact":
            beta = self.beta
            if beta is None and config.beta:
                beta = torch.full((), config.beta, device=u.device)
            return compact_features(u, self.alpha, beta, self.gamma)
        if config.form == "pool":
            return pool_features(u, config.pool)
        if config.form == "chunk":
            return chunk_features(u, config.chunk)
        if config.form == "random":
            return random_features(u, self.pairs)
        return kronecker_features(u)

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """See :class:`Kernel`."""
        query, key, value, added, key_mask = inputs[:5]
        config = self.config
        if config.form == "released":
            out = released_taylor(
                query, key, value, self.ones_scale1, eps=config.eps, key_mask=key_mask
            )
        elif config.form == "exact":
            out = exact_taylor(
                query,
                key,
                value,
                qk_norm=config.qk_norm,
                order=config.order,
                eps=config.eps,
                key_mask=key_mask,
            )
        else:
            out = taylor_attention(
                query, key, value, self.features, eps=config.eps, key_mask=key_mask
            )
        return out if added is None else out + added.to(out.dtype)
