"""Whether a CAS-ViT block is folded through and through, and its weights if it is.

Asked on every call, which costs ten microseconds: a block that anyone changes after folding (a
layer quantised, replaced, parametrised, or watched by a hook) computes by its modules again.
"""

from __future__ import annotations

from timm.layers import DropPath
from torch import Tensor, nn

from castling.attention import AdditiveTokenMixer
from castling.attention.convolutional_additive import ChannelGate, SpatialGate
from castling.models.cas_vit_parts import ConvMlp, LocalIntegration

#: A module's class and, by name, its children; None for a convolution, one of whose weights it is.
_Tree = tuple[tuple[type[nn.Module], ...], dict[str, "_Tree"]]


def _leaf(*classes: type[nn.Module]) -> _Tree:
    return classes, {}


def _sequence(*children: _Tree) -> _Tree:
    return (nn.Sequential,), {str(index): child for index, child in enumerate(children)}


_CONVOLUTION = _leaf(nn.Conv2d)
_NOTHING = _leaf(nn.Identity)
_LOCAL: _Tree = (
    (LocalIntegration,),
    {"network": _sequence(_CONVOLUTION, _NOTHING, _CONVOLUTION, _leaf(nn.GELU), _CONVOLUTION)},
)
_SPATIAL: _Tree = (
    (SpatialGate,),
    {"block": _sequence(_CONVOLUTION, _NOTHING, _leaf(nn.ReLU), _CONVOLUTION)},
)
_CHANNEL: _Tree = (
    (ChannelGate,),
    {"block": _sequence(_leaf(nn.AdaptiveAvgPool2d), _CONVOLUTION)},
)
_MIXER: _Tree = (
    (AdditiveTokenMixer,),
    {
        "oper_q": _sequence(_SPATIAL, _CHANNEL),
        "oper_k": _sequence(_SPATIAL, _CHANNEL),
        "dwc": _CONVOLUTION,
        "proj": _CONVOLUTION,
        "qkv": _CONVOLUTION,
        "proj_drop": _leaf(nn.Dropout),
    },
)
_MLP: _Tree = (
    (ConvMlp,),
    {"fc1": _CONVOLUTION, "act": _leaf(nn.GELU), "fc2": _CONVOLUTION, "drop": _leaf(nn.Dropout)},
)
_BLOCK = {
    "norm1": _NOTHING,
    "norm2": _NOTHING,
    "drop_path": _leaf(nn.Identity, DropPath),
    "attn": _MIXER,
    "mlp": _MLP,
}


def folded_weights(block: nn.Module) -> list[Tensor] | None:
    """The weights of a block in evaluation, as the fused operator takes them.

    Args:
        block: an :class:`castling.models.cas_vit_blocks.AdditiveBlock`.

    Returns:
        :meth:`castling.ops.additive_block.AdditiveBlockWeights.flat`; None for a block that is not
        folded, is in training in any part, has another attention, or is watched by hooks.
    """
    children = block._modules
    if not all(_matches(children[name], tree) for name, tree in _BLOCK.items()):
        return None
    local = children["local_perception"]
    if local is not None and not _matches(local, _LOCAL):
        return None
    weights: list[Tensor | None] = []
    if local is not None:
        network = local._modules["network"]._modules  # type: ignore[union-attr]
        for index in ("0", "2", "4"):
            weights += _pair(network[index])
    mixer = children["attn"]._modules  # type: ignore[union-attr]
    weights += _pair(mixer["qkv"])
    for side in ("oper_q", "oper_k"):
        spatial, channel = mixer[side]._modules.values()  # type: ignore[union-attr]
        gate = spatial._modules["block"]._modules  # type: ignore[union-attr]
        weights += _pair(gate["0"])
        weights.append(_pair(gate["3"])[0])
        weights.append(_pair(channel._modules["block"]._modules["1"])[0])  # type: ignore[union-attr]
    for layer in (mixer["dwc"], mixer["proj"]):
        weights += _pair(layer)
    mlp = children["mlp"]._modules  # type: ignore[union-attr]
    weights += _pair(mlp["fc1"])
    weights += _pair(mlp["fc2"])
    found = [weight for weight in weights if weight is not None]
    return found if len(found) == len(weights) else None


def _matches(module: nn.Module | None, tree: _Tree) -> bool:
    classes, children = tree
    if module is None or type(module) not in classes or module.training:
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    parts = module._modules
    return len(parts) == len(children) and all(
        _matches(parts.get(name), child) for name, child in children.items()
    )


def _pair(convolution: nn.Module | None) -> list[Tensor | None]:
    parameters = convolution._parameters  # type: ignore[union-attr]
    return [parameters["weight"], parameters["bias"]]
