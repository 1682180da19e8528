"""Labels of pixels, where sources, transforms, heads and tasks must agree."""

from __future__ import annotations

#: Label of pixels that are of no class: they neither teach nor count.
IGNORED = 255
