"""Named models, all in timm's registry."""

from castling.models import cas_vit  # noqa: F401
