"""Linear-angular attention (Castling-ViT) as a kernel, with the reference's and our own presets."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from torch import Tensor

from castling.attention.config import AttentionConfig, Local
from castling.attention.inputs import AttentionInputs
from castling.attention.kernel import Kernel
from castling.attention.registry import register_attention
from castling.ops.angular import Constant, angular_attention, angular_formula
from castling.ops.linear_inputs import KeyValueScale, LinearOptions, Normalisation

_PRESETS: dict[str, dict[str, Any]] = {
    # Departs from the reference only where that is fragile: zero tokens, image rows, class token.
    "castling": {
        "constant": "identity",
        "normalize": "l2",
        "kv_scale": 1.0,
        "eps": 1e-6,
        "local": "grid2d",
    },
    "official": {
        "constant": "identity",
        "normalize": "l2",
        "kv_scale": 1.0,
        "eps": 0.0,
        "local": "token1d",
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearAngular(AttentionConfig):
    """y_i = ½·v_i + (1/π) q̂_i (K̂ᵀV), normalised per head, plus a local residual; O(N·d²).

    Castling-ViT (You et al., CVPR 2023), §3.2–3.3. Options left at None take the preset's value.

    Attributes:
        preset: ``"castling"`` (safe at zero tokens, 2-D local residual) or ``"official"`` (the
            public reference block to the last bit: no eps, 9 taps along the flattened tokens).
        constant: ``"identity"`` ½·v_i as published; ``"mean"`` ½·Σ_j v_j, the exact kernel;
            ``"none"``.
            Where the host's N_q ≠ N_k, identity takes the value at the query's own position.
        normalize: ``"l2"`` as published, ``"rowsum"`` (needs ``constant="mean"``), ``"none"``.
        kv_scale: multiplies K̂ᵀV: 1 as published, or ``"tokens"`` for 1/N.
        eps: under the root of every norm, in float32.
    """

    name: ClassVar[str] = "linear_angular"

    preset: Literal["castling", "official"] = "castling"
    constant: Constant | None = None
    normalize: Normalisation | None = None
    kv_scale: KeyValueScale | None = None
    eps: float | None = None
    local: Local | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Fill what the preset decides, then check."""
        if self.preset not in _PRESETS:
            raise ValueError(f"preset must be one of {', '.join(_PRESETS)}, got {self.preset!r}")
        for option, value in _PRESETS[self.preset].items():
            if getattr(self, option) is None:
                object.__setattr__(self, option, value)
        self.formula()
        super().__post_init__()

    def formula(self) -> LinearOptions:
        """What the options choose; raises ValueError where they do not go together."""
        assert self.constant is not None
        assert self.normalize is not None
        assert self.kv_scale is not None
        assert self.eps is not None
        return angular_formula(self.constant, self.normalize, self.kv_scale, self.eps)


@register_attention(LinearAngular)
class LinearAngularKernel(Kernel):
    """Linear-angular attention."""

    adds_local = True

    def __init__(
        self, config: LinearAngular, num_heads: int, head_dim: int, value_dim: int
    ) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        self.formula = config.formula()

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """See :class:`Kernel`."""
        query, key, value, added, key_mask, _, query_value, _, _, local = inputs
        return angular_attention(
            query, key, value, self.formula, key_mask, query_value, added, local
        )
