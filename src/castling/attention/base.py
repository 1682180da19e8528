"""The shape that every attention has: kernel, auxiliary branch, local residual.

q, k, v ─► kernel ─►(+)─► normalise ─►(+)─► heads joined
                     ▲                 ▲
   masked softmax ───┘   convolution ──┘      (the first only until the switch)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from castling.attention.auxiliary import MaskedSoftmaxBranch
from castling.attention.config import AttentionConfig, kernel_class
from castling.attention.local import build_local_residual
from castling.ops.common import mask_tokens
from castling.ops.local import LocalResidual, local_residual


class Kernel(nn.Module):
    """How queries meet keys. Subclasses implement ``forward`` and register a configuration.

    Args:
        config: the frozen configuration that chose this kernel.
        num_heads: H.
        head_dim: d, channels of a query or key in one head.
        value_dim: d_v, channels of a value in one head.
    """

    #: True when a score bias (relative positions) can enter the kernel itself.
    takes_bias = False
    #: True when the cost grows with the square of the tokens.
    quadratic = False
    #: True when the local residual can be added by the kernel's own operator.
    adds_local = False

    def __init__(
        self, config: AttentionConfig, num_heads: int, head_dim: int, value_dim: int
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.value_dim = num_heads, head_dim, value_dim

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        extra: Tensor | None = None,
        key_mask: Tensor | None = None,
        bias: Tensor | None = None,
        query_value: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        local: LocalResidual | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, N_q, H, d).
            key: (B, N_k, H, d).
            value: (B, N_k, H, d_v).
            extra: (B, N_q, H, d_v), the auxiliary branch's output, added before an L2 normalisation
                and after a row-sum one.
            key_mask: (B, N_k) boolean, True where a key takes part.
            bias: added to softmax scores, broadcastable to (B, H, N_q, N_k); linear kernels ignore
                it.
            query_value: (B, N_q, H, d_v), the value standing at each query when N_q ≠ N_k.
            grid: (h, w) of the key tokens behind the prefix.
            num_prefix_tokens: class, distillation and register tokens in front of the grid.
            local: convolution of the values to add last; only where :attr:`adds_local`.

        Returns:
            (B, N_q, H, d_v) in the dtype of ``value``.
        """
        raise NotImplementedError


class AveragingKernel(Kernel):
    """A kernel whose output is finished before the auxiliary branch's is added to it."""

    def average(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """The kernel alone; arguments and result as in :meth:`Kernel.forward`."""
        raise NotImplementedError

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        extra: Tensor | None = None,
        key_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """See :class:`Kernel`."""
        out = self.average(query, key, value, key_mask)
        return out if extra is None else out + extra


class AttentionCore(nn.Module):
    """Kernel, auxiliary branch and local residual; token mixers and host adapters inherit from it.

    Holding the parts as direct children keeps state names short and equal to the hosts' and the
    reference block's (``qkv``, ``proj``, ``dconv``).

    Args:
        config: which mechanism.
        num_heads: H.
        head_dim: d.
        value_dim: d_v; None means d.
    """

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

        Returns:
            (B, N_q, H, d_v).

        Raises:
            ValueError: a local residual or an identity term is asked for where N_q ≠ N_k and the
                host does not say how to reach the queries' positions.
        """
        # Straight from where modules keep their children: asking a module for one by name takes as
        # long as checking every shape.
        children = self._modules
        kernel: Any = children.get("kernel")
        dconv: Any = children.get("dconv")
        auxiliary: Any = children.get("auxiliary")
        query_value = None if to_queries is None else to_queries(value)
        local = inside = None
        if dconv is not None:
            if to_queries is None and query.shape[1] != key.shape[1]:
                raise ValueError(
                    f"a local residual stands at the keys: with {query.shape[1]} queries for "
                    f'{key.shape[1]} keys pass to_queries, or use local="none"'
                )
            local = dconv.residual(grid, num_prefix_tokens)
            if kernel.adds_local and to_queries is None:
                inside, local = local, None
        options = {
            "key_mask": key_mask,
            "bias": bias,
            "query_value": query_value,
            "grid": grid,
            "num_prefix_tokens": num_prefix_tokens,
            "local": inside,
        }
        if auxiliary is None:
            out: Tensor = kernel(query, key, value, **options)
        else:
            out = self._with_auxiliary(auxiliary, query, key, value, options)
        if local is not None:
            convolved = local_residual(mask_tokens(value, key_mask), local)
            out = out + (convolved if to_queries is None else to_queries(convolved))
        return out

    def _with_auxiliary(
        self,
        auxiliary: MaskedSoftmaxBranch,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        shared: dict[str, Any],
    ) -> Tensor:
        auxiliary.penalty = None
        extra = None
        if not auxiliary.empty:
            extra = auxiliary(query, key, value, key_mask=shared["key_mask"], bias=shared["bias"])
        out: Tensor = self.kernel(query, key, value, extra=extra, **shared)
        if auxiliary.collecting:
            # Beside the output, never instead of it: watching changes no bit of what is watched.
            bare = {name: option for name, option in shared.items() if name != "local"}
            with torch.no_grad():
                mixed = self.kernel(query, key, value, extra=extra, **bare)
                alone = mixed if extra is None else self.kernel(query, key, value, **bare)
            auxiliary.record_gap(mixed, alone)
        return out

    def strip(self) -> None:
        """Cast away the auxiliary branch."""
        self.auxiliary = None
        self.config = dataclasses.replace(self.config, auxiliary=None)

    def extra_repr(self) -> str:
        """The configuration, for printing a model."""
        return str(self.config)
