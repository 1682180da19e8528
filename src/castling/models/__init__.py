"""Named models, all in timm's registry."""

from castling.models import (  # noqa: F401
    cas_vit,
    castling_vit,
    castling_vit_pico,
    converted,
    esnet,
    levit_s8,
    qt_vit,
)
