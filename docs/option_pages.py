"""Pages of options, from the docstrings of the configurations."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap

from castling.data.registry import list_sources, source_config_class
from castling.models.dense import head_spec, list_heads

#: Tasks whose models have heads, and what the pages call them.
TASKS = {
    "detection": "Detection",
    "segmentation": "Segmentation",
    "pretraining": "Pre-training",
}


def markdown(docstring: str) -> str:
    """A docstring's text with Markdown's backticks."""
    return docstring.replace("``", "`")


def introduction(config: type) -> str:
    """What the docstring of a configuration says before its fields."""
    text = inspect.cleandoc(config.__doc__ or "").partition("Attributes:")[0]
    return markdown(text.strip())


def described(config: type) -> dict[str, str]:
    """Field → its text in the docstring of the class itself."""
    attributes = inspect.cleandoc(config.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(
        r"^(\w+): (.*?)(?=^\w+: |\Z)", textwrap.dedent(attributes), flags=re.MULTILINE | re.DOTALL
    )
    return {name: markdown(" ".join(text.split())) for name, text in entries}


def options_of(config: type) -> list[str]:
    """Markdown list of a configuration's own fields, from its docstring."""
    default = config()
    return [
        f"- `{name}` = `{getattr(default, name)!r}`: {text}"
        for name, text in described(config).items()
    ]


def all_options(config: type) -> list[str]:
    """Markdown list of all fields of a configuration, those it inherits too."""
    texts: dict[str, str] = {}
    for each in reversed(config.__mro__):
        if dataclasses.is_dataclass(each):
            texts |= described(each)
    return [
        f"- `{field.name}`{_default(field)}: {texts[field.name]}"
        for field in dataclasses.fields(config)
    ]


def _default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = `{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        return f" = `{field.default_factory()!r}`"
    return ""


def heads_page() -> str:
    """All heads by task, their sizes and options."""
    lines = [
        "# Heads\n",
        "A dense model is called `HEAD/BACKBONE`, and takes any backbone here or of timm that has "
        "the strides it needs. Options go into a recipe under `model.head` "
        "(`--model.head.OPTION VALUE`), and into `castling.create_model(NAME, head={…})`. Sizes of "
        "a head are the same head with other defaults.\n",
    ]
    for task, title in TASKS.items():
        lines += [f"## {title}\n"]
        names: dict[type, list[str]] = {}
        for name in list_heads(task):
            names.setdefault(head_spec(name).config, []).append(name)
        for config, sizes in names.items():
            lines += [f"### {config.name}\n", introduction(config), ""]  # type: ignore[attr-defined]
            if len(sizes) > 1:
                lines += _sizes(sizes)
            lines += [*all_options(config), ""]
    return "\n".join(lines) + "\n"


def _sizes(names: list[str]) -> list[str]:
    lines = ["| name | its defaults |", "|---|---|"]
    for name in names:
        values = ", ".join(f"{key} {value!r}" for key, value in head_spec(name).defaults.items())
        lines.append(f"| `{name}` | {values or 'those below'} |")
    return [*lines, ""]


def sources_page() -> str:
    """All sources of images and their options."""
    lines = [
        "# Sources of images\n",
        "`data.source` of a recipe is a path, `digits`, `digit_scenes`, `torchvision:NAME`, or a "
        "mapping with the name of a source and its options: "
        "`--data.source '{name: masks, path: my_data, ignore: [0]}'`. `castling check-data` and "
        "`--data` of other commands take the same. A path opens as what its files show.\n",
    ]
    for name in list_sources():
        config = source_config_class(name)
        lines += [f"## {name}\n", introduction(config), "", *all_options(config), ""]
    return "\n".join(lines) + "\n"
