"""Where the weights stand in a file: under which keys, and behind which prefixes of their names.

A file may hold several sets of weights, such as a model and its moving average. The set that fills
most of the model is taken; among equals the order is: trained weights, a teacher of
self-distillation (DINO's authors evaluate it), its student, moving averages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

State = dict[str, Tensor]

#: Keys of trained weights, in order of preference.
PLAIN = (
    *("model", "state_dict", "model_state_dict", "model_state"),
    *("module", "net", "network", "weights", "params"),
)
#: Keys and prefixes of moving averages of the weights.
AVERAGED = (
    *("model_ema", "ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict"),
    *("ema_model", "averaged_model", "params_ema", "average"),
)
#: What wrappers, trainers and larger models put in front of names; any sequence of them.
PREFIXES = (
    *("module", "model", "net", "network", "base_model", "backbone", "encoder"),
    *("student", "teacher", *AVERAGED),
)
#: Put anywhere into names by compilation, sharding and gradient checkpointing.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: What a model in memory may be wrapped in: data parallelism, and timm's feature extraction.
_OUTER = ("module.", "model.")
# ``callbacks``, the callback's name, ``average``: nothing known lies deeper.
_DEEPEST = 4


class Weights(NamedTuple):
    """One set of weights in a file.

    Attributes:
        key: the keys on the way to it, joined by dots; "" at the top.
        state: names and tensors.
    """

    key: str
    state: State


def find_weights(content: Any, path: Path, key: str = "") -> list[Weights]:
    """All sets of weights in what a file holds.

    Args:
        content: of the file.
        path: of the file, for messages.
        key: take this one, as ``Weights.key`` names it, or a prefix of names behind it; empty
            for all.

    Raises:
        ValueError: there are none, or none under the key.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not names and tensors")
    found = list(_search(content, (), set(), _DEEPEST))
    if key:
        chosen = [one for weights in found if (one := _under(weights, key)) is not None]
        if not chosen:
            known = ", ".join(weights.key or "(the top)" for weights in found) or "none"
            raise ValueError(f"{path} holds no weights under {key!r}; it has: {known}")
        return chosen[-1:]  # nested deepest
    if not found:
        raise ValueError(
            f"{path} holds no weights under {', '.join((*PLAIN, *AVERAGED))}; it has "
            + (
                f"the entries {', '.join(map(str, list(content)[:12]))}"
                if content
                else "no entries"
            )
        )
    return found


def _under(weights: Weights, key: str) -> Weights | None:
    """The part of ``weights`` that stands under ``key``, the whole of it included."""
    if weights.key == key:
        return weights
    outer = f"{weights.key}." if weights.key else ""
    if not key.startswith(outer):
        return None
    prefix = f"{key.removeprefix(outer)}."
    inside = {n[len(prefix) :]: t for n, t in weights.state.items() if n.startswith(prefix)}
    return Weights(key, inside) if inside else None


def _search(
    value: Mapping[Any, Any], keys: tuple[str, ...], seen: set[int], depth: int
) -> Iterator[Weights]:
    """``value`` and the dictionaries in it, each once: one may contain itself."""
    if id(value) in seen or not depth:
        return
    seen.add(id(value))
    state = {n: t for n, t in value.items() if isinstance(n, str) and isinstance(t, Tensor)}
    if state:
        yield Weights(".".join(keys), state)
    for name, inner in value.items():
        # QT-ViT keeps its averages by their decay, the only entry of their dictionary.
        named = isinstance(name, str)
        if isinstance(inner, dict) and (named or len(value) == 1):
            yield from _search(inner, (*keys, name) if named else keys, seen, depth - 1)


def preference(key: str, prefix: str, prefer_ema: bool) -> tuple[int, int]:
    """Sorts sets of weights that fill equally much of a model: the smallest is taken.

    Args:
        key: of the weights in their file.
        prefix: stripped from their names.
        prefer_ema: whether averages, a teacher among them, come first.
    """
    parts = [*key.split("."), *prefix.split(".")]
    averaged = any(part in AVERAGED for part in parts)
    teacher, student = "teacher" in parts, "student" in parts
    group = 3 if averaged else 1 if teacher else 2 if student else 0
    if prefer_ema and (averaged or teacher):
        group = -1
    return group, next((PLAIN.index(part) for part in parts if part in PLAIN), len(PLAIN))


def bare(name: str) -> str:
    """``name`` without what compilation, sharding and gradient checkpointing put into it."""
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def prefixes(state: State) -> Counter[str]:
    """Known prefixes of the names, "" among them, and how many names each one leads."""
    found = Counter({"": len(state)})
    for name in state:
        prefix, between, rest = "", "", name
        while True:
            part, dot, rest = rest.partition(".")
            if dot and part in WRAPPERS:  # compiled around data parallelism, or inside
                between += f"{part}."
                continue
            if not dot or part not in PREFIXES:
                break
            prefix, between = f"{prefix}{between}{part}.", ""
            found[prefix] += 1
    return found


def outer_prefix(names: list[str]) -> str:
    """The wrapper's prefix that all (bare) names of a model in memory share; "" without."""
    prefix = ""
    while True:
        more = [prefix + outer for outer in _OUTER]
        longer = next((p for p in more if names and all(n.startswith(p) for n in names)), "")
        if not longer:
            return prefix
        prefix = longer
