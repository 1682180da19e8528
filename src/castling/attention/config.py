"""What every attention configuration shares.

A configuration is a frozen dataclass: it says which kernel, which local residual, which auxiliary
branch. :mod:`castling.attention.registry` ties its class to a kernel and to a name.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

Local = Literal["none", "token1d", "grid2d"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedSoftmax:
    """The auxiliary branch of Castling-ViT: softmax attention, small entries set to zero.

    Castling-ViT §3.3: M_ij = softmax(q kᵀ/√d)_ij where it exceeds ε, else 0, not renormalised. It
    may stand beside any kernel, and is cast away by ``castling.switch_``.

    Attributes:
        threshold: ``"relative"`` ε₀ = alpha/N_k: works at any number of tokens; ``"fixed"``
            ε₀ = epsilon: can never become empty when N_k < 1/ε.
        epsilon: the fixed threshold (0.02 in the reference code).
        alpha: the relative threshold in units of the uniform weight 1/N_k. Attention is nearly
            uniform early in training: at 1 or above the mask would be empty before it learnt.
        schedule: ``"ramp"`` raises ε geometrically from ε₀ to 1 at ``ramp_end``, where the mask is
            empty by construction and the switch exact; ``"gate"`` multiplies the branch by a factor
            falling linearly from 1 to 0 at ``ramp_end``; ``"constant"`` leaves ε₀, as the
            reference does.
        ramp_start: training progress in [0, 1) at which ramp or gate begins; until then the branch
            learns. A geometric ramp passes the weights of diffuse attention soon after.
        ramp_end: training progress in (0, 1] at which ramp or gate has closed the branch.
        penalty: weight of the hinge Σ_j max(p_ij − ε, 0), averaged over rows, added to the loss.
        memory_limit_mb: the N_q×N_k scores of a forward pass are computed in chunks of queries of
            at most this many MiB each, recomputed in the backward pass, so memory stays O(N).
    """

    threshold: Literal["relative", "fixed"] = "relative"
    epsilon: float = 0.02
    alpha: float = 0.5
    schedule: Literal["ramp", "gate", "constant"] = "ramp"
    ramp_start: float = 0.3
    ramp_end: float = 0.8
    penalty: float = 0.0
    memory_limit_mb: float = 256.0

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon must lie in (0, 1), got {self.epsilon}")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        if not 0 <= self.ramp_start < self.ramp_end <= 1:
            raise ValueError(
                "ramp_start and ramp_end must satisfy 0 <= ramp_start < ramp_end <= 1, got "
                f"{self.ramp_start} and {self.ramp_end}"
            )
        if self.penalty < 0:
            raise ValueError(f"penalty must not be negative, got {self.penalty}")
        if self.memory_limit_mb <= 0:
            raise ValueError(f"memory_limit_mb must be positive, got {self.memory_limit_mb}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Fields common to every mechanism.

    Attributes:
        local: what is added after normalisation: ``"none"``, ``"token1d"`` (taps along the
            flattened tokens, one filter per head, as the Castling-ViT reference), ``"grid2d"``
            (k×k per channel on the (h, w) grid, prefix tokens skipped).
        local_kernel_size: odd; None means 9 for token1d and 3 for grid2d.
        auxiliary: the masked softmax branch of training, or None.
    """

    name: ClassVar[str] = ""

    local: Local = "none"
    local_kernel_size: int | None = None
    auxiliary: MaskedSoftmax | None = None

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        if self.local not in ("none", "token1d", "grid2d"):
            raise ValueError(f'local must be "none", "token1d" or "grid2d", got {self.local!r}')
        size = self.local_kernel_size
        if size is not None and (size < 1 or size % 2 == 0):
            raise ValueError(f"local_kernel_size must be odd and positive, got {size}")
        if isinstance(self.auxiliary, dict):
            object.__setattr__(self, "auxiliary", MaskedSoftmax(**self.auxiliary))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BareConfig(AttentionConfig):
    """An attention that takes neither a local residual nor an auxiliary branch."""

    def __post_init__(self) -> None:
        """Raise ValueError where either is asked for."""
        super().__post_init__()
        if self.local != "none":
            raise ValueError(
                f'{self.name} takes no local residual: leave local="none", got {self.local!r}'
            )
        if self.auxiliary is not None:
            raise ValueError(
                f"{self.name} takes no auxiliary branch: leave auxiliary=None, or choose a linear "
                "attention such as linear_angular"
            )
