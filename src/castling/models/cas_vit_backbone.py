"""The backbone of CAS-ViT: four stages from images to feature maps.

Notable:
- any height and width from one cell of the last grid upwards; odd sizes round up at each stage;
- the maps of all stages, as timm's feature extraction wants them; stages behind the last one asked
  for are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.fx
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from castling.attention import AttentionConfig, attention_config
from castling.models.cas_vit_blocks import AdditiveBlock, Downsample, stem


def _check_size(height: int, width: int, total_stride: int) -> None:
    if min(height, width) < total_stride:
        raise ValueError(
            f"images must be at least {total_stride}×{total_stride} pixels, one cell of the last "
            f"stage, got {height}×{width}: enlarge them, or create the model with a smaller "
            "stem_stride"
        )


@torch.fx.wrap
def large_enough(images: Tensor, total_stride: int) -> Tensor:
    """``images`` (B, C, H, W) as they are, checked to have one cell of the last stage.

    It returns them so that a graph of ``torch.fx`` keeps the check.

    Raises:
        ValueError: they are smaller.
    """
    # In an exported graph height and width are symbols: put no condition on them.
    if not torch.compiler.is_exporting():
        _check_size(int(images.shape[-2]), int(images.shape[-1]), total_stride)
    return images


class CASViTBackbone(nn.Module):
    """Stem, stages and norms of CAS-ViT on images (B, in_chans, H, W), without a classifier.

    Weights keep PyTorch's initialisation; :class:`castling.models.cas_vit.CASViT` changes it.

    Args:
        depths: blocks of each of the four stages.
        dims: channels of each stage.
        in_chans: channels of the images.
        img_size: pixels, one number or (H, W); any size works, this one is only checked.
        stem_stride: 4 as published; 2 or 1 keep a sensible grid on small images.
        attention: the token mixer: a configuration, a registered name, or a dictionary with
            ``name``.
        head_dim: wanted channels a head, for attentions that have heads.
        local_integration: False leaves out each block's convolutional residual (ablation).
        feature_norm: add one BN per stage (``norm0``, ``norm2``, ``norm4``, ``norm6``) for
            dense tasks; ``forward_intermediates`` then returns normalised maps, while the next
            stage receives the map without normalisation.
        mlp_ratio: hidden channels of the MLPs in units of the stage's channels.
        proj_drop_rate: dropout probability in token mixers and MLPs.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0.
        device: where the weights are made; None means PyTorch's default.
        dtype: their precision; None means PyTorch's default.

    Raises:
        ValueError: an option has no meaning, or ``img_size`` is below the total stride.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 4, 2),
        dims: Sequence[int] = (48, 56, 112, 220),
        *,
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        stem_stride: int = 4,
        attention: str | AttentionConfig | dict[str, Any] = "convolutional_additive",
        head_dim: int = 32,
        local_integration: bool = True,
        feature_norm: bool = False,
        mlp_ratio: float = 4.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if stem_stride not in (1, 2, 4):
            raise ValueError(f"stem_stride must be 1, 2 or 4, got {stem_stride}")
        if len(depths) != len(dims) or not depths or min(depths) < 1:
            raise ValueError(
                f"depths and dims must be equally many positive numbers, got {depths} and {dims}"
            )
        self.in_chans = in_chans
        self.grad_checkpointing = False
        self.total_stride = stem_stride * 2 ** (len(dims) - 1)
        self.num_features = self.head_hidden_size = dims[-1]
        if img_size is not None:
            size = (img_size, img_size) if isinstance(img_size, int) else img_size
            _check_size(*size, self.total_stride)

        config = attention_config(attention)
        # A context, because the token mixers that users register take no device.
        with nullcontext() if device is None else torch.device(device):
            count = sum(depths)
            rates = [drop_path_rate * index / max(count - 1, 1) for index in range(count)]
            self.patch_embed = stem(in_chans, dims[0], stem_stride)
            network: list[nn.Module] = []
            self.feature_info: list[dict[str, Any]] = []
            for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
                if stage:
                    network.append(Downsample(dims[stage - 1], dim))
                self.feature_info.append(
                    {
                        "num_chs": dim,
                        "reduction": stem_stride * 2**stage,
                        "module": f"network.{len(network)}",
                    }
                )
                blocks = [
                    AdditiveBlock(
                        dim,
                        config,
                        head_dim=head_dim,
                        mlp_ratio=mlp_ratio,
                        drop=proj_drop_rate,
                        drop_path=rates[sum(depths[:stage]) + index],
                        local_integration=local_integration,
                    )
                    for index in range(depth)
                ]
                network.append(nn.Sequential(*blocks))
            self.network = nn.ModuleList(network)
            self.feature_norm = feature_norm
            if feature_norm:
                for stage, dim in enumerate(dims):
                    self.add_module(f"norm{2 * stage}", nn.BatchNorm2d(dim))
            self.norm: nn.Module = nn.BatchNorm2d(dims[-1])
        self.to(dtype=dtype)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Nothing beyond the one-dimensional parameters, which optimisers leave out anyway."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups by depth, for layer-wise decay: by stage, or by block."""
        by_block = [
            (r"^network\.(\d+)\.(\d+)", None),
            (r"^network\.(\d+)\.(?:proj|norm)", (0,)),
            (r"^norm\d*\.", (99999,)),
        ]
        return {
            "stem": r"^patch_embed",
            "blocks": [(r"^network\.(\d+)", None), by_block[-1]] if coarse else by_block,
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def _stage(self, index: int, x: Tensor) -> Tensor:
        layer = self.network[index]
        if self.grad_checkpointing and self.training and isinstance(layer, nn.Sequential):
            return checkpoint_seq(layer, x)
        return layer(x)

    def _embed(self, x: Tensor) -> Tensor:
        return self.patch_embed(large_enough(x, self.total_stride))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of the stages, as timm's feature extraction wants them.

        Args:
            x: (B, in_chans, H, W).
            indices: which stages: the last n, a list, or None for all.
            norm: apply the classifier's final BN to the last stage's map. Where the model has
                ``feature_norm``, each stage's own BN is applied instead, always.
            stop_early: leave out the stages behind the last one asked for.
            output_fmt: only "NCHW".
            intermediates_only: leave out the final features.

        Returns:
            maps (B, C_i, ⌈H/s_i⌉, ⌈W/s_i⌉), after the final features (B, C, h, w) unless
            ``intermediates_only``.

        Raises:
            ValueError: another ``output_fmt`` is asked for.
        """
        if output_fmt != "NCHW":
            raise ValueError(f'output_fmt must be "NCHW", got {output_fmt!r}')
        last = len(self.feature_info) - 1
        wanted, deepest = feature_take_indices(len(self.feature_info), indices)
        x = self._embed(x)
        maps = []
        for index in range(2 * deepest + 1 if stop_early else len(self.network)):
            x = self._stage(index, x)
            stage = index // 2
            if index % 2 or stage not in wanted:
                continue
            if self.feature_norm:
                maps.append(getattr(self, f"norm{index}")(x))
            else:
                maps.append(self.norm(x) if norm and stage == last else x)
        if intermediates_only:
            return maps
        return (self.norm(x) if len(self.network) == 2 * last + 1 else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False
    ) -> list[int]:
        """Drop what the maps ``indices`` do not need; returns the stages as numbers from 0."""
        wanted, deepest = feature_take_indices(len(self.feature_info), indices)
        self.network = self.network[: 2 * deepest + 1]
        for stage in range(len(self.feature_info)):
            if self.feature_norm and stage not in wanted:
                delattr(self, f"norm{2 * stage}")
        if prune_norm or deepest < len(self.feature_info) - 1:
            self.norm = nn.Identity()
        self.num_features = self.head_hidden_size = self.feature_info[deepest]["num_chs"]
        return wanted

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, C, h, w) behind the final BN."""
        x = self._embed(x)
        for index in range(len(self.network)):
            x = self._stage(index, x)
        return self.norm(x)
