"""Hooks of the site: links that leave this folder lead to the repository."""

from __future__ import annotations

import re
from typing import Any

REPOSITORY = "https://github.com/castling-vit/castling/blob/main"
#: Links to files beside ``docs/``, which are read in the repository as they stand.
_OUTSIDE = re.compile(
    r"\]\((?:\.\./)+((?:benchmarks|recipes|src|tests)(?:/[^)]*)?|[A-Z]+(?:\.\w+)?)\)"
)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Make links to files outside the site absolute."""
    return _OUTSIDE.sub(rf"]({REPOSITORY}/\1)", markdown)
