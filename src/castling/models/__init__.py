"""Named models, all in timm's registry."""

from castling.models import cas_vit, castling_vit, castling_vit_pico, qt_vit  # noqa: F401
