"""Pixel and query decoder of Mask2Former: transformers' layers, put together to be exported.

transformers' own ``forward`` caches positions by size and turns sizes into tensors, which fixes
them in an exported graph. So positions and reference points are written here; projections,
deformable attention, masked attention and initial weights are transformers'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Maps that deformable attention reads and queries attend to.
LEVELS = 3
#: Sampled per position, head and map.
_POINTS = 4
_TEMPERATURE = 10000.0


class Segments(NamedTuple):
    """What the decoder says of every query; n is the number of queries.

    Attributes:
        classes: (B, n, K + 1) logits, the last of no object.
        masks: (B, n, h, w) logits.
    """

    classes: Tensor
    masks: Tensor


class PixelDecoder(nn.Module):
    """Deformable attention across the coarse maps, then a feature pyramid to the finest one.

    Args:
        parts: transformers' ``Mask2FormerPixelDecoder``, whose parts are taken.
    """

    def __init__(self, parts: Any) -> None:
        super().__init__()
        self.projections = parts.input_projections
        self.level_embed = parts.level_embed
        self.layers = parts.encoder.layers
        self.laterals = nn.ModuleList(parts.lateral_convolutions)
        self.outputs = nn.ModuleList(parts.output_convolutions)
        self.mask_projection = parts.mask_projection

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Maps (B, C_i, h_i, w_i), the finest first → three levels, and features of the masks.

        Returns:
            Levels (B, width, h, w), the coarsest first; features (B, width, h_0, w_0).
        """
        coarse = [layer(x) for layer, x in zip(self.projections, reversed(maps), strict=False)]
        shapes = [(x.shape[-2], x.shape[-1]) for x in coarse]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in coarse], dim=1)
        width = tokens.shape[-1]
        embedded = [
            positions(*shape, width, tokens) + self.level_embed[level]
            for level, shape in enumerate(shapes)
        ]
        where, reference = torch.cat(embedded, dim=1), _reference_points(shapes, tokens)
        for layer in self.layers:
            (tokens,) = layer(
                tokens,
                attention_mask=None,
                position_embeddings=where,
                reference_points=reference,
                spatial_shapes_list=shapes,
            )
        pieces = tokens.split([height * width for height, width in shapes], dim=1)
        levels = [
            piece.transpose(1, 2).unflatten(2, shape)
            for piece, shape in zip(pieces, shapes, strict=True)
        ]
        finest = levels[-1]
        fine = reversed(maps[: len(self.laterals)])
        for lateral, output, x in zip(self.laterals, self.outputs, fine, strict=True):
            y = lateral(x)
            size = (y.shape[-2], y.shape[-1])
            finest = output(y + F.interpolate(finest, size, mode="bilinear", align_corners=False))
        return levels, self.mask_projection(finest)


class MaskedLayer(nn.Module):
    """Attention of the queries to a level inside their masks, to each other, and an MLP.

    Args:
        parts: transformers' ``Mask2FormerMaskedAttentionDecoderLayer``, whose parts are taken.
    """

    def __init__(self, parts: Any) -> None:
        super().__init__()
        self.cross, self.cross_norm = parts.cross_attn, parts.cross_attn_layer_norm
        self.own, self.own_norm = parts.self_attn, parts.self_attn_layer_norm
        self.widen, self.narrow, self.norm = parts.fc1, parts.fc2, parts.final_layer_norm

    def forward(
        self, queries: Tensor, where: Tensor, tokens: Tensor, places: Tensor, allowed: Tensor
    ) -> Tensor:
        """Queries (B, n, C), refined.

        Args:
            queries: (B, n, C).
            where: (n, C), their learned positions.
            tokens: (B, N, C) of the level.
            places: (1, N, C), positions of the tokens.
            allowed: (B, n, N), which tokens a query sees.
        """
        heads = self.cross.num_heads
        layers = zip(
            self.cross.in_proj_weight.chunk(3), self.cross.in_proj_bias.chunk(3), strict=True
        )
        inputs = (queries + where, tokens + places, tokens)
        q, k, v = (F.linear(x, *layer) for x, layer in zip(inputs, layers, strict=True))
        found = self.cross.out_proj(_attention(q, k, v, heads, allowed.unsqueeze(1)))
        queries = self.cross_norm(queries + found)
        placed = queries + where
        q, k, v = self.own.q_proj(placed), self.own.k_proj(placed), self.own.v_proj(queries)
        queries = self.own_norm(queries + self.own.out_proj(_attention(q, k, v, heads)))
        return self.norm(queries + self.narrow(self.widen(queries).relu()))


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """(B, n, C) softmax attention of several heads."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


class QueryDecoder(nn.Module):
    """Queries attend to the levels in turn, each inside the mask that it has found so far.

    Args:
        parts: transformers' ``Mask2FormerTransformerModule``, whose parts are taken.
        classifier: width → K + 1.
    """

    def __init__(self, parts: Any, classifier: nn.Linear) -> None:
        super().__init__()
        self.query_positions = parts.queries_embedder
        self.queries = parts.queries_features
        self.level_embed = parts.level_embed
        self.layers = nn.ModuleList(MaskedLayer(layer) for layer in parts.decoder.layers)
        self.norm = parts.decoder.layernorm
        self.mask_embedder = parts.decoder.mask_predictor.mask_embedder
        self.classifier = classifier

    def forward(self, levels: Sequence[Tensor], features: Tensor) -> list[Segments]:
        """What :class:`PixelDecoder` gave → the segments before and behind each layer."""
        tokens = [
            x.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
            for level, x in enumerate(levels)
        ]
        places = [positions(x.shape[-2], x.shape[-1], x.shape[1], x) for x in levels]
        queries = self.queries.weight.expand(features.shape[0], -1, -1)
        found = [self._segments(queries, features)]
        for index, layer in enumerate(self.layers):
            level = index % len(levels)
            allowed = _inside(found[-1].masks, levels[level])
            queries = layer(
                queries, self.query_positions.weight, tokens[level], places[level], allowed
            )
            found.append(self._segments(queries, features))
        return found

    def _segments(self, queries: Tensor, features: Tensor) -> Segments:
        queries = self.norm(queries)
        masks = self.mask_embedder(queries) @ features.flatten(2)
        shape = (features.shape[-2], features.shape[-1])
        return Segments(self.classifier(queries), masks.unflatten(2, shape))


@torch.no_grad()
def _inside(masks: Tensor, level: Tensor) -> Tensor:
    """(B, n, N) whether a place of the level is in a query's mask; a query with none sees all."""
    size = (level.shape[-2], level.shape[-1])
    inside = F.interpolate(masks, size, mode="bilinear", align_corners=False).flatten(2) >= 0
    return inside | ~inside.any(-1, keepdim=True)


def positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """(1, height·width, channels) sines and cosines of rows and columns, scaled to 2π.

    Args:
        height: of the map.
        width: of the map.
        channels: of the result, a multiple of 4; the first half is for rows.
        like: gives device and dtype.
    """
    exact: dict[str, Any] = {"device": like.device, "dtype": torch.float64}
    count = channels // 4
    waves = _TEMPERATURE ** (-torch.arange(count, **exact) / count)
    angles = [
        torch.arange(1, side + 1, **exact)[:, None] / (side + 1e-6) * (2 * math.pi) * waves
        for side in (height, width)
    ]
    rows, columns = (torch.stack((x.sin(), x.cos()), -1).flatten(1) for x in angles)
    shape = (height, width, 2 * count)
    grid = torch.cat([rows[:, None].expand(shape), columns[None].expand(shape)], dim=-1)
    return grid.flatten(0, 1).to(like.dtype).unsqueeze(0)


def _reference_points(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(1, N, levels, 4): centre of every position, and a unit of its offsets in each level.

    transformers multiplies offsets by half the last two and divides them by the number of points:
    so that an offset of 1 is one place of a level, they are 2·points/(width, height).
    """
    exact: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    centres, units = [], []
    for height, width in shapes:
        y = (torch.arange(height, **exact) + 0.5) / height
        x = (torch.arange(width, **exact) + 0.5) / width
        grid = (height, width)
        centres.append(torch.stack([x.expand(grid), y[:, None].expand(grid)], dim=-1).flatten(0, 1))
        # Sizes of a graph are no tensors, and there is no constant of one.
        one = torch.ones((), **exact) * (2 * _POINTS)
        units.append(torch.stack([one / width, one / height]))
    xy, unit = torch.cat(centres), torch.stack(units)
    shape = (xy.shape[0], len(shapes), 2)
    return torch.cat([xy[:, None].expand(shape), unit[None].expand(shape)], dim=-1)[None]


def build_network(
    channels: Sequence[int], strides: Sequence[int], num_classes: int, options: Mapping[str, Any]
) -> tuple[PixelDecoder, QueryDecoder]:
    """Pixel and query decoder with transformers' initial weights.

    Args:
        channels: of the maps, the finest first.
        strides: of the maps.
        num_classes: K.
        options: of transformers' ``Mask2FormerConfig``.

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    try:
        from transformers import Mask2FormerConfig
        from transformers.models.mask2former import modeling_mask2former as theirs
    except ImportError as error:
        raise ModuleNotFoundError(
            "Mask2Former needs transformers, which is not installed: "
            "pip install 'castling[segmentation]'"
        ) from error
    config = Mask2FormerConfig(
        num_labels=num_classes,
        feature_strides=list(strides),
        common_stride=strides[0],
        **options,
    )
    # Of transformers' model without its backbone: it gives initial weights.
    network: Any = theirs.Mask2FormerPreTrainedModel(config)
    network.pixels = theirs.Mask2FormerPixelDecoder(config, list(channels))
    network.queries = theirs.Mask2FormerTransformerModule(config.feature_size, config)
    network.classifier = nn.Linear(config.hidden_dim, num_classes + 1)
    network.post_init()
    return PixelDecoder(network.pixels), QueryDecoder(network.queries, network.classifier)
