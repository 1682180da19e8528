"""One call of linear attention: checks, and the kernels' arguments and constants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from castling.ops.common import check_qkv
from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.local import check_local
from castling.ops.triton import MAX_HEAD_DIM
from castling.ops.triton.common import DTYPES, Argument, padded_width
from castling.ops.triton.linear_attention_configs import Tile, tile_of

# Narrow heads are grouped up to this many channels, 128 bytes in half precision.
LINE = 64


@dataclass(frozen=True)
class Problem:
    """One call and its kernels' arguments."""

    tensors: LinearTensors
    options: LinearOptions

    def __post_init__(self) -> None:
        query, key, value, residual, weight, key_mask, _ = self.tensors
        check_qkv(query, key, value, key_mask)
        if not query.dtype == key.dtype == value.dtype or query.dtype not in DTYPES:
            raise ValueError(
                "query, key and value must all be float32, bfloat16 or float16; got "
                f"{query.dtype}, {key.dtype}, {value.dtype}: use the naive backend"
            )
        if max(self.key_dim, self.value_dim) > MAX_HEAD_DIM:
            raise ValueError(
                f"heads of at most {MAX_HEAD_DIM} channels, got {self.key_dim} for keys and "
                f"{self.value_dim} for values: use the compiled or naive backend"
            )
        square = query.shape[1] == key.shape[1]
        if self.options.identity != 0 and residual is None and not square:
            raise ValueError(
                f"identity needs one value per query, got {key.shape[1]} values for "
                f"{query.shape[1]} queries: pass residual, or identity=0"
            )
        if residual is not None and residual.shape != self.out_shape:
            raise ValueError(f"residual must be {self.out_shape}, got {tuple(residual.shape)}")
        if weight is not None:
            if not square:
                raise ValueError("a local convolution needs as many queries as keys")
            check_local(weight.shape, value.shape, self.options.grid, self.options.prefix)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(B, N_q, H, d_v)."""
        batch, queries, heads, _ = self.tensors.query.shape
        return batch, queries, heads, self.value_dim

    @property
    def key_dim(self) -> int:
        """Channels of a head's query and key."""
        return self.tensors.query.shape[3]

    @property
    def value_dim(self) -> int:
        """Channels of a head's value."""
        return self.tensors.value.shape[3]

    @property
    def numbers(self) -> int:
        """Numbers in the state of one head."""
        return self.key_dim * self.value_dim + self.key_dim + self.value_dim

    @property
    def half(self) -> bool:
        """Whether inputs are of half precision."""
        return self.tensors.query.dtype != torch.float32

    @property
    def group(self) -> int:
        """Heads per program: narrow ones share one if they divide evenly and need no padding."""
        width = max(padded_width(self.key_dim), padded_width(self.value_dim))
        group = LINE // width
        while group > 1 and self.tensors.query.shape[2] % group:
            group //= 2
        return max(group, 1)

    @property
    def groups(self) -> int:
        """Programs per sample."""
        return self.tensors.query.shape[2] // self.group

    @property
    def size(self) -> int:
        """Taps along one axis of the local convolution; 1 without one."""
        return 1 if self.tensors.local_weight is None else self.tensors.local_weight.shape[2]

    @property
    def taps(self) -> int:
        """Taps of the local convolution."""
        return self.size**2 if self.options.grid else self.size

    @property
    def local(self) -> str:
        """Kind of the local convolution."""
        if self.tensors.local_weight is None:
            return "none"
        return "grid2d" if self.options.grid else "token1d"

    @property
    def has_constant(self) -> bool:
        """Whether the similarity has a constant part a."""
        return self.options.alpha != 0 or self.tensors.scalar is not None

    @property
    def identity_from(self) -> str:
        """The tensor of the identity term: "none", "value" or "residual"."""
        if self.options.identity == 0:
            return "none"
        return "value" if self.tensors.residual is None else "residual"

    @cached_property
    def weight(self) -> Tensor | None:
        """The filters, contiguous."""
        return None if self.tensors.local_weight is None else self.tensors.local_weight.contiguous()

    @cached_property
    def mask(self) -> Tensor | None:
        """The key mask as bytes."""
        return None if self.tensors.key_mask is None else self.tensors.key_mask.view(torch.uint8)

    @cached_property
    def counts(self) -> Tensor | None:
        """Keys that take part, by sample, if there is a mask: (B,) float32."""
        return (
            None
            if self.tensors.key_mask is None
            else self.tensors.key_mask.sum(dim=1).to(torch.float32)
        )

    def tile(self, kernel: str) -> Tile:
        """The tile of ``kernel`` at this width and precision."""
        width = max(padded_width(self.key_dim), padded_width(self.value_dim)) * self.group
        if self.options.features == "squares" and kernel in ("queries", "keys"):
            kernel = f"{kernel} squares"
        if self.weight is not None and kernel not in ("state", "queries", "queries squares"):
            kernel = f"{kernel} local"
        return tile_of(kernel, width, self.tensors.query.dtype)

    def state_constants(self) -> dict[str, Any]:
        """Constants of every kernel that reads keys or a state."""
        return {
            "FEATURES": self.options.features,
            "HAS_MASK": self.tensors.key_mask is not None,
            "EXACT": self.tensors.query.dtype == torch.bfloat16,
            "PRECISION": "split" if self.half else "ieee",
            "GROUP": self.group,
            "KEY_DIM": self.key_dim,
            "KEY_WIDTH": padded_width(self.key_dim),
            "VALUE_DIM": self.value_dim,
            "VALUE_WIDTH": padded_width(self.value_dim),
        }

    def row_constants(self) -> dict[str, Any]:
        """Constants of every kernel that computes rows of the output before the convolution."""
        return self.state_constants() | {
            "NORMALIZE": self.options.normalize,
            "IDENTITY": self.identity_from,
            "HAS_CONSTANT": self.has_constant,
            "HAS_SCALAR": self.tensors.scalar is not None,
        }

    def local_constants(self) -> dict[str, Any]:
        """Constants of the convolution."""
        return {"LOCAL": self.local, "SIZE": self.size, "TAPS": self.taps}

    def numbers_of_rows(self) -> dict[str, Argument]:
        """Run-time numbers of every kernel that computes rows of the output."""
        return {
            "all_keys": float(self.tensors.key.shape[1]),
            "kv_scale": float(self.options.kv_scale),
            "gamma": float(self.options.gamma),
            "alpha": float(self.options.alpha),
            "identity": float(self.options.identity),
            "eps": float(self.options.eps),
            "row_eps": float(self.options.row_eps),
        }

    def numbers_of_grid(self) -> dict[str, Argument]:
        """Run-time numbers of the convolution."""
        height, width = self.options.grid or (1, 1)
        return {"prefix": self.options.prefix, "grid_height": height, "grid_width": width}
