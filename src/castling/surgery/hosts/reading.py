"""What an attention and its model say of themselves, read where no adapter was written for them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from castling.attention import TokenMixer

#: PyTorch's function, and the table from which transformers takes its own.
SDPA = "scaled_dot_product_attention"
INTERFACE = "ALL_ATTENTION_FUNCTIONS"
#: Names under which hosts keep a size, in the order they are asked for.
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads", "nhead", "n_head")
_HEAD_DIM = ("head_dim", "attention_head_size", "dim_head", "head_size")
_SCALE = ("scale", "scaling")
#: Projections whose width is that of all heads, and how often.
_WIDTHS = {"qkv": 3, "to_qkv": 3, "in_proj": 3, "q_proj": 1, "query": 1, "to_q": 1, "q": 1}
#: Tokens in front of the patches, as parameters of an embedding.
_PREFIX = ("cls_token", "class_token", "class_embedding", "distillation_token", "register_tokens")


def calls_function(module: nn.Module) -> bool:
    """Whether the ``forward`` of a module calls one of the two functions by a name known here."""
    forward = type(module).forward
    code, scope = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
    if code is None or isinstance(module, TokenMixer):
        return False
    through = any(scope.get(name) in (F, nn, torch) for name in code.co_names)
    return INTERFACE in code.co_names or (
        SDPA in code.co_names and (through or scope.get(SDPA) is F.scaled_dot_product_attention)
    )


def sizes_of(host: nn.Module) -> tuple[int, int]:
    """Heads and channels of one head."""
    heads = heads_of(host)
    head_dim = next((v for n in _HEAD_DIM if isinstance(v := getattr(host, n, None), int)), None)
    if heads is not None and head_dim is None:
        for name, times in _WIDTHS.items():
            width = getattr(getattr(host, name, None), "out_features", None)
            if isinstance(width, int) and width % (times * heads) == 0:
                head_dim = width // (times * heads)
                break
    if heads is None or head_dim is None:
        raise ValueError(
            f"the heads of {type(host).__name__} cannot be read off it: it has no "
            f"{', '.join(_HEADS if heads is None else _HEAD_DIM)}. Write an adapter, "
            "docs/extend/host.md"
        )
    return heads, head_dim


def heads_of(host: nn.Module) -> int | None:
    """The number of heads that an attention says it has; None where it says nothing."""
    return next((v for n in _HEADS if isinstance(v := getattr(host, n, None), int)), None)


def scale_of(host: nn.Module, head_dim: int) -> float:
    """The factor of the scores that the host says, or 1/√d."""
    said = (getattr(host, name, None) for name in _SCALE)
    return next((float(v) for v in said if isinstance(v, int | float)), head_dim**-0.5)


def patch_projection(host: nn.Module) -> nn.Module | None:
    """The convolution that makes patches in a transformers model, if ``host`` is its body."""
    embeddings = dict(host.named_children()).get("embeddings")
    if embeddings is None:
        return None
    convolutions = [
        m for m in embeddings.modules() if isinstance(m, nn.Conv2d) and m.stride == m.kernel_size
    ]
    return convolutions[0] if len(convolutions) == 1 else None


def prefix_tokens(embeddings: nn.Module) -> int:
    """Tokens that a transformers embedding puts in front of the patches."""
    found = (getattr(embeddings, name, None) for name in _PREFIX)
    tokens = [p for p in found if isinstance(p, nn.Parameter)]
    return sum(p.shape[1] if p.dim() == 3 else 1 for p in tokens)
