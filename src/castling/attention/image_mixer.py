"""The interfaces of what mixes tokens: any token mixer, and one that mixes an image whole."""

from __future__ import annotations

from typing import NoReturn

from timm.layers import register_notrace_module
from torch import Tensor, nn

from castling.attention.config import AttentionConfig


@register_notrace_module
class TokenMixer(nn.Module):
    """A module that exchanges information between tokens: what ``castling.tap`` records.

    To timm's and torchvision's tracers (``torch.fx``) it is a leaf: what runs inside depends on
    device, precision and sizes.

    Attributes:
        config: the attention it computes.
    """

    config: AttentionConfig

    def __prepare_scriptable__(self) -> NoReturn:
        """What ``torch.jit.script`` asks first: refuse before it fails on some inner annotation.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"{type(self).__name__} cannot be scripted: use torch.jit.trace(model, images) or "
            "torch.export.export(model, (images,)) in the place of torch.jit.script"
        )

    def extra_repr(self) -> str:
        """The configuration, for printing a model."""
        return str(self.config)


class ImageMixer(TokenMixer):
    """A token mixer on a map (B, C, h, w) with projections of its own, as CAS-ViT's block wants it.

    Subclasses register with :func:`castling.attention.registry.register_image_mixer`.
    Subclasses are built as ``mixer(dim, config, proj_drop=0.0)``, with C, the configuration that
    chose them, and the dropout probability on the result.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        raise NotImplementedError
