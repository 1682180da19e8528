"""Neck and decoder of D-FINE: transformers' modules, put together so that they can be exported.

transformers' own ``forward`` caches anchors and positions by size and turns sizes into plain
numbers, which fixes them in an exported graph. So the choice of queries and the positions are
written here; encoder, decoder and denoising are transformers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

#: Sides of the anchors of the finest map, relative to the image; twice that in the next one.
_ANCHOR_SIDE = 0.05
#: Anchors closer to the image's border than this are left out.
_BORDER = 0.01


class Decoded(NamedTuple):
    """What the decoder says; n is the number of queries, those of denoising first.

    Attributes:
        logits: (B, 1 + layers, n, K), of the initial boxes and of each layer; in evaluation of the
            last layer alone, as the next three.
        boxes: (B, 1 + layers, n, 4) centre and size, relative to the image.
        corners: (B, layers, n, 4·bins), distributions of the four edges.
        references: (B, layers, n, 4), the boxes that these refine.
        chosen_logits: (B, queries, K) of the positions chosen as queries.
        chosen_boxes: (B, queries, 4) of these.
        denoising: which queries are for denoising, as transformers' loss wants it; None without.
    """

    logits: Tensor
    boxes: Tensor
    corners: Tensor
    references: Tensor
    chosen_logits: Tensor
    chosen_boxes: Tensor
    denoising: dict[str, Any] | None


class Positions(nn.Module):
    """Sines and cosines of rows and columns, as transformers' module of this place gives them.

    Args:
        width: of the result, a multiple of 4.
        temperature: ratio of the longest wavelength to the shortest.
    """

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.width, self.temperature = width, temperature

    def forward(self, width: int, height: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(1, height·width, ``self.width``)."""
        # float64: angles of thousands of pixels lose digits in float32
        exact: dict[str, Any] = {"device": device, "dtype": torch.float64}
        count = self.width // 4
        waves = self.temperature ** (-torch.arange(count, **exact) / count)
        rows = (torch.arange(height, **exact)[:, None] * waves)[:, None, :]
        columns = (torch.arange(width, **exact)[:, None] * waves)[None]
        shape = (height, width, count)
        parts = [rows.sin(), rows.cos(), columns.sin(), columns.cos()]
        grid = torch.cat([part.expand(shape) for part in parts], dim=-1)
        return grid.flatten(0, 1).to(dtype).unsqueeze(0)


class Neck(nn.Module):
    """transformers' hybrid encoder: attention on the coarsest map, then fusion down and up.

    Args:
        projections: of each map to one width.
        encoder: of these maps.
    """

    def __init__(self, projections: nn.ModuleList, encoder: nn.Module) -> None:
        super().__init__()
        self.projections, self.encoder = projections, encoder

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i) → (B, width, H_i, W_i)."""
        projected = [layer(each) for layer, each in zip(self.projections, maps, strict=True)]
        fused: list[Tensor] = self.encoder(projected).last_hidden_state
        return fused


class QueryDecoder(nn.Module):
    """The best positions of the maps become queries, which the decoder refines.

    Args:
        network: transformers' ``DFineModel``, whose parts are taken.
        num_classes: K.
        queries: how many positions are chosen.
        denoising: number of denoising queries in training; 0 is off.
    """

    def __init__(self, network: Any, num_classes: int, queries: int, denoising: int) -> None:
        super().__init__()
        self.num_classes, self.queries, self.denoising = num_classes, queries, denoising
        self.memory = network.enc_output
        self.score = network.enc_score_head
        self.box = network.enc_bbox_head
        self.decoder = network.decoder
        self.noisy_class = network.denoising_class_embed if denoising else None

    def forward(
        self, maps: Sequence[Tensor], labels: list[dict[str, Tensor]] | None = None
    ) -> Decoded:
        """Choose queries on the maps and decode them.

        Args:
            maps: (B, width, H_i, W_i), the finest first.
            labels: of each image, as transformers wants them, to denoise as well.
        """
        shapes = [(each.shape[-2], each.shape[-1]) for each in maps]
        tokens = torch.cat([each.flatten(2).transpose(1, 2) for each in maps], dim=1)
        anchors, usable = _anchors(shapes, tokens)
        memory = self.memory(usable.to(tokens.dtype) * tokens)
        logits, boxes = self.score(memory), self.box(memory) + anchors
        # Small images have fewer positions; a graph is for sizes that have enough.
        count = self.queries
        if not torch.compiler.is_exporting():
            count = min(count, tokens.shape[1])
        best = logits.amax(-1).topk(count, dim=1).indices.unsqueeze(-1)
        chosen = [x.gather(1, best.expand(-1, -1, x.shape[-1])) for x in (logits, boxes, memory)]
        content, points, mask, denoising = chosen[2].detach(), chosen[1], None, None
        if labels is not None:
            noisy, noisy_points, mask, denoising = self._noisy(labels, count)
            if denoising is not None:
                content = torch.cat([noisy, content], dim=1)
                points = torch.cat([noisy_points, points], dim=1)
        found = self.decoder(
            inputs_embeds=content,
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            reference_points=points.detach(),
            # Only compared with the number of tokens: as objects, so that it is no part of a graph.
            spatial_shapes=np.array(shapes, dtype=object),
            spatial_shapes_list=shapes,
        )
        return Decoded(
            logits=found.intermediate_logits,
            boxes=found.intermediate_reference_points,
            corners=found.intermediate_predicted_corners,
            references=found.initial_reference_points,
            chosen_logits=chosen[0],
            chosen_boxes=chosen[1].sigmoid(),
            denoising=denoising,
        )

    def _noisy(self, labels: list[dict[str, Tensor]], count: int) -> Any:
        from transformers.models.d_fine.modeling_d_fine import (
            get_contrastive_denoising_training_group,
        )

        return get_contrastive_denoising_training_group(
            targets=labels,
            num_classes=self.num_classes,
            num_queries=count,
            class_embed=self.noisy_class,
            num_denoising_queries=self.denoising,
        )


def _anchors(shapes: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of a square box around each position (1, N, 4), and which are usable (1, N, 1)."""
    found = []
    for level, (height, width) in enumerate(shapes):
        y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
        side = torch.full_like(x, _ANCHOR_SIDE * 2.0**level)
        shape = (height, width)
        parts = [x.expand(shape), y[:, None].expand(shape), side.expand(shape), side.expand(shape)]
        found.append(torch.stack(parts, dim=-1).flatten(0, 1))
    boxes = torch.cat(found).unsqueeze(0)
    usable = ((boxes > _BORDER) & (boxes < 1 - _BORDER)).all(-1, keepdim=True)
    logits = torch.log(boxes / (1 - boxes))
    return torch.where(usable, logits, torch.finfo(like.dtype).max), usable


def build_network(
    channels: Sequence[int], num_classes: int, options: Mapping[str, Any]
) -> tuple[Neck, QueryDecoder, Any]:
    """Neck, decoder and transformers' options of D-FINE.

    Args:
        channels: of the maps.
        num_classes: K.
        options: of transformers' ``DFineConfig``.

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    try:
        from transformers import DFineConfig, DFineForObjectDetection, ResNetConfig
    except ImportError as error:
        raise ModuleNotFoundError(
            "D-FINE needs transformers, which is not installed: pip install 'castling[detection]'"
        ) from error
    levels = len(channels)
    config = DFineConfig(
        # It always makes a backbone; a small one of the right channels, which is dropped.
        backbone_config=ResNetConfig(
            embedding_size=8,
            hidden_sizes=list(channels),
            depths=[1] * levels,
            layer_type="basic",
            out_indices=list(range(1, levels + 1)),
        ),
        freeze_backbone_batch_norms=False,
        num_labels=num_classes,
        num_feature_levels=levels,
        encoder_in_channels=list(channels),
        encode_proj_layers=[levels - 1],
        **options,
    )
    network = DFineForObjectDetection(config).model
    width, temperature = config.encoder_hidden_dim, config.positional_encoding_temperature
    for layer in network.encoder.aifi:
        layer.position_embedding = Positions(width, temperature)
    neck = Neck(network.encoder_input_proj, network.encoder)
    return (
        neck,
        QueryDecoder(network, num_classes, config.num_queries, config.num_denoising),
        config,
    )
