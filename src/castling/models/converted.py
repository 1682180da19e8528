"""The model function behind files that timm's savers write of converted models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import load_pretrained, register_model
from torch import nn

from castling.attention import set_progress
from castling.models.builder import build_model
from castling.surgery import strip_
from castling.surgery.checkpoint_sizes import resize_tables


@register_model
def converted_by_castling(
    pretrained: bool = False,
    host: str = "",
    attention: dict[str, Any] | None = None,
    where: dict[str, Any] | None = None,
    switched: bool = False,
    progress: float = 0.0,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    pretrained_model_args: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A host with another attention; see :mod:`castling.surgery.self_description`.

    Args:
        pretrained: load the weights that ``pretrained_cfg`` names, into the converted model.
        host: name of a model in timm's registry.
        attention: name and options.
        where: layer -> its attention; None means ``attention`` in all.
        switched: whether the auxiliary branches, and score biases with them, were cast away.
        progress: training progress of auxiliary branches.
        pretrained_cfg: where the weights lie, and what timm keeps beside them.
        pretrained_cfg_overlay: replaces entries of it.
        pretrained_model_args: arguments of the saved model; what matters of them is among
            the others.
        **kwargs: of the host.

    Raises:
        ValueError: ``host`` or ``attention`` is missing: another timm wrote no arguments.
    """
    if not host or attention is None:
        raise ValueError(
            "converted_by_castling needs host= and attention=, which are not in this file: the "
            "version of timm that saved the model keeps no arguments. Pass both, or build the host "
            "and call castling.linearize_ and castling.load_checkpoint"
        )
    cfg: Any = pretrained_cfg.to_dict() if hasattr(pretrained_cfg, "to_dict") else pretrained_cfg
    if isinstance(cfg, Mapping):
        cfg = {**cfg, **(pretrained_cfg_overlay or {}), "architecture": host}
        kwargs["pretrained_cfg"] = cfg
    model = build_model(host, kwargs, attention, where)
    if switched:
        strip_(model)
    set_progress(model, progress)
    if pretrained:
        if not isinstance(cfg, Mapping):
            raise ValueError(f"{host} converted has no published weights: leave pretrained=False")
        load_pretrained(
            model,
            dict(cfg),
            num_classes=getattr(model, "num_classes", cfg.get("num_classes", 0)),
            in_chans=kwargs.get("in_chans", 3),
            filter_fn=lambda state, target: resize_tables(target, state, target.state_dict())[0],
        )
    return model
