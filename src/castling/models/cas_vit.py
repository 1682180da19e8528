"""CAS-ViT: a four-stage convolutional backbone whose token mixer is additive attention.

Zhang et al., "CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient
Mobile Applications" (arXiv 2408.03703), built as the authors' code builds it: its checkpoints load
by name.

Notable:
- the backbone (``cas_vit_backbone``) takes images of any height and width;
- ``attention=`` puts another registered attention in the place of the token mixer (ablations);
- ``distillation=True`` adds the second classifier: a tuple in training, the average in evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from castling.models.cas_vit_backbone import CASViTBackbone
from castling.models.cas_vit_blocks import channels_last
from castling.models.features import FeatureGetter
from castling.surgery.checkpoint_names import translate
from castling.surgery.fold import register_fold
from castling.surgery.fold_layers import absorb_preceding, average, can_precede
from castling.surgery.self_description import describe_itself
from castling.utils.plain import is_plain

#: Pooling over positions -> channels behind it, in units of those before it.
_POOLED_WIDTH = {"avg": 1, "max": 1, "avgmax": 1, "catavgmax": 2, "": 1}


class CASViT(CASViTBackbone):
    """CAS-ViT on images (B, in_chans, H, W): the backbone, and one or two classifiers behind it.

    Args:
        *stages: ``depths`` and ``dims`` of :class:`CASViTBackbone`, where they are not named.
        num_classes: 0 leaves out the classifier.
        global_pool: "avg", "max", "avgmax" (their mean) or "catavgmax" (both, side by side); "" for
            logits at every position, (B, K, h, w).
        distillation: add the classifier ``dist_head``; both are averaged in evaluation.
        drop_rate: dropout probability before the classifier.
        device: where the weights are made; None means PyTorch's default.
        dtype: their precision; None means PyTorch's default.
        **backbone: arguments of :class:`CASViTBackbone`.

    Raises:
        ValueError: an option has no meaning, or ``img_size`` is below the total stride.
    """

    def __init__(
        self,
        *stages: Sequence[int],
        num_classes: int = 1000,
        global_pool: str = "avg",
        distillation: bool = False,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **backbone: Any,
    ) -> None:
        super().__init__(*stages, device=device, dtype=dtype, **backbone)
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.distillation = distillation
        self._set_pool(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._classifier()
        self.dist_head = self._classifier() if distillation else None
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all weights, and the buffers too, as at construction.

        Args:
            needs_reset: False where every layer has just initialised itself.
        """
        self.apply(partial(_initialise, needs_reset=needs_reset))

    def _classifier(self) -> nn.Module:
        """On the device and in the precision of the backbone."""
        if self.num_classes < 1:
            return nn.Identity()
        like = next(self.parameters())
        return nn.Linear(
            self.head_hidden_size, self.num_classes, device=like.device, dtype=like.dtype
        )

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in _POOLED_WIDTH:
            raise ValueError(
                f"global_pool must be {', '.join(map(repr, _POOLED_WIDTH))}, got {global_pool!r}"
            )
        self.global_pool = global_pool
        self.head_hidden_size = self.num_features * _POOLED_WIDTH[global_pool]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The classifier, or both of them with distillation."""
        return self.head if self.dist_head is None else (self.head, self.dist_head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers for ``num_classes`` (0: none), on the model's device, in its dtype."""
        self._set_pool(self.global_pool if global_pool is None else global_pool)
        self.num_classes = num_classes
        heads = ["head"] if self.dist_head is None else ["head", "dist_head"]
        for name in heads:
            setattr(self, name, self._classifier().apply(_initialise).train(self.training))

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As of the backbone; the classifiers go with the last stage, and with ``prune_head``."""
        before = len(self.network)
        wanted = super().prune_intermediate_layers(indices, prune_norm)
        if prune_head or len(self.network) < before:
            self.reset_classifier(0, "")
        return wanted

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, h, w) -> logits (B, K); see :meth:`forward`. ``pre_logits`` stops before them."""
        x = self.head_drop(self._pooled(x))
        if pre_logits:
            return x
        if self.dist_head is None:
            return self._classified(self.head, x)
        logits, taught = self._classified(self.head, x), self._classified(self.dist_head, x)
        return (logits, taught) if self.training else (logits + taught) / 2

    def _pooled(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C), or (B, 2·C) for "catavgmax"; unchanged for ""."""
        if self.global_pool == "":
            return x
        if self.global_pool == "avg":
            return x.mean(dim=(2, 3))
        if self.global_pool == "max":
            return x.amax(dim=(2, 3))
        mean, largest = x.mean(dim=(2, 3)), x.amax(dim=(2, 3))
        if self.global_pool == "avgmax":
            return (mean + largest) / 2
        return torch.cat((mean, largest), dim=1)

    def _classified(self, head: nn.Module, x: Tensor) -> Tensor:
        """``head`` on the channels of (B, C), or of (B, C, h, w) without pooling."""
        return head(x) if self.global_pool else head(x.movedim(1, -1)).movedim(-1, 1)

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

    It does not commute with a maximum: there it stays.

    The stem gets channels-last weights, so that all maps behind it are channels-last, where 1×1
    convolutions need no copy, whatever the memory format of the images.
    """
    channels_last(*(layer for layer in model.patch_embed if isinstance(layer, nn.Conv2d)))
    heads = [head for head in (model.head, model.dist_head) if isinstance(head, nn.Linear)]
    if not all(is_plain(head, nn.Linear) for head in heads):
        return []
    done = []
    linear = model.global_pool in ("avg", "")
    if linear and heads and all(can_precede(model.norm, head) for head in heads):
        model.norm = absorb_preceding(model.norm, *heads)
        done.append("norm into head")
    if len(heads) == 2:
        average(*heads)
        model.dist_head = None
        done.append("dist_head into head")
    return done


def _initialise(module: nn.Module, needs_reset: bool = False) -> None:
    """Linear layers: truncated normal 0.02, zero bias; convolutions keep PyTorch's default."""
    if needs_reset and hasattr(module, "reset_parameters"):
        module.reset_parameters()  # type: ignore[operator]
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


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """A release under this model's names, with or without ``dist_head``: timm's filter of files."""
    has_classifier = isinstance(model.head, nn.Linear)
    return translate(state_dict, model.state_dict(), has_classifier)[0]


def _create(variant: str, pretrained: bool, **kwargs: Any) -> CASViT:
    model: CASViT = build_model_with_cfg(
        CASViT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": FeatureGetter},
        **kwargs,
    )
    describe_itself(model)
    return model


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
