"""One call of the Taylor attention and the sums over its tokens, as kernel launches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from castling.ops.triton import MAX_HEAD_DIM
from castling.ops.triton.common import (
    DTYPES,
    Argument,
    Launch,
    launch,
    mask_strides,
    padded_width,
    strides,
    sum_parts,
)
from castling.ops.triton.taylor_configs import Tile, operand_of, pair_count, splits_of, tile_of
from castling.ops.triton.taylor_features import taylor_pairs_kernel
from castling.ops.triton.taylor_sums import taylor_moment_kernel, taylor_rows_kernel


@dataclass(frozen=True)
class Tokens:
    """Rows x of queries or keys, and a row w for each: its value or gradient.

    Args:
        x: (B, N, H, d).
        w: (B, N, H, d_v).
        mask: (B, N) boolean, or None.
        centre: (B·H, d_v padded) float32, subtracted from w in sums of products; or None.
    """

    x: Tensor
    w: Tensor
    mask: Tensor | None
    centre: Tensor | None = None

    def arguments(self) -> dict[str, Argument]:
        """The kernel arguments of both tensors and the mask."""
        return {
            **{"x": self.x, "w": self.w, **mask_arguments(self.mask), "heads": self.x.shape[2]},
            **strides("x", self.x),
            **strides("w", self.w),
            "tokens": self.x.shape[1],
        }


@dataclass(frozen=True)
class Problem:
    """One call: its tensors and numbers.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        key_mask: (B, N_k) boolean or None.
        qk_norm: whether rows are normalised.
        eps: as in the formula.
        backward: whether gradients are computed.

    Raises:
        ValueError: an unsupported shape or dtype.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    key_mask: Tensor | None
    qk_norm: bool
    eps: float
    backward: bool = False

    def __post_init__(self) -> None:
        if self.value.dtype not in DTYPES or not (
            self.query.dtype == self.key.dtype == self.value.dtype
        ):
            raise ValueError(
                "query, key and value must share float32, bfloat16 or float16, got "
                f"{self.query.dtype}, {self.key.dtype}, {self.value.dtype}: cast them, or use the "
                'backend "compiled" or "naive"'
            )
        if max(self.query.shape[-1], self.value.shape[-1]) > MAX_HEAD_DIM:
            raise ValueError(
                f"heads have at most {MAX_HEAD_DIM} channels, got {self.query.shape[-1]} and "
                f'{self.value.shape[-1]}: use the backend "compiled" or "naive"'
            )

    @property
    def rows(self) -> int:
        """Heads of all samples."""
        return self.query.shape[0] * self.query.shape[2]

    @property
    def operand(self) -> str:
        """Precision of computed operands."""
        return operand_of(self.value.dtype, unit_rows=self.qk_norm, backward=self.backward)

    def tile(self, kernel: str) -> Tile:
        """The tile of ``kernel`` here."""
        width = max(padded_width(self.query.shape[-1]), padded_width(self.value.shape[-1]))
        return tile_of(kernel, width, self.operand)

    def counts(self) -> Tensor | None:
        """(B,) float32, the number of keys that take part; None if all do."""
        return None if self.key_mask is None else self.key_mask.sum(1, dtype=torch.float32)

    def mean_over_keys(self, sums: Tensor) -> Tensor:
        """Sums over the keys (B·H, …) divided by the number of keys that take part."""
        counts = self.counts()
        if counts is None:
            return sums / self.key.shape[1]
        return sums / counts.clamp(min=1).repeat_interleave(self.query.shape[2])[:, None]

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor on the inputs' device."""
        return self.query.new_empty(shape, dtype=dtype)

    def token_rows(self, of: Tokens, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scales (B·H, N) and Σ_i c_i w_i (B·H, W_WIDTH) by ``taylor_rows_kernel``."""
        width, block = padded_width(of.w.shape[-1]), 64
        tokens = of.x.shape[1]
        splits, length = splits_of(self.rows, tokens, block)
        scale = self.empty(self.rows, tokens)
        parts = self.empty(splits, self.rows, width)
        arguments: dict[str, Argument] = {
            **of.arguments(),
            **{"weights": weights, "scale": scale, "sums": parts},
            **{"splits": splits, "split_length": length, "rows": self.rows, "eps": self.eps},
        }
        constants = {
            **{"DIM": of.x.shape[-1], "W_DIM": of.w.shape[-1], "BLOCK": block},
            **{"WIDTH": padded_width(of.x.shape[-1]), "W_WIDTH": width, "QK_NORM": self.qk_norm},
            **{"MASKED": of.mask is not None, "WEIGHTED": weights is not None},
        }
        launch(Launch(taylor_rows_kernel, (splits * self.rows,), arguments, constants, 4, 2))
        return scale, sum_parts(parts)

    def moments(
        self, of: Tokens, scale: Tensor, weights: Tensor | None = None, *, own: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Sums (B·H, WIDTH, W_WIDTH), (B·H, W_WIDTH) by ``taylor_moment_kernel``, times 1/N_k."""
        of = Tokens(of.x, of.x, of.mask) if own else of
        width, w_width = padded_width(of.x.shape[-1]), padded_width(of.w.shape[-1])
        tile = self.tile("moment")
        tokens = of.x.shape[1]
        splits, length = splits_of(self.rows, tokens, tile.step)
        moments = self.empty(splits, self.rows, width, w_width)
        sums = self.empty(splits, self.rows, w_width)
        arguments: dict[str, Argument] = {
            **of.arguments(),
            **{"weights": weights, "scale": scale, "moments": moments, "sums": sums},
            "centre": of.centre,
            **{"splits": splits, "split_length": length, "rows": self.rows},
            "factor": 1.0 / self.key.shape[1],
        }
        constants = {
            **{"DIM": of.x.shape[-1], "W_DIM": of.w.shape[-1], "WIDTH": width, "W_WIDTH": w_width},
            **{"BLOCK": tile.step, "MASKED": of.mask is not None, "OPERAND": self.operand},
            **{"WEIGHTED": weights is not None, "CENTRED": of.centre is not None, "OWN": own},
        }
        grid = (splits * self.rows,)
        launch(Launch(taylor_moment_kernel, grid, arguments, constants, tile.warps, tile.stages))
        return sum_parts(moments), sum_parts(sums)

    def pairs(self, of: Tokens, scale: Tensor, weights: Tensor | None = None) -> Tensor:
        """S₂/N_k (B·H, pairs, W_WIDTH) by ``taylor_pairs_kernel``, as operands of products."""
        width, count = padded_width(of.w.shape[-1]), pair_count(of.x.shape[-1])
        tile = self.tile("pairs")
        sides = -(-of.x.shape[-1] // tile.block)
        squares = sides * (sides + 1) // 2
        splits, length = splits_of(self.rows * squares, of.x.shape[1], tile.step)
        kept = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.operand, torch.float32)
        dtype = kept if splits == 1 else torch.float32
        parts = self.empty(splits, self.rows, count, width, dtype=dtype)
        arguments: dict[str, Argument] = {
            **of.arguments(),
            **{"weights": weights, "centre": of.centre, "scale": scale, "pairs": parts},
            **{"splits": splits, "split_length": length, "rows": self.rows},
            "factor": 1.0 / self.key.shape[1],
        }
        constants = {
            **{"DIM": of.x.shape[-1], "W_DIM": of.w.shape[-1], "W_WIDTH": width},
            **{"SIDE": tile.block, "SQUARES": squares, "BLOCK": tile.step},
            **{"MASKED": of.mask is not None, "WEIGHTED": weights is not None},
            **{"CENTRED": of.centre is not None, "OPERAND": self.operand},
        }
        grid = (splits * squares * self.rows,)
        launch(Launch(taylor_pairs_kernel, grid, arguments, constants, tile.warps, tile.stages))
        return sum_parts(parts).to(kept)


def mask_arguments(mask: Tensor | None) -> dict[str, Argument]:
    """The kernel arguments of a (B, N) boolean mask, as bytes."""
    bytes_of_mask = None if mask is None else mask.view(torch.uint8)
    return {"mask": bytes_of_mask, **mask_strides(mask)}
