"""Extension of the API reference: Sphinx roles in docstrings become plain Markdown code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`~?([^`]+)`")


class DocstringRoles(griffe.Extension):
    """``:class:`Kernel` `` becomes `` `Kernel` ``."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of every object once it has been read."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
