"""What :func:`castling.linearize_` did, and which attentions of a model it does not know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn

from castling.attention import TokenMixer
from castling.surgery.hosts import adapter_for, adapter_on_request, supported_hosts, why_left

_NAME = re.compile(r"attention|attn", re.IGNORECASE)
# What projections of queries, keys and values are called.
_PROJECTIONS = (
    *({"qkv"}, {"q", "kv"}, {"q", "k", "v"}, {"query", "key", "value"}, {"to_qkv"}),
    *({"to_q", "to_kv"}, {"to_q", "to_k", "to_v"}, {"q_proj", "k_proj", "v_proj"}),
)


class LinearizeReport(list[str]):
    """Names of the replaced layers, in order of execution: a list, with the rest beside it.

    Attributes:
        replaced: layer -> what stood there before: ``"softmax"``, or the name of the attention that
            an earlier conversion put there.
        left: layer -> why it computes what it did before. Layers that ``where`` does not choose,
            and attentions that no adapter knows (cross attention, pooling heads).
    """

    def __init__(self, replaced: Mapping[str, str], left: Mapping[str, str]) -> None:
        super().__init__(replaced)
        self.replaced, self.left = dict(replaced), dict(left)

    def __str__(self) -> str:
        """One line for each kind of layer."""
        lines = [f"replaced {grouped(self.replaced)}"]
        if self.left:
            lines.append(f"left {grouped(self.left)}")
        return "\n".join(lines)


def unknown_attentions(model: nn.Module) -> dict[str, str]:
    """Modules that look like attention and have no adapter: name -> qualified name of the class.

    Found by the names of classes and of projections; of modules inside each other only the
    innermost counts. What stands inside a converted layer or a token mixer of ours does not.
    """
    known = [
        name
        for name, module in model.named_modules()
        if adapter_for(module) is not None or isinstance(module, TokenMixer)
    ]
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        inside = any(name == each or name.startswith(f"{each}.") for each in known)
        if inside or not name or not _looks_like_attention(module):
            continue
        kind = type(module)
        found[name] = f"{kind.__module__}.{kind.__qualname__}"
    holders = {
        name for name in found if any(inner.startswith(f"{name}.") for inner in (*found, *known))
    }
    return {name: kind for name, kind in found.items() if name not in holders}


def _looks_like_attention(module: nn.Module) -> bool:
    if next(module.parameters(), None) is None:
        return False
    children = {name for name, _ in module.named_children()}
    named = bool(_NAME.search(type(module).__name__)) or any(p <= children for p in _PROJECTIONS)
    return named or adapter_on_request(module) is not None


def no_attention(model: nn.Module) -> str:
    """The message for a model in which nothing can be replaced."""
    reasons = {name: why_left(model.get_submodule(name)) for name in unknown_attentions(model)}
    if reasons:
        advice = (
            f"{grouped(reasons)}. To add one: docs/extend/host.md (castling.surgery.register_host)"
        )
    elif any(isinstance(module, TokenMixer) for module in model.modules()):
        advice = "its token mixers are chosen when it is created: create_model(…, attention=…)"
    else:
        advice = "nothing in it looks like one"
    return (
        f"{type(model).__name__} holds no attention that can be replaced: {advice}. Supported: "
        f"{', '.join(supported_hosts())}"
    )


def grouped(reasons: Mapping[str, str]) -> str:
    """Names with the same reason together: ``a, b (reason); c (other reason)``."""
    return "; ".join(
        f"{_some([name for name, each in reasons.items() if each == reason])} ({reason})"
        for reason in dict.fromkeys(reasons.values())
    )


def _some(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
