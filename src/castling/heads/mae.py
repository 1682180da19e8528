"""Masked autoencoder: most of an image is hidden, and its pixels are told from the rest.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022, arXiv 2111.06377).

Notable:
- the encoder computes visible tokens alone; the 2-D local residual of castled attention still finds
  their neighbours on the grid of the image (``castling.surgery.visible_tokens``);
- pixels that are hidden are put to zero before the patch embedding, so not even NaN gets through;
- the published decoder (512 channels, 8 blocks) costs more than a small encoder, which sees a
  quarter of the tokens: the default is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from castling.heads.masking import (
    Grid,
    Masks,
    images_of,
    patches_of,
    pixels_of,
    random_masks,
    sincos_positions,
)
from castling.heads.pretrainer import Pretrainer
from castling.models.backbone import WholeViT
from castling.models.dense import HeadConfig, MakeBackbone, register_head
from castling.surgery import visible_tokens
from castling.utils.randomness import Keys

if TYPE_CHECKING:
    from jsonargparse.typing import OpenUnitInterval, PositiveInt


@dataclass(frozen=True, kw_only=True)
class MAEConfig(HeadConfig):
    """Options of a masked autoencoder.

    Attributes:
        mask_ratio: share of the patches that are hidden, at random for each image.
        unit: sides of what is hidden as one, in patches. With 1, as published, a 3×3 local residual
            sees 3 of its 9 taps on average; with 2 it is 5.
        norm_pixels: tell each patch's pixels normalised by their own mean and standard deviation,
            as the published results do; the public codes leave it off unless asked.
        width: channels of the decoder, a multiple of 4 and of ``attention_heads``.
        depth: number of its blocks.
        attention_heads: of its blocks.
        positions: of the encoder: ``fixed`` sines and cosines, as published, or the ``learned``
            table that the backbone begins with, for one that was trained before.
    """

    name: ClassVar[str] = "mae"

    mask_ratio: OpenUnitInterval = 0.75
    unit: Literal[1, 2] = 1
    norm_pixels: bool = True
    width: PositiveInt = 192
    depth: PositiveInt = 2
    attention_heads: PositiveInt = 3
    positions: Literal["fixed", "learned"] = "fixed"

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        super().__post_init__()
        if self.width % 4 or self.width % self.attention_heads:
            raise ValueError(
                f"model.head.width is {self.width}; it must be a multiple of 4 and of "
                f"attention_heads, {self.attention_heads}"
            )


class MaskedAutoencoder(Pretrainer):
    """Encoder of the visible patches, decoder of all.

    Args:
        config: its options.
        backbone: the encoder.
    """

    def __init__(self, config: MAEConfig, backbone: WholeViT) -> None:
        vit = backbone.body
        (side,) = backbone.strides
        super().__init__(backbone, side * config.unit)
        self.config, self.side = config, side
        if not isinstance(vit.patch_drop, nn.Identity):
            raise ValueError("the head mae hides patches by itself: leave patch_drop_rate out")
        for name in ("fc_norm", "attn_pool", "head"):  # of the classifier: not used here
            part = getattr(vit, name, None)
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        if config.positions == "fixed" and vit.pos_embed is not None:
            _fix_positions(vit)
        self.decoder = Decoder(config, vit.embed_dim, side, vit.num_prefix_tokens)

    def masks(self, images: Tensor, keys: Keys) -> Masks:
        """What is hidden of each image, in patches."""
        config = self.config
        grid = self.grid_of(images)
        return random_masks(keys, grid, config.mask_ratio, config.unit, images.device)

    def grid_of(self, images: Tensor) -> Grid:
        """(h, w) in patches; raises ValueError unless the sides are multiples of a patch."""
        height, width = images.shape[-2:]
        if height % self.side or width % self.side:
            raise ValueError(
                f"images of {height}×{width} pixels are no whole number of {self.side}-pixel "
                "patches: change data.transform.image_size"
            )
        return height // self.side, width // self.side

    def encode(self, images: Tensor, masks: Masks) -> Tensor:
        """(B, P + V, C): tokens of the class and of the visible patches, normalised."""
        vit: VisionTransformer = self.backbone.body
        grid = self.grid_of(images)
        shown = images.masked_fill(pixels_of(masks.hidden, grid, self.side), 0)
        tokens = vit._pos_embed(vit.patch_embed(shown))
        prefix = vit.num_prefix_tokens
        index = masks.visible.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        tokens = torch.cat([tokens[:, :prefix], tokens[:, prefix:].gather(1, index)], dim=1)
        with visible_tokens(vit.blocks, grid, masks.visible):
            tokens = vit.blocks(vit.norm_pre(tokens))
        return vit.norm(tokens)

    def predicted(self, images: Tensor, masks: Masks) -> Tensor:
        """(B, h·w, side·side·3) pixels of every patch, as :func:`patches_of` orders them."""
        found: Tensor = self.decoder(self.encode(images, masks), masks, self.grid_of(images))
        return found.float()

    def image_losses(self, images: Tensor, keys: Keys) -> Tensor:
        """Mean squared error of the pixels of the hidden patches."""
        masks = self.masks(images, keys)
        goal = patches_of(images, self.side)
        if self.config.norm_pixels:
            mean, scale = _own_scale(goal)
            goal = (goal - mean) / scale
        errors = (self.predicted(images, masks) - goal).square().mean(dim=-1)
        return errors.masked_fill(~masks.hidden, 0).sum(1) / masks.hidden.sum(1)

    def pictures(self, images: Tensor, keys: Keys) -> dict[str, Tensor]:
        """``masked``, and ``reconstruction``: the visible patches and what is told of the others.

        With ``norm_pixels`` mean and contrast of a patch, which are not told, are the true ones.
        """
        masks = self.masks(images, keys)
        grid = self.grid_of(images)
        patches = patches_of(images, self.side)
        found = self.predicted(images, masks)
        if self.config.norm_pixels:
            mean, scale = _own_scale(patches)
            found = found * scale + mean
        filled = torch.where(masks.hidden.unsqueeze(-1), found, patches)
        return {
            "masked": images.masked_fill(pixels_of(masks.hidden, grid, self.side), 0),
            "reconstruction": images_of(filled, grid, self.side),
        }


class Decoder(nn.Module):
    """Softmax blocks over all places of the grid; hidden ones hold a learned token.

    Args:
        config: width, depth and heads.
        channels: of the encoder's tokens.
        side: of a patch in pixels.
        num_prefix_tokens: in front of the visible ones.
    """

    def __init__(self, config: MAEConfig, channels: int, side: int, num_prefix_tokens: int) -> None:
        super().__init__()
        width = config.width
        self.num_prefix_tokens = num_prefix_tokens
        self.embed = nn.Linear(channels, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.Sequential(
            *(Block(width, config.attention_heads, qkv_bias=True) for _ in range(config.depth))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, side * side * 3)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are no weights."""
        return {"mask_token"}

    def forward(self, tokens: Tensor, masks: Masks, grid: Grid) -> Tensor:
        """(B, P + V, C) of the encoder → (B, h·w, side·side·3)."""
        prefix = self.num_prefix_tokens
        x = self.embed(tokens)
        batch, _, width = x.shape
        places = masks.hidden.shape[1]
        index = masks.visible.unsqueeze(-1).expand(-1, -1, width)
        mask_tokens = self.mask_token.to(x.dtype).expand(batch, places, width)
        everything = mask_tokens.scatter(1, index, x[:, prefix:])
        # In the precision of the weights: under autocast tokens are narrower than positions.
        positions = sincos_positions(grid, width, x.device).to(self.mask_token.dtype)
        everything = everything + positions
        x = self.norm(self.blocks(torch.cat([x[:, :prefix].to(everything.dtype), everything], 1)))
        found: Tensor = self.pixels(x[:, prefix:])
        return found


def _own_scale(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every patch, each (B, n, 1)."""
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


@torch.no_grad()
def _fix_positions(vit: VisionTransformer) -> None:
    """Replace the learned table by sines and cosines, zero for prefix tokens, and keep it so."""
    table = vit.pos_embed
    assert table is not None
    height, width = vit.patch_embed.grid_size
    if table.shape[-1] % 4:
        raise ValueError(
            f"fixed positions need a multiple of 4 channels, the backbone has {table.shape[-1]}: "
            "set model.head.positions to learned"
        )
    table.zero_()
    table[0, table.shape[1] - height * width :] = sincos_positions(
        (height, width), table.shape[-1], table.device
    )
    table.requires_grad_(False)


@register_head(MAEConfig, task="pretraining")
def mae(config: MAEConfig, make_backbone: MakeBackbone, num_classes: int) -> MaskedAutoencoder:
    """A masked autoencoder of a plain vision transformer; ``num_classes`` does not matter."""
    return MaskedAutoencoder(config, make_backbone.whole_vit())
