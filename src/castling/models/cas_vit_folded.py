"""Whether a CAS-ViT block is completely folded, and its weights if it is.

Checked on every call, which costs about ten microseconds: a block that was changed after folding (a
layer quantised, replaced, parametrised or hooked) runs its modules again.
"""

from __future__ import annotations

from timm.layers import DropPath
from torch import Tensor, nn

from castling.attention import AdditiveTokenMixer
from castling.attention.convolutional_additive import ChannelGate, SpatialGate
from castling.models.cas_vit_parts import ConvMlp, LocalIntegration
from castling.utils.plain import globally_hooked, is_plain_tensor

#: A module's possible classes and, by name, its children.
_Tree = tuple[tuple[type[nn.Module], ...], dict[str, "_Tree"]]
#: The same, flattened with parents first: the parent's index, the name in it, the classes, the
#: number of children. A loop over it is several times faster than a recursion.
_Row = tuple[int, str, tuple[type[nn.Module], ...], int]


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
_BLOCK: dict[str, _Tree] = {
    "norm1": _NOTHING,
    "norm2": _NOTHING,
    "drop_path": _leaf(nn.Identity, DropPath),
    "attn": _MIXER,
    "mlp": _MLP,
}
_LOCAL_LAYERS = tuple(f"local_perception.network.{index}" for index in (0, 2, 4))
_LAYERS = (
    "attn.qkv",
    *(f"attn.oper_{x}.{gate}" for x in "qk" for gate in ("0.block.0", "0.block.3", "1.block.1")),
    *("attn.dwc", "attn.proj", "mlp.fc1", "mlp.fc2"),
)
_WITHOUT_BIAS = (".block.3", ".block.1")


def _plan(
    children: dict[str, _Tree], layers: tuple[str, ...]
) -> tuple[list[_Row], list[tuple[int, str]]]:
    """The rows to check, and the weights as (index of a row, parameter); the block is row 0."""
    rows: list[_Row] = []
    places: dict[str, int] = {}

    def add(parent: int, prefix: str, children: dict[str, _Tree]) -> None:
        for name, (classes, below) in children.items():
            rows.append((parent, name, classes, len(below)))
            places[prefix + name] = len(rows)
            add(len(rows), f"{prefix}{name}.", below)

    add(0, "", children)
    weights = []
    for layer in layers:
        kinds = ("weight",) if layer.endswith(_WITHOUT_BIAS) else ("weight", "bias")
        weights += [(places[layer], kind) for kind in kinds]
    return rows, weights


_PLAN = _plan(_BLOCK, _LAYERS)
_PLAN_WITH_LOCAL = _plan({**_BLOCK, "local_perception": _LOCAL}, _LOCAL_LAYERS + _LAYERS)


def folded_weights(block: nn.Module) -> list[Tensor] | None:
    """The weights of a block in evaluation, as the fused operator takes them.

    Args:
        block: an :class:`castling.models.cas_vit_blocks.AdditiveBlock`.

    Returns:
        :meth:`castling.ops.additive_block.AdditiveBlockWeights.flat`; None for a block that is not
        folded, has a part in training mode, another token mixer, hooks, or a ``forward`` set on an
        instance.
    """
    if globally_hooked():
        return None
    rows, places = _PLAN if block._modules.get("local_perception") is None else _PLAN_WITH_LOCAL
    found: list[nn.Module] = [block]
    for parent, name, classes, children in rows:
        module = found[parent]._modules.get(name)
        if (
            module is None
            or type(module) not in classes
            or module.training
            or len(module._modules) != children
            or module._forward_hooks
            or module._forward_pre_hooks
            or "forward" in module.__dict__
            or (type(module) is nn.GELU and module.approximate != "none")
        ):
            return None
        found.append(module)
    weights: list[Tensor] = []
    for place, kind in places:
        weight = found[place]._parameters.get(kind)
        if not is_plain_tensor(weight):
            return None
        assert weight is not None
        weights.append(weight)
    return weights
