"""Named models, all in timm's registry."""

from castling.models import castling_vit  # noqa: F401
