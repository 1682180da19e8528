"""The verbs that list what there is."""

from __future__ import annotations

from castling.cli.parts import parser_for, show


def models(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for("models")
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'castling_*'")
    parser.add_argument("--macs", action="store_true", help="build each and count")
    values = parser.parse_args(arguments)
    from castling.profiling.catalogue import HeadEntry, ModelEntry, list_heads, list_models

    found: list[ModelEntry | HeadEntry] = [
        *list_models(values.pattern, count=values.macs),
        *list_heads(values.pattern),
    ]
    lines = [str(entry) for entry in found]
    show(values, [entry.to_dict() for entry in found], "\n".join(lines))
    return 0


def attentions(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for("attentions")
    values = parser.parse_args(arguments)
    from castling.profiling.catalogue import list_attentions

    found = list_attentions()
    show(values, [entry.to_dict() for entry in found], "\n".join(str(entry) for entry in found))
    return 0
