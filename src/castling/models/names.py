"""Names of models: ``timm:NAME``, ``NAME`` or, of dense models, ``HEAD/BACKBONE``."""

from __future__ import annotations

from timm.models import is_model, list_models

from castling.models.dense import head_spec, list_heads
from castling.utils.text import did_you_mean


def split_name(name: str) -> tuple[str, str]:
    """(head, rest) of a model's name; the head is empty for all but dense models.

    Raises:
        ValueError: there is no such head, or no backbone behind it.
    """
    head, slash, backbone = name.partition("/")
    if head in list_heads() and not backbone:
        raise ValueError(
            f"{head} is a head alone; name its backbone too, such as {head}/cas_vit_xs"
        )
    if not slash or ":" in head:  # hf:owner/model
        return "", name
    head_spec(head)
    return head, backbone


def timm_name(name: str) -> str:
    """A model's name in timm's registry, checked to be there; of dense models the backbone's.

    Raises:
        ValueError: it is not there, there is no such head, or the prefix names a library that is
            not supported.
    """
    name = split_name(name)[1]
    prefix, colon, rest = name.partition(":")
    if colon and prefix == "hf":
        raise ValueError(
            f"{name}: models of Hugging Face cannot be converted yet; use the timm model of the "
            "same family, such as timm:vit_base_patch16_224"
        )
    if colon and prefix != "timm":
        raise ValueError(f"{name}: the prefix of a model is timm: (default) or hf:, got {prefix!r}")
    name = rest if colon else name
    base = name.split(".")[0]
    if not is_model(base):
        raise ValueError(
            f"timm knows no model {base!r}; castling models lists ours"
            f"{did_you_mean(base, list_models())}"
        )
    return name
