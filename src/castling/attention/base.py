"""What every attention is made of: kernel, auxiliary branch, local residual.

q, k, v ─► kernel ─►(+)─► normalise ─►(+)─► heads joined
                     ▲                 ▲
   masked softmax ───┘   convolution ──┘      (the first only until the switch)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from castling.attention.auxiliary import MaskedSoftmaxBranch
from castling.attention.config import AttentionConfig
from castling.attention.image_mixer import TokenMixer
from castling.attention.inputs import AttentionInputs
from castling.attention.local import GridConv, TokenConv, build_local_residual
from castling.attention.registry import kernel_class
from castling.ops.common import mask_tokens
from castling.utils.plain import is_plain


class AttentionCore(TokenMixer):
    """Kernel, auxiliary branch and local residual; token mixers and host adapters inherit from it.

    Holding the parts as direct children keeps state names short and equal to the hosts' and the
    reference block's (``qkv``, ``proj``, ``dconv``).

    Args:
        config: which mechanism.
        num_heads: H.
        head_dim: d.
        value_dim: d_v; None means d.
    """

    #: Children and parameters that softmax attention of the same host does not have.
    added_names: ClassVar[tuple[str, ...]] = ("kernel.", "dconv.", "auxiliary.")

    def __init__(
        self,
        config: AttentionConfig,
        num_heads: int,
        head_dim: int,
        value_dim: int | None = None,
    ) -> None:
        super().__init__()
        value_dim = head_dim if value_dim is None else value_dim
        self.config = config
        self.num_heads, self.head_dim, self.value_dim = num_heads, head_dim, value_dim
        self.kernel = kernel_class(config)(config, num_heads, head_dim, value_dim)
        self.dconv = build_local_residual(config, num_heads, value_dim)
        self.auxiliary = (
            MaskedSoftmaxBranch(config.auxiliary, head_dim) if config.auxiliary else None
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        grid: tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        key_mask: Tensor | None = None,
        bias: Tensor | None = None,
        to_queries: Callable[[Tensor], Tensor] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Kernel, auxiliary branch and local residual on projected tokens.

        Args:
            query: (B, N_q, H, d).
            key: (B, N_k, H, d).
            value: (B, N_k, H, d_v).
            grid: (h, w) of the key tokens behind the prefix; needed by ``grid2d``.
            num_prefix_tokens: class, distillation and register tokens in front of the grid.
            key_mask: (B, N_k) boolean, True where a key takes part.
            bias: score bias of the host, for the softmax kernel and the auxiliary branch.
            to_queries: where N_q ≠ N_k, how the host brings tokens from the keys' positions to the
                queries': (B, N_k, H, d_v) -> (B, N_q, H, d_v).
            positions: (B, V) int64 where only V tokens of the grid are there, as in masked
                pre-training: the place of each, row by row; ``grid`` stays that of the image. The
                local residual then takes hidden neighbours as zero.

        Returns:
            (B, N_q, H, d_v).

        Raises:
            ValueError: a local residual or an identity term is asked for where N_q ≠ N_k and the
                host does not say how to reach the queries' positions; ``positions`` for a kernel
                that needs all of the grid.
        """
        # Read ``_modules`` directly: ``Module.__getattr__`` costs as much as all shape checks.
        children = self._modules
        kernel: Any = children.get("kernel")
        dconv: Any = children.get("dconv")
        auxiliary: Any = children.get("auxiliary")
        if positions is not None and (kernel.needs_grid or to_queries is not None):
            raise ValueError(
                f"{kernel.name} needs every token of the grid, and only those at given positions "
                "are there: choose another attention for masked pre-training"
            )
        query_value = None if to_queries is None else to_queries(value)
        inside = None
        if dconv is not None:
            if to_queries is None and query.shape[1] != key.shape[1]:
                raise ValueError(
                    f"a local residual is computed at the keys: with {query.shape[1]} queries for "
                    f'{key.shape[1]} keys pass to_queries, or use local="none"'
                )
            plain = to_queries is None and positions is None
            if kernel.adds_local and plain and is_plain(dconv, TokenConv, GridConv):
                inside = dconv.residual(grid, num_prefix_tokens)
        # By position: keywords make a NamedTuple twice as slow.
        inputs = AttentionInputs(
            query, key, value, None, key_mask, bias, query_value, grid, num_prefix_tokens, inside
        )
        if auxiliary is None:
            out: Tensor = kernel(inputs)
        else:
            out = self._with_auxiliary(auxiliary, inputs)
        if dconv is not None and inside is None:
            convolved = dconv(mask_tokens(value, key_mask), grid, num_prefix_tokens, positions)
            out = out + (convolved if to_queries is None else to_queries(convolved))
        return out

    def _with_auxiliary(self, auxiliary: MaskedSoftmaxBranch, inputs: AttentionInputs) -> Tensor:
        auxiliary.penalty = None
        mixed = inputs
        if not auxiliary.empty:
            added = auxiliary(
                *inputs[:3],
                key_mask=inputs.key_mask,
                bias=inputs.bias,
            )
            mixed = inputs._replace(auxiliary_output=added)
        out: Tensor = self.kernel(mixed)
        if auxiliary.collecting:
            # Computed apart from the output, so that collecting changes no bit of it.
            with torch.no_grad():
                both = self.kernel(mixed._replace(local=None))
                alone = both if auxiliary.empty else self.kernel(inputs._replace(local=None))
            auxiliary.record_gap(both, alone)
        return out

    def strip(self) -> None:
        """Cast away the auxiliary branch."""
        self.auxiliary = None
        self.config = dataclasses.replace(self.config, auxiliary=None)
