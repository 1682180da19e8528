"""The interfaces of what mixes tokens: any token mixer, and one that mixes an image whole."""

from __future__ import annotations

from torch import Tensor, nn

from castling.attention.config import AttentionConfig


class TokenMixer(nn.Module):
    """A module that exchanges information between tokens: what ``castling.tap`` records.

    Attributes:
        config: the attention it computes.
    """

    config: AttentionConfig

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
