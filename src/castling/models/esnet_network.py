"""ESNet's network: stem, three stages of blocks, classifier.

Notable:
- any height and width from one pixel upwards: every stride rounds up;
- the classifier is PaddleClas's: pooling, 1×1 to 1,280 channels, hard-swish, dropout, linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d, make_divisible
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from castling.models.convolutions import convolution
from castling.models.esnet_blocks import ESBlock, ESDownsample

_STEM = 24
_HIDDEN = 1280


class ESNet(nn.Module):
    """ESNet on images (B, in_chans, H, W), of any height and width.

    Args:
        scale: of the widths 128, 256, 512 of the stages, rounded to multiples of 16.
        ratios: of each stage, of each block: channels inside in units of the stage's width,
            rounded to multiples of 8.
        in_chans: channels of the images.
        num_classes: 0 leaves out the classifier.
        global_pool: ``"avg"``, or ``""`` for none.
        drop_rate: dropout before the classifier.
        device: where the weights are made; None means PyTorch's default.
        dtype: their precision; None means PyTorch's default.
    """

    def __init__(
        self,
        scale: float,
        ratios: Sequence[Sequence[float]],
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans, self.num_classes, self.drop_rate = in_chans, num_classes, drop_rate
        self.grad_checkpointing = False
        self.stem = nn.Sequential(
            convolution(in_chans, _STEM, 3, stride=2, **factory),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages: list[nn.Module] = []
        levels: list[dict[str, Any]] = []
        channels = _STEM
        for index, of_stage in enumerate(ratios):
            width = make_divisible(128 * 2**index * scale, 16)
            blocks: list[nn.Module] = []
            for number, ratio in enumerate(of_stage):
                middle = make_divisible(int(width * ratio), 8)
                if number:
                    blocks.append(ESBlock(width, middle, **factory))
                else:
                    blocks.append(ESDownsample(channels, width, middle, **factory))
            stages.append(nn.Sequential(*blocks))
            levels.append(
                {"num_chs": width, "reduction": 8 * 2**index, "module": f"stages.{index}"}
            )
            channels = width
        self.stages, self.feature_info = nn.Sequential(*stages), levels
        self.num_features = channels
        self.head_hidden_size = _HIDDEN
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        self.conv_head = nn.Conv2d(channels, _HIDDEN, 1, bias=False, **factory)
        self.act_head = nn.Hardswish()
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._classifier()
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all weights, and the buffers too, as at construction."""
        for module in self.modules():
            if needs_reset and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
            _initialise(module)

    def _classifier(self) -> nn.Module:
        """On the device and in the precision of the model."""
        if self.num_classes < 1:
            return nn.Identity()
        like = next(self.parameters())
        return nn.Linear(_HIDDEN, self.num_classes, device=like.device, dtype=like.dtype)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Nothing beyond the one-dimensional parameters, which optimisers leave out anyway."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups by depth, for layer-wise decay: by stage, or by block."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(blocks, None), (r"^conv_head", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for ``num_classes`` (0: none), on the model's device, in its dtype."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        self.head = self._classifier().train(self.training)
        _initialise(self.head)

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
            norm: has no meaning here: every convolution has its own.
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
        wanted, deepest = feature_take_indices(len(self.feature_info), indices)
        x = self.stem(x)
        maps = []
        for index, stage in enumerate(self.stages[: deepest + 1] if stop_early else self.stages):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if index in wanted:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps ``indices`` do not need; returns the stages as numbers from 0."""
        wanted, deepest = feature_take_indices(len(self.feature_info), indices)
        if prune_head or deepest + 1 < len(self.stages):
            self.conv_head = nn.Identity()  # type: ignore[assignment]
            self.act_head = nn.Identity()  # type: ignore[assignment]
            self.reset_classifier(0, "")
        self.stages = self.stages[: deepest + 1]
        self.num_features = self.feature_info[deepest]["num_chs"]
        return wanted

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) → (B, C, ⌈H/32⌉, ⌈W/32⌉)."""
        x = self.stem(x)
        for stage in self.stages:
            if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
                x = checkpoint_seq(stage, x)
            else:
                x = stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, h, w) → logits (B, K); ``pre_logits`` stops before the last layer.

        Without pooling: maps of the channels before the last layer, which needs pooled ones.
        """
        x = self.act_head(self.conv_head(self.global_pool(x)))
        if not self.global_pool.is_identity():
            x = x.flatten(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) → logits (B, K)."""
        return self.forward_head(self.forward_features(x))


def _initialise(module: nn.Module) -> None:
    """Convolutions as He et al. (fan-in), linear layers small."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
