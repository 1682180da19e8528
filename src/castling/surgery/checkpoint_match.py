"""A model's state under plain names, and which of a file's weights fill most of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from castling.attention import AttentionCore
from castling.surgery.checkpoint_layouts import (
    Weights,
    bare,
    outer_prefix,
    preference,
    prefixes,
)
from castling.surgery.checkpoint_names import translate
from castling.surgery.checkpoint_sizes import timm_names
from castling.surgery.hosts import HostAttention

State = dict[str, Tensor]


class Target:
    """A model's state by its own names, without what the model may be wrapped in.

    Args:
        model: whose state.
        classifiers: names of layers to count among its classifiers.

    Attributes:
        inner: the model without its wrapper.
        own: the state.
        names: bare name -> name in the model.
        heads: names of the classifier's state.
        head_modules: what the names of classifiers begin with.
        added: names of what converting an attention adds, and of what a switch removes.
        removed_by_switch: names of score biases.
    """

    def __init__(self, model: nn.Module, classifiers: Sequence[str] = ()) -> None:
        tensors = tensors_of(model)
        outer = outer_prefix([bare(name) for name in tensors])
        self.names = {bare(name).removeprefix(outer): name for name in tensors}
        self.own = {name: tensors[full] for name, full in self.names.items()}
        self.inner = _uncompiled(model.get_submodule(outer.rstrip(".")))
        modules = [*_classifiers(self.inner), *classifiers]
        self.head_modules = tuple(f"{name}." for name in modules)
        self.heads = {name for name in self.own if name.startswith(self.head_modules)}
        self.removed_by_switch: set[str] = set()
        self.added: set[str] = set()
        for name, module in self.inner.named_modules():
            if isinstance(module, AttentionCore):
                prefix = f"{bare(name)}." if name else ""
                biases = module.bias_names if isinstance(module, HostAttention) else ()
                self.removed_by_switch |= {f"{prefix}{bias}" for bias in biases}
                added = tuple(f"{prefix}{part}" for part in (*module.added_names, *biases))
                self.added |= {n for n in self.own if n.startswith(added)}

    def named(self, names: Any) -> tuple[str, ...]:
        """Names in the model itself."""
        return tuple(self.names.get(name, name) for name in names)


def tensors_of(model: nn.Module) -> State:
    """The state without what modules add by ``get_extra_state``."""
    return {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model inside what ``torch.compile`` returned."""
    inner: Any = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _classifiers(model: nn.Module) -> list[str]:
    """Names of the model's last linear layers, as timm's ``get_classifier`` tells."""
    if not hasattr(model, "get_classifier"):
        return []
    found: Any = model.get_classifier()  # type: ignore[operator]
    layers = found if isinstance(found, tuple | list) else (found,)
    return [n for n, module in model.named_modules() if any(module is layer for layer in layers)]


class Candidate(NamedTuple):
    """Weights of a file under the model's names.

    Attributes:
        key: under which they stand in the file.
        state: names and tensors.
        notes: what was translated.
    """

    key: str
    state: State
    notes: tuple[str, ...]


def choose(found: list[Weights], target: Target, prefer_ema: bool) -> tuple[Candidate, list[str]]:
    """The weights that fill most of the model, and the keys of others that fill as much."""
    ranked = []
    for weights in found:
        for prefix, count in prefixes(weights.state).items():
            candidate = _candidate(weights, prefix, target)
            filled = _filled(candidate.state, target.own)
            rank = preference(weights.key, prefix, prefer_ema)
            asked = prefer_ema and rank[0] < 0 and filled > 0
            order = (not asked, -filled, rank, -count, -len(prefix))
            ranked.append((order, filled, candidate, prefix))
    ranked.sort(key=lambda entry: entry[0])
    _, most, best, prefix = ranked[0]
    others = [
        ".".join(part for part in (other.key, ended.rstrip(".")) if part)
        for _, filled, other, ended in ranked[1:]
        if filled == most > 0 and (other.key, ended) != (best.key, prefix)
    ]
    return best, list(dict.fromkeys(others))


def _candidate(weights: Weights, prefix: str, target: Target) -> Candidate:
    inside = {
        bare(name[len(prefix) :]): tensor
        for name, tensor in weights.state.items()
        if name.startswith(prefix)
    }
    notes = []
    if len(inside) < len(weights.state):
        left = len(weights.state) - len(inside)
        notes.append(f"took the entries under {prefix!r} and left {left} others")
    # The classifier of MIT's models stands beside their backbone.
    if prefix.endswith("backbone.") and any(".op_list." in name for name in inside):
        above = prefix.removesuffix("backbone.")
        return _candidate(weights, above, target)
    state, said = translate(inside, target.own, bool(target.heads))
    if any(name not in target.own for name in state):
        renamed = timm_names(target.inner, state)
        if _filled(renamed, target.own) > _filled(state, target.own) or (
            len(renamed) < len(state) and _filled(renamed, target.own) == _filled(state, target.own)
        ):
            said.append("names and sizes converted as timm does for this family")
            state = renamed
    return Candidate(weights.key, state, (*notes, *said))


def _filled(state: State, own: State) -> int:
    """How many entries of a model a file has, those of another size counting half as much."""
    present = [name for name in own if name in state]
    return len(present) + sum(state[name].shape == own[name].shape for name in present)
