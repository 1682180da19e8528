"""Any model of timm's registry as the backbone of a dense model: feature maps of chosen strides."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import timm
from timm.layers import PatchEmbed
from timm.models import model_entrypoint
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from castling.attention import attention_config
from castling.models.arguments import arguments_of
from castling.models.skeleton import without_memory
from castling.surgery import Attention, Plan, Where, convertible, linearize_, token_grid
from castling.surgery.grid_watch import in_graph
from castling.surgery.selection import Selection, choose, owner_of, read_plan

#: What the names of a backbone's layers begin with in a dense model.
PREFIX = "backbone.body."


class Backbone(nn.Module):
    """A model that returns feature maps, one per stride, the finest first.

    Args:
        body: made by ``timm.create_model(…, features_only=True, out_indices=…)``.
        channels: of each map.
        strides: of each map, in pixels of the image.
        freeze_batchnorm: keep BatchNorm in evaluation mode and its weights fixed; ``train()`` does
            not undo it.
    """

    def __init__(
        self,
        body: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        freeze_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        self.body = body
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.freeze_batchnorm = freeze_batchnorm
        if freeze_batchnorm:
            for norm in self._norms():
                norm.requires_grad_(False)
            self.train(self.training)

    def _norms(self) -> list[_BatchNorm]:
        return [module for module in self.body.modules() if isinstance(module, _BatchNorm)]

    def train(self, mode: bool = True) -> Backbone:
        """As every module's; frozen BatchNorm stays in evaluation mode."""
        super().train(mode)
        if self.freeze_batchnorm:
            for norm in self._norms():
                norm.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → maps (B, C_i, H/stride_i, W/stride_i)."""
        maps = self.body(images)
        return [_channels_first(each, c) for each, c in zip(maps, self.channels, strict=True)]


class WholeViT(Backbone):
    """A plain vision transformer with its last norm and its prefix tokens, as one backbone.

    For heads that run its blocks themselves, such as a masked autoencoder.

    Args:
        body: timm's ``VisionTransformer`` without a classifier.
    """

    body: VisionTransformer

    def __init__(self, body: VisionTransformer) -> None:
        (side,) = set(body.patch_embed.patch_size)
        super().__init__(body, (body.embed_dim,), (side,))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → the map (B, C, H/p, W/p) behind the last norm."""
        (side,) = self.strides
        size = images.shape[-2] // side, images.shape[-1] // side
        # Heads embed images beside this, so the layers could not tell which image is meant.
        known = nullcontext() if in_graph() else token_grid(self.body.blocks, size)
        with known:
            tokens = self.body.forward_features(images)[:, self.body.num_prefix_tokens :]
        return [tokens.transpose(1, 2).unflatten(2, size)]


class MissingStrideError(ValueError):
    """A model has no feature map of a stride.

    Attributes:
        strides: of the maps that it has.
    """

    def __init__(self, name: str, missing: int, strides: Sequence[int]) -> None:
        found = ", ".join(map(str, dict.fromkeys(strides)))
        super().__init__(
            f"{name} has no feature map of stride {missing}, only of {found}; choose another "
            "backbone, or a head for these strides (some take them as model.head.strides)"
        )
        self.strides = tuple(strides)


def _channels_first(feature: Tensor, channels: int) -> Tensor:
    """(B, C, H, W) of a map that may be (B, H, W, C), as timm's Swin gives it."""
    if feature.shape[1] == channels:
        return feature
    return feature.permute(0, 3, 1, 2).contiguous()


def build_backbone(
    name: str,
    kwargs: dict[str, Any],
    strides: Sequence[int] | None,
    *,
    attention: Attention | None = None,
    where: Where | None = None,
    pretrained: bool = False,
    freeze_batchnorm: bool = False,
) -> Backbone:
    """A model of timm's registry as a backbone.

    Args:
        name: in the registry, ours included.
        kwargs: further keyword arguments of the model.
        strides: of the maps wanted, the finest first; None for the coarsest alone.
        attention: put into it; None keeps what it has.
        where: which of its attention layers, by their names in the dense model (``backbone.body.``
            and so on); None means all.
        pretrained: load timm's weights (needs the network).
        freeze_batchnorm: see :class:`Backbone`.

    Raises:
        ValueError: the model gives no feature maps, or ``where`` does not fit.
        MissingStrideError: it has no map of a stride.
        TypeError: the model does not take an argument.
    """
    info: Any = _features(name, kwargs).feature_info
    found = info.reduction()
    if strides is None:
        strides = (max(found),)
    missing = [stride for stride in strides if stride not in found]
    if missing:
        raise MissingStrideError(name, missing[0], found)
    # Of several maps of a stride the deepest; positions in ``found`` are not timm's indices.
    last = dict(zip(found, info.out_indices, strict=True))
    own: dict[str, Any] = {**kwargs, "out_indices": [last[stride] for stride in strides]}
    own["features_only"] = True
    body = _converted(name, own, attention, where, pretrained)
    return Backbone(body, body.feature_info.channels(), strides, freeze_batchnorm=freeze_batchnorm)


def build_whole_vit(
    name: str,
    kwargs: dict[str, Any],
    *,
    attention: Attention | None = None,
    where: Where | None = None,
    pretrained: bool = False,
) -> WholeViT:
    """A plain vision transformer of timm's registry; arguments as :func:`build_backbone`.

    Raises:
        ValueError: the model is another kind of network; as :func:`build_backbone`.
    """
    own = {**kwargs, "num_classes": 0}
    kind = type(without_memory(lambda: cast(nn.Module, timm.create_model(name, **own))))
    if kind is not VisionTransformer:
        raise ValueError(
            f"{name} is a {kind.__name__}; hidden tokens can be left out of plain vision "
            "transformers (timm's VisionTransformer) alone: use the head simmim instead"
        )
    body = cast(VisionTransformer, _converted(name, own, attention, where, pretrained))
    embed = body.patch_embed
    if type(embed) is not PatchEmbed or len(set(embed.patch_size)) > 1:
        raise ValueError(
            f"{name} cuts images otherwise than into square patches, so hidden ones cannot be left "
            "out: use the head simmim instead"
        )
    return WholeViT(body)


def _converted(
    name: str,
    kwargs: dict[str, Any],
    attention: Attention | None,
    where: Where | None,
    pretrained: bool,
) -> Any:
    """The model with an attention put in; ``where`` names layers as a dense model does."""
    chosen: Selection | None = None
    own = dict(kwargs)
    if attention is not None:
        skeleton = without_memory(lambda: cast(nn.Module, timm.create_model(name, **kwargs)))
        chosen = inner_where(skeleton, attention, where)
        if "attention" in arguments_of(model_entrypoint(name.split(".")[0])).names:
            own["attention"] = attention
            if chosen is not None:
                own["where"] = chosen
            attention = None
    body = timm.create_model(name, pretrained=pretrained, **own)
    if attention is not None and (chosen is None or chosen):
        linearize_(body, attention, chosen)
    return body


def _features(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """The model that gives feature maps, without memory."""
    try:
        return without_memory(
            lambda: cast(nn.Module, timm.create_model(name, features_only=True, **kwargs))
        )
    except (AttributeError, RuntimeError) as error:
        raise ValueError(f"{name} gives no feature maps: {error}") from error


def inner_where(
    body: nn.Module, attention: Attention, where: Where | None
) -> dict[str, Attention] | Selection | None:
    """``where``, which names layers as a dense model does, for the model inside.

    Args:
        body: of a :class:`Backbone`, or what it will be.
        attention: for the chosen layers.
        where: see :func:`build_backbone`.

    Raises:
        ValueError: ``where`` matches no layer, or is a plan of another model.
    """
    if where is None:
        return None
    layers = convertible(body)
    if not layers:  # its token mixers are chosen when it is built; it says what it takes
        return cast(Selection, where)
    prefix = PREFIX if owner_of(body) is body else f"{PREFIX}model."
    full = {f"{prefix}{name}": module for name, module in layers.items()}
    where = read_plan(where)
    if isinstance(where, Plan):
        where.require_fits(full, attention_config(attention))
        return dict.fromkeys((n.removeprefix(prefix) for n in where.linear), attention)
    return {
        name.removeprefix(prefix): attention if isinstance(choice, bool) else choice
        for name, choice in choose(full, where).items()
    }
