"""Names of Hugging Face's ``transformers`` library to timm's: ViT, DeiT and DINOv2."""

from __future__ import annotations

import re

import torch
from torch import Tensor

State = dict[str, Tensor]

_NAMES = (
    (r"^(?:vit|deit|dinov2)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)
#: The second form is that of version 5.
_PART = re.compile(
    r"(blocks\.\d+)\.attention\.(?:attention\.(?=query|key|value))?(q|k|v)(?:uery|ey|alue|_proj)"
    r"\.(weight|bias)$"
)
_NO_COUNTERPART = re.compile(r"^(?:embeddings\.mask_token|pooler\..*)$")


def from_transformers(state: State, notes: list[str]) -> State:
    """Rename entries, and join queries, keys and values; other files are left alone."""
    if not any(re.search(r"\.attention\.(attention\.query|q_proj)\.", name) for name in state):
        return state
    result: State = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        for pattern, ours in _NAMES:
            name = re.sub(pattern, ours, name)
        if part := _PART.match(name):
            parts.setdefault(f"{part[1]}.attn.qkv.{part[3]}", {})[part[2]] = tensor
        elif not _NO_COUNTERPART.match(name):
            result[name] = tensor
    for name, three in parts.items():
        if len(three) == 3 and len({(t.shape, t.dtype, t.layout) for t in three.values()}) == 1:
            result[name] = torch.cat([three["q"], three["k"], three["v"]])
    notes.append("translated names of the transformers library")
    return result
