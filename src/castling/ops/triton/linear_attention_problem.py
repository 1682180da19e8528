"""What one call of linear attention asks for, checked and put into the terms of its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from castling.ops.common import check_qkv
from castling.ops.triton import WIDEST_HEAD
from castling.ops.triton.common import Argument, padded_width
from castling.ops.triton.linear_attention_configs import Tile, tile_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A row of the narrowest heads is widened to this many channels, 128 bytes in half precision.
LINE = 64


def strides(name: str, tensor: Tensor | None) -> dict[str, Argument]:
    """The kernel arguments ``{name}_batch, _token, _head, _channel`` of a (B, N, H, d) tensor."""
    axes = ("batch", "token", "head", "channel")
    values = (0, 0, 0, 0) if tensor is None else tensor.stride()
    return {f"{name}_{axis}": value for axis, value in zip(axes, values, strict=True)}


def mask_strides(mask: Tensor | None) -> dict[str, Argument]:
    """The kernel arguments ``mask_batch, mask_token`` of a (B, N) mask."""
    return {
        "mask_batch": 0 if mask is None else mask.stride(0),
        "mask_token": 0 if mask is None else mask.stride(1),
    }


@dataclass(frozen=True)
class Problem:
    """One call: its tensors, its numbers, and what both mean for the kernels."""

    query: Tensor
    key: Tensor
    value: Tensor
    residual: Tensor | None
    local_weight: Tensor | None
    key_mask: Tensor | None
    scalar: Tensor | None
    features: str
    normalize: str
    identity: float
    gamma: float
    alpha: float
    kv_scale: float
    eps: float
    row_eps: float
    grid: tuple[int, ...]
    prefix: int

    def __post_init__(self) -> None:
        check_qkv(self.query, self.key, self.value, self.key_mask)
        dtypes = {self.query.dtype, self.key.dtype, self.value.dtype}
        if len(dtypes) > 1 or self.query.dtype not in DTYPES:
            raise ValueError(
                "query, key and value must all be float32, bfloat16 or float16; got "
                f"{self.query.dtype}, {self.key.dtype}, {self.value.dtype}: use the naive path"
            )
        if max(self.key_dim, self.value_dim) > WIDEST_HEAD:
            raise ValueError(
                f"heads of at most {WIDEST_HEAD} channels, got {self.key_dim} for keys and "
                f"{self.value_dim} for values: use the compiled or naive path"
            )
        square = self.query.shape[1] == self.key.shape[1]
        if self.identity != 0 and self.residual is None and not square:
            raise ValueError(
                f"identity needs one value per query, got {self.key.shape[1]} values for "
                f"{self.query.shape[1]} queries: pass residual, or identity=0"
            )
        if self.residual is not None and self.residual.shape != self.out_shape:
            raise ValueError(f"residual must be {self.out_shape}, got {tuple(self.residual.shape)}")
        if self.local_weight is not None:
            self._check_local(self.local_weight, square)

    def _check_local(self, weight: Tensor, square: bool) -> None:
        heads = self.query.shape[2]
        if not square:
            raise ValueError("a local convolution needs as many queries as keys")
        if self.grid:
            expected: tuple[int, ...] = (heads * self.value_dim, 1, self.size, self.size)
            cells = self.grid[0] * self.grid[1] + self.prefix
            if cells != self.query.shape[1]:
                raise ValueError(
                    f"grid {self.grid[0]}×{self.grid[1]} with {self.prefix} prefix tokens does not "
                    f"make {self.query.shape[1]} tokens"
                )
        else:
            expected = (heads, 1, self.size, 1)
        if tuple(weight.shape) != expected or self.size % 2 == 0:
            raise ValueError(
                f"local_weight must be {expected} with an odd size, got {tuple(weight.shape)}"
            )

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(B, N_q, H, d_v)."""
        batch, queries, heads, _ = self.query.shape
        return batch, queries, heads, self.value_dim

    @property
    def key_dim(self) -> int:
        """Channels of a head's query and key."""
        return self.query.shape[3]

    @property
    def value_dim(self) -> int:
        """Channels of a head's value."""
        return self.value.shape[3]

    @property
    def numbers(self) -> int:
        """Numbers in the state of one head."""
        return self.key_dim * self.value_dim + self.key_dim + self.value_dim

    @property
    def half(self) -> bool:
        """Whether inputs are of half precision."""
        return self.query.dtype != torch.float32

    @property
    def group(self) -> int:
        """Heads per program: narrow ones share one, if they divide evenly and need no padding."""
        width = max(padded_width(self.key_dim), padded_width(self.value_dim))
        group = LINE // width
        while group > 1 and self.query.shape[2] % group:
            group //= 2
        return max(group, 1)

    @property
    def groups(self) -> int:
        """Programs per sample."""
        return self.query.shape[2] // self.group

    @property
    def size(self) -> int:
        """Taps along one axis of the local convolution; 1 without one."""
        return 1 if self.local_weight is None else self.local_weight.shape[2]

    @property
    def taps(self) -> int:
        """Taps of the local convolution."""
        return self.size**2 if self.grid else self.size

    @property
    def local(self) -> str:
        """Kind of the local convolution."""
        if self.local_weight is None:
            return "none"
        return "grid2d" if self.grid else "token1d"

    @property
    def has_constant(self) -> bool:
        """Whether a, the constant part of a similarity, is there at all."""
        return self.alpha != 0 or self.scalar is not None

    @property
    def identity_from(self) -> str:
        """Where the identity term reads."""
        if self.identity == 0:
            return "none"
        return "value" if self.residual is None else "residual"

    @cached_property
    def weight(self) -> Tensor | None:
        """The filters, contiguous."""
        return None if self.local_weight is None else self.local_weight.contiguous()

    @cached_property
    def mask(self) -> Tensor | None:
        """The key mask as bytes."""
        return None if self.key_mask is None else self.key_mask.view(torch.uint8)

    @cached_property
    def counts(self) -> Tensor | None:
        """Keys that take part, by sample, if there is a mask: (B,) float32."""
        return None if self.key_mask is None else self.key_mask.sum(dim=1).to(torch.float32)

    def tile(self, kernel: str) -> Tile:
        """The tile of ``kernel`` at this width and precision."""
        width = max(padded_width(self.key_dim), padded_width(self.value_dim)) * self.group
        if self.features == "squares" and kernel in ("queries", "keys"):
            kernel = f"{kernel} squares"
        if self.weight is not None and kernel not in ("state", "queries", "queries squares"):
            kernel = f"{kernel} local"
        return tile_of(kernel, width, self.query.dtype)

    def state_constants(self) -> dict[str, Any]:
        """Constants of every kernel that sees keys or a state."""
        return {
            "FEATURES": self.features,
            "HAS_MASK": self.key_mask is not None,
            "EXACT": self.query.dtype == torch.bfloat16,
            "PRECISION": "split" if self.half else "ieee",
            "GROUP": self.group,
            "KEY_DIM": self.key_dim,
            "KEY_WIDTH": padded_width(self.key_dim),
            "VALUE_DIM": self.value_dim,
            "VALUE_WIDTH": padded_width(self.value_dim),
        }

    def row_constants(self) -> dict[str, Any]:
        """Constants of every kernel that sees rows of the output before the convolution."""
        return self.state_constants() | {
            "NORMALIZE": self.normalize,
            "IDENTITY": self.identity_from,
            "HAS_CONSTANT": self.has_constant,
            "HAS_SCALAR": self.scalar is not None,
        }

    def local_constants(self) -> dict[str, Any]:
        """Constants of the convolution."""
        return {"LOCAL": self.local, "SIZE": self.size, "TAPS": self.taps}

    def numbers_of_rows(self) -> dict[str, Argument]:
        """Run-time numbers of every kernel that sees rows of the output."""
        return {
            "all_keys": float(self.key.shape[1]),
            "kv_scale": float(self.kv_scale),
            "gamma": float(self.gamma),
            "alpha": float(self.alpha),
            "identity": float(self.identity),
            "eps": float(self.eps),
            "row_eps": float(self.row_eps),
        }

    def numbers_of_grid(self) -> dict[str, Argument]:
        """Run-time numbers of the convolution."""
        height, width = self.grid or (1, 1)
        return {"prefix": self.prefix, "grid_height": height, "grid_width": width}
