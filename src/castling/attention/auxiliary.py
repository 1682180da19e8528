"""The auxiliary masked softmax branch: thresholds, schedules, statistics.

The branch has no parameters and no persistent buffers: a model's state dict is the same with and
without it. Its only state is training progress, which the trainer sets and its checkpoints keep.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from castling.attention.config import MaskedSoftmax
from castling.ops.common import count_keys
from castling.ops.masked_softmax import masked_softmax


@dataclasses.dataclass
class AuxiliaryStatistics:
    """What a branch did, averaged over the forward passes that were collected.

    Attributes:
        nonzero_fraction: entries of the N×N matrix that the mask kept.
        surviving_mass: Σ_j M_ij averaged over rows; 1 would be the whole softmax.
        output_gap: ‖with − without branch‖ / ‖without‖ of the attention output before projection.
        threshold: ε at the last forward pass.
    """

    nonzero_fraction: float
    surviving_mass: float
    output_gap: float
    threshold: float


class MaskedSoftmaxBranch(nn.Module):
    """softmax(q kᵀ/√d) with entries ≤ ε set to zero, times v (Castling-ViT §3.3).

    Args:
        config: thresholds and schedule.
        head_dim: d, for the scale 1/√d.
    """

    exponent: Tensor
    gate: Tensor

    def __init__(self, config: MaskedSoftmax, head_dim: int) -> None:
        super().__init__()
        self.config = config
        self.scale = head_dim**-0.5
        # Tensors, not floats, so that a compiled model is not recompiled at every step.
        self.register_buffer("exponent", torch.ones(()), persistent=False)
        self.register_buffer("gate", torch.ones(()), persistent=False)
        self.progress = 0.0
        #: True once no entry can pass the mask: the branch is then not computed.
        self.empty = False
        self.collecting = False
        self.penalty: Tensor | None = None
        self._records: list[tuple[float, float]] = []
        self._gaps: list[float] = []
        self._threshold = math.nan

    def __getstate__(self) -> dict[str, Any]:
        """A copy does not inherit the penalty of the last forward pass."""
        return {**self.__dict__, "penalty": None}

    def reset_parameters(self) -> None:
        """Fill the buffers again, for the present progress."""
        self.set_progress(self.progress)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedSoftmaxBranch:
        """Buffers that ``to_empty`` brings from the meta device are uninitialised."""
        super()._apply(fn, recurse)
        self.set_progress(self.progress)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """The buffers are in no state, so nobody else brings them off the meta device."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if local_metadata.get("assign_to_params_buffers") and self.exponent.is_meta:
            self.exponent = torch.ones((), dtype=self.exponent.dtype, device="cpu")
            self.gate = torch.ones((), dtype=self.gate.dtype, device="cpu")
        self.set_progress(self.progress)

    def set_progress(self, progress: float) -> None:
        """Set threshold and gate for ``progress``, the share of training done, in [0, 1]."""
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1], got {progress}")
        config = self.config
        self.progress = progress
        self.penalty = None
        span = (progress - config.ramp_start) / (config.ramp_end - config.ramp_start)
        done = min(max(span, 0.0), 1.0)
        # ε = ε₀^(1 − t): at t = 1 it is 1, which no softmax weight exceeds.
        self.exponent.fill_(1.0 - done if config.schedule == "ramp" else 1.0)
        self.gate.fill_(1.0 - done if config.schedule == "gate" else 1.0)
        self.empty = config.schedule != "constant" and done >= 1.0

    def threshold(self, num_keys: Tensor | int) -> Tensor:
        """ε for ``num_keys`` keys at the present progress: 0-dim, or in the shape of the counts."""
        exponent = self.exponent.float()  # half precision ends at 65,504 keys
        if self.config.threshold == "relative":
            start = self.config.alpha / (torch.ones_like(exponent) * num_keys)
            return start.clamp(max=1.0) ** exponent
        return torch.full_like(exponent, self.config.epsilon) ** exponent

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """The branch's output (B, N_q, H, d_v); arguments as for a ``Kernel``."""
        threshold = self.threshold(count_keys(key, key_mask))
        out, hinge, fraction, mass = masked_softmax(
            query,
            key,
            value,
            threshold,
            scale=self.scale,
            bias=bias,
            key_mask=key_mask,
            memory_limit_mb=self.config.memory_limit_mb,
        )
        if self.training and self.config.penalty > 0:
            self.penalty = hinge * self.gate * self.config.penalty
        if self.collecting:
            gate = float(self.gate)
            self._threshold = float(threshold.mean())
            self._records.append((float(fraction) * (gate > 0), float(mass) * gate))
        if self.config.schedule == "gate":
            out = out * self.gate.to(out.dtype)
        return out

    def record_gap(self, with_branch: Tensor, without_branch: Tensor) -> None:
        """Record how much the branch changes the attention's output."""
        without = without_branch.detach().float()
        gap = (with_branch.detach().float() - without).norm() / without.norm().clamp(min=1e-12)
        self._gaps.append(float(gap))

    def start_collecting(self) -> None:
        """Drop earlier statistics and collect new ones in every forward pass."""
        self._records, self._gaps, self._threshold = [], [], math.nan
        self.collecting = True

    def stop_collecting(self) -> AuxiliaryStatistics:
        """Averages of what was collected; zeros for an empty branch, NaN if nothing ran."""
        self.collecting = False
        count = len(self._gaps)
        if count == 0:
            return AuxiliaryStatistics(math.nan, math.nan, math.nan, math.nan)
        return AuxiliaryStatistics(
            nonzero_fraction=sum(record[0] for record in self._records) / count,
            surviving_mass=sum(record[1] for record in self._records) / count,
            output_gap=sum(self._gaps) / count,
            threshold=1.0 if self.empty and not self._records else self._threshold,
        )

    def extra_repr(self) -> str:
        """Configuration and progress, for printing a model."""
        return f"{self.config}, progress={self.progress:g}"


def auxiliaries(model: nn.Module) -> dict[str, MaskedSoftmaxBranch]:
    """All auxiliary branches of a model, by the name of the attention that holds them."""
    return {
        name.rpartition(".")[0]: module
        for name, module in model.named_modules()
        if isinstance(module, MaskedSoftmaxBranch)
    }


def set_progress(model: nn.Module, progress: float) -> None:
    """Set every branch of ``model`` to ``progress``, the share of training done, in [0, 1]."""
    for branch in auxiliaries(model).values():
        branch.set_progress(progress)


def auxiliary_penalty(model: nn.Module) -> Tensor:
    """Sum of the hinge penalties of the last training forward pass, 0-dim; clears them."""
    total = torch.zeros(())
    for branch in auxiliaries(model).values():
        if branch.penalty is not None:
            if torch.is_grad_enabled() and not branch.penalty.requires_grad:
                warnings.warn(
                    "a penalty carries no gradient: reentrant checkpointing hides it; call "
                    "timm.layers.set_reentrant_ckpt(False)",
                    stacklevel=2,
                )
            total = branch.penalty + total.to(branch.penalty.device)
            branch.penalty = None
    return total


@contextmanager
def collect_statistics(model: nn.Module) -> Iterator[dict[str, AuxiliaryStatistics]]:
    """Collect every branch's statistics over the forward passes inside the context.

    Yields:
        A dictionary, layer name -> statistics, filled when the context ends.
    """
    statistics: dict[str, AuxiliaryStatistics] = {}
    branches = auxiliaries(model)
    for branch in branches.values():
        branch.start_collecting()
    try:
        yield statistics
    finally:
        for name, branch in branches.items():
            statistics[name] = branch.stop_collecting()
