"""Which attentions of timm's models can be replaced: every registered model, looked at once.

Builds each model without weights (on the meta device), records the tokens that its attentions see
at the default image size, and asks which adapter takes them. Of every class of attention the
smallest model is built a second time, with random weights, converted to softmax and compared with
itself in double precision. Writes ``results/timm_hosts.json``, which docs/hosts.md is made from.
Half an hour.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import castling
from castling.attention import TokenMixer
from castling.surgery.hosts import adapter_for, adapter_on_request, why_left
from castling.surgery.hosts.registry import qualified_name, window_of
from castling.surgery.linearize_report import unknown_attentions
from castling.utils.files import write_json

RESULTS = Path(__file__).parent / "results"
NAME = "timm_hosts"


def main() -> None:
    """Look at every model, then convert the smallest of each class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="*", help="a shell pattern")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    own = {name for name in timm.list_models() if _module_of(name).startswith("castling")}
    names = [n for n in timm.list_models(options.models) if n not in own]
    models = {name: found for name in names if (found := looked_at(name))["attentions"]}
    study = {
        "command": f"python benchmarks/{NAME}.py",
        "timm": timm.__version__,
        "looked_at": len(names),
        "models": models,
        "checked": checked(models),
    }
    write_json(options.results / f"{NAME}.json", study)
    print({k: v for k, v in study.items() if k != "models"})


def _module_of(name: str) -> str:
    return timm.model_entrypoint(name).__module__


def looked_at(name: str) -> dict[str, Any]:
    """Parameters and attentions of a model: class, how many, tokens, and what becomes of them."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    unknown = unknown_attentions(model)
    layers = {
        n: m
        for n, m in model.named_modules()
        if adapter_for(m) is not None or (n in unknown and not isinstance(m, TokenMixer))
    }
    tokens: dict[str, int] = {}
    for layer_name, layer in layers.items():
        layer.register_forward_pre_hook(_recorder(tokens, layer_name), with_kwargs=True)
    size = model.default_cfg["input_size"]
    try:
        with torch.no_grad(), torch.device("meta"):
            model(torch.empty(1, *size))
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        logging.getLogger(__name__).info("%s does not run without weights: %s", name, error)
    attentions: dict[str, Any] = {}
    for layer_name, layer in layers.items():
        kind = qualified_name(type(layer))
        known = attentions.setdefault(
            kind, {"layers": 0, "tokens": [], "fate": fate(layer), "why": ""}
        )
        known["layers"] += 1
        seen = window_of(layer) or tokens.get(layer_name)
        if seen and seen not in known["tokens"]:
            known["tokens"].append(seen)
        if known["fate"] != "converted":
            known["why"] = why_left(layer)
    return {
        "family": _module_of(name).rpartition(".")[2],
        "parameters": sum(p.numel() for p in model.parameters()),
        "size": list(size[-2:]),
        "attentions": attentions,
    }


def fate(layer: nn.Module) -> str:
    """``converted``, ``by name``, or ``left``."""
    if adapter_for(layer) is not None:
        return "converted"
    return "by name" if adapter_on_request(layer) is not None else "left"


def _recorder(tokens: dict[str, int], name: str) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("x")
        if isinstance(x, torch.Tensor):
            spatial = x.shape[2:] if x.dim() == 4 and x.shape[1] > x.shape[-1] else x.shape[1:-1]
            tokens[name] = math.prod(spatial)

    return record


def checked(models: Mapping[str, Any]) -> dict[str, Any]:
    """Class -> the smallest model that holds it, and how far softmax as the new attention is off.

    The difference is the largest of any feature, in parts of the largest feature.
    """
    smallest: dict[str, str] = {}
    for name, model in models.items():
        for kind, attention in model["attentions"].items():
            if attention["fate"] == "left":
                continue
            best = smallest.get(kind)
            if best is None or model["parameters"] < models[best]["parameters"]:
                smallest[kind] = name
    found: dict[str, Any] = {}
    for kind, name in sorted(smallest.items()):
        found[kind] = {"model": name}
        try:
            found[kind]["difference"] = difference(name, kind)
        except ValueError as error:
            found[kind]["refused"] = str(error)
        print(kind, found[kind], flush=True)
    return found


def difference(name: str, kind: str) -> float:
    """Of the features of a model, when every attention of a class becomes softmax.

    In double precision: random weights multiply rounding, and fused softmax rounds otherwise.
    """
    torch.manual_seed(0)
    model = timm.create_model(name).eval().double()
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            flat = parameter.dim() <= 1 or not bool(parameter.any())
            if flat or "rel" in label or "bias_table" in label or "attention_biases" in label:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        module, _, class_name = kind.rpartition(".")
        host: Any = getattr(importlib.import_module(module), class_name)
        layers = [n for n, m in model.named_modules() if type(m) is host]
        image = torch.randn(1, *model.default_cfg["input_size"], dtype=torch.float64)
        before = model.forward_features(image)
        castling.linearize_(model, "softmax", where=layers)
        after = model.forward_features(image)
    before, after = (x if isinstance(x, torch.Tensor) else x[0] for x in (before, after))
    return float((before - after).abs().max() / before.abs().max())


if __name__ == "__main__":
    main()
