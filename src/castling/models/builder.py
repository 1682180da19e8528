"""Models by name, with the attention put in."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from castling.attention import attention_config
from castling.surgery import linearize_


def build_model(
    name: str,
    kwargs: dict[str, Any],
    attention: str | dict[str, Any] | None = None,
    where: list[str] | dict[str, Any] | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """``timm.create_model``, then the attention put in.

    Args:
        name: timm name.
        kwargs: further keyword arguments.
        attention: name, or dictionary of name and options; None keeps what the model has.
        where: names of attention layers to convert, or a plan; None means all.
        image_size: (height, width), passed as ``img_size`` to models that take one.
        pretrained: load timm's weights (needs the network).

    Raises:
        ValueError: no such model or attention, or the model does not take an argument.
    """
    if not timm.is_model(name.split(".")[0]):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:8]
        hint = f" Similar: {', '.join(close)}." if close else ""
        raise ValueError(f"timm knows no model {name!r}.{hint} castling models lists ours.")
    kwargs = dict(kwargs)
    own = timm.models.model_entrypoint(name.split(".")[0]).__module__.startswith("castling.")
    config = None if attention is None else attention_config(attention)
    if config is not None and own:  # our builders leave other layers as their host has them
        kwargs |= {"attention": config, "where": where}
    if image_size is not None and "img_size" not in kwargs:
        kwargs["img_size"] = image_size[0] if image_size[0] == image_size[1] else image_size
    convert = not own
    while True:
        try:
            model = timm.create_model(name, pretrained=pretrained, **kwargs)
            break
        except TypeError as error:
            # convolutional models take no img_size, softmax twins no attention
            refused = next((key for key in ("img_size", "attention") if key in str(error)), None)
            if refused is None or refused not in kwargs:
                raise ValueError(f"{name}: {error}") from error
            del kwargs[refused]
            if refused == "attention":
                del kwargs["where"]
                convert = True
    if convert and config is not None:
        linearize_(model, config, where)
    return model
