"""CAS-ViT: a four-stage convolutional backbone whose token mixer is additive attention.

Zhang et al., "CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient
Mobile Applications" (arXiv 2408.03703), built as the authors' code builds it: its checkpoints load
by name.

Notable:
- any height and width from one cell of the last grid upwards; odd sizes round up at each stage;
- ``attention=`` puts another registered attention in the place of the token mixer (ablations);
- ``distillation=True`` adds the second classifier: a tuple in training, the average in evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from castling.attention import AttentionConfig, attention_config
from castling.models.cas_vit_blocks import AdditiveBlock, Downsample, channels_last, stem
from castling.surgery.fold import register_fold
from castling.surgery.fold_layers import absorb_preceding, average, can_precede


class CASViT(nn.Module):
    """CAS-ViT on images (B, in_chans, H, W).

    Args:
        depths: blocks of each of the four stages.
        dims: channels of each stage.
        in_chans: channels of the images.
        num_classes: 0 leaves out the classifier.
        global_pool: "avg", or "" for logits at every position.
        img_size: pixels, one number or (H, W); any size works, this one is only checked.
        stem_stride: 4 as published; 2 or 1 keep a sensible grid on small images.
        distillation: add the classifier ``dist_head``; both are averaged in evaluation.
        attention: the token mixer: a configuration, a registered name, or a dictionary with
            ``name``.
        head_dim: wanted channels a head, for attentions that have heads.
        local_integration: False leaves out each block's convolutional residual (ablation).
        feature_norm: add one BN per stage (``norm0``, ``norm2``, ``norm4``, ``norm6``) for
            dense tasks; ``forward_intermediates`` then returns normalised maps, while the next
            stage receives the map without normalisation.
        mlp_ratio: hidden channels of the MLPs in units of the stage's channels.
        drop_rate: dropout probability before the classifier.
        proj_drop_rate: dropout probability in token mixers and MLPs.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0.

    Raises:
        ValueError: an option has no meaning, or ``img_size`` is below the total stride.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 4, 2),
        dims: Sequence[int] = (48, 56, 112, 220),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] | None = None,
        stem_stride: int = 4,
        distillation: bool = False,
        attention: str | AttentionConfig | dict[str, Any] = "convolutional_additive",
        head_dim: int = 32,
        local_integration: bool = True,
        feature_norm: bool = False,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if stem_stride not in (1, 2, 4):
            raise ValueError(f"stem_stride must be 1, 2 or 4, got {stem_stride}")
        if len(depths) != len(dims) or not depths or min(depths) < 1:
            raise ValueError(
                f"depths and dims must be equally many positive numbers, got {depths} and {dims}"
            )
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.distillation = distillation
        self.grad_checkpointing = False
        self.total_stride = stem_stride * 2 ** (len(dims) - 1)
        self.num_features = self.head_hidden_size = dims[-1]
        if img_size is not None:
            self._check_size(*((img_size, img_size) if isinstance(img_size, int) else img_size))
        self._set_pool(global_pool)

        config = attention_config(attention)
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
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._classifier()
        self.dist_head = self._classifier() if distillation else None
        self.apply(_initialise)

    def _classifier(self) -> nn.Module:
        if self.num_classes < 1:
            return nn.Identity()
        return nn.Linear(self.num_features, self.num_classes)

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in ("avg", ""):
            raise ValueError(f'global_pool must be "avg" or "", got {global_pool!r}')
        self.global_pool = global_pool

    def _check_size(self, height: int, width: int) -> None:
        if min(height, width) < self.total_stride:
            raise ValueError(
                f"images must be at least {self.total_stride}×{self.total_stride} pixels, one cell "
                f"of the last stage, got {height}×{width}: enlarge them, or create the model with "
                "a smaller stem_stride"
            )

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

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The classifier, or both of them with distillation."""
        return self.head if self.dist_head is None else (self.head, self.dist_head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers for ``num_classes`` (0: none), on the model's device, in its dtype."""
        if global_pool is not None:
            self._set_pool(global_pool)
        self.num_classes = num_classes
        like = next(self.parameters())
        heads = ["head"] if self.dist_head is None else ["head", "dist_head"]
        for name in heads:
            setattr(self, name, self._classifier().apply(_initialise).to(like.device, like.dtype))

    def _stage(self, index: int, x: Tensor) -> Tensor:
        layer = self.network[index]
        if self.grad_checkpointing and self.training and isinstance(layer, nn.Sequential):
            return checkpoint_seq(layer, x)
        return layer(x)

    def _embed(self, x: Tensor) -> Tensor:
        # In an exported graph height and width are symbols, to be left without conditions.
        if not torch.compiler.is_exporting():
            self._check_size(int(x.shape[-2]), int(x.shape[-1]))
        return self.patch_embed(x)

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
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
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
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, C, h, w) behind the final BN."""
        x = self._embed(x)
        for index in range(len(self.network)):
            x = self._stage(index, x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, h, w) -> logits (B, K); see :meth:`forward`. ``pre_logits`` stops before them."""
        x = x.mean(dim=(2, 3)) if self.global_pool else x.permute(0, 2, 3, 1)
        x = self.head_drop(x)
        if pre_logits:
            return x
        if self.dist_head is None:
            return self.head(x)
        logits, taught = self.head(x), self.dist_head(x)
        return (logits, taught) if self.training else (logits + taught) / 2

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Classify.

        Args:
            x: (B, in_chans, H, W), H and W at least one cell of the last stage (32 pixels).

        Returns:
            logits (B, K); in training with distillation the pair (class, distillation logits).

        Raises:
            ValueError: the images are too small.
        """
        return self.forward_head(self.forward_features(x))


@register_fold(CASViT)
def _fold_cas_vit(model: CASViT) -> list[str]:
    """The final norm commutes with the mean over positions; both classifiers become one.

    The stem gets channels-last weights: whatever the images' memory, all maps behind it are
    channels-last, where 1×1 convolutions need no copy.
    """
    channels_last(*(layer for layer in model.patch_embed if isinstance(layer, nn.Conv2d)))
    heads = [head for head in (model.head, model.dist_head) if isinstance(head, nn.Linear)]
    done = []
    if heads and all(can_precede(model.norm, head) for head in heads):
        model.norm = absorb_preceding(model.norm, *heads)
        done.append("norm into head")
    if len(heads) == 2:
        average(*heads)
        model.dist_head = None
        done.append("dist_head into head")
    return done


def _initialise(module: nn.Module) -> None:
    """Linear layers truncated normal 0.02 and no bias; convolutions as PyTorch makes them."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _cfg(**options: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.0",
        "classifier": "head",
        "license": "mit",
        **options,
    }


default_cfgs = generate_default_cfgs(
    {
        "cas_vit_xs": _cfg(),
        "cas_vit_s": _cfg(),
        "cas_vit_m": _cfg(),
        "cas_vit_t": _cfg(),
        "cas_vit_pico": _cfg(input_size=(3, 32, 32), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> CASViT:
    return build_model_with_cfg(
        CASViT,
        variant,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def cas_vit_xs(pretrained: bool = False, **kwargs: Any) -> CASViT:
    """CAS-ViT-XS: 2,979,700 parameters, 547 M multiply-accumulates at 224×224."""
    options = {"depths": (2, 2, 4, 2), "dims": (48, 56, 112, 220), **kwargs}
    return _create("cas_vit_xs", pretrained, **options)


@register_model
def cas_vit_s(pretrained: bool = False, **kwargs: Any) -> CASViT:
    """CAS-ViT-S: 5,507,224 parameters, 912 M multiply-accumulates at 224×224."""
    options = {"depths": (3, 3, 6, 3), "dims": (48, 64, 128, 256), **kwargs}
    return _create("cas_vit_s", pretrained, **options)


@register_model
def cas_vit_m(pretrained: bool = False, **kwargs: Any) -> CASViT:
    """CAS-ViT-M: 12,036,520 parameters, 1.86 G multiply-accumulates at 224×224."""
    options = {"depths": (3, 3, 6, 3), "dims": (64, 96, 192, 384), **kwargs}
    return _create("cas_vit_m", pretrained, **options)


@register_model
def cas_vit_t(pretrained: bool = False, **kwargs: Any) -> CASViT:
    """CAS-ViT-T, the largest: 21,250,120 parameters, 3.56 G multiply-accumulates at 224×224."""
    options = {"depths": (3, 3, 6, 3), "dims": (96, 128, 256, 512), **kwargs}
    return _create("cas_vit_t", pretrained, **options)


@register_model
def cas_vit_pico(pretrained: bool = False, **kwargs: Any) -> CASViT:
    """A CAS-ViT for tests and demonstrations: 0.29 M parameters, strides 2 to 16, 32×32 pixels."""
    options = {"depths": (1, 1, 2, 1), "dims": (24, 32, 48, 64), "stem_stride": 2, **kwargs}
    return _create("cas_vit_pico", pretrained, **options)
