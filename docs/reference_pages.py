"""The reference pages: public names, interfaces for extensions, and the command line's help."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from types import ModuleType
from typing import Any

import castling
from castling.cli import run
from castling_launcher import EXIT_CODES, VERBS, usage

#: Floors of public names, in the order of the page, with the heading of each.
SECTIONS = {
    "models": "Models",
    "attention": "Attention",
    "surgery": "Replace attention, switch, fold and load",
    "conversion": "Convert a pretrained model",
    "explanation": "Explain",
    "ops": "Backends and cost",
    "profiling": "Measure and plan",
    "export": "Export",
    "deploy": "Use a trained model",
}
#: Floors whose own public names the page has too: what those of the package take and return.
WHOLE = ("conversion", "explanation")
#: Module to the names that an extension implements or calls.
INTERFACES = {
    "A kernel": {
        "castling.attention": ["AttentionConfig", "AttentionInputs", "Kernel"],
        "castling.attention.kernel": ["AveragingKernel"],
        "castling.attention.registry": ["register_attention"],
    },
    "A mixer of whole maps": {"castling.attention": ["ImageMixer", "register_image_mixer"]},
    "A host": {"castling.surgery": ["HostAttention", "Place", "register_host"]},
    "A data source": {
        "castling.data.registry": ["SourceConfig", "Source", "DataInfo", "register_source"],
        "castling.data.sample": ["Sample", "Batch", "stack_samples"],
        "castling.data.transforms.base": ["Transform", "TransformConfig"],
    },
    "A task": {
        "castling.tasks.interface": ["TaskConfig", "Task", "Step"],
        "castling.tasks.prediction": ["Prediction"],
        "castling.tasks.registry": ["register_task"],
    },
    "An export target": {
        "castling.export": ["Target", "ExportJob", "ExportedModel", "register_target"]
    },
}
#: Verbs whose first argument has a help page of its own.
PARTS = {"bench": ["ops", "models"]}


def public(name: str) -> Any:
    """A public name of castling; of ``castling.export``, a callable package, the function."""
    value = getattr(castling, name)
    return getattr(value, name) if isinstance(value, ModuleType) else value


def identifier(value: Any) -> str:
    """Where a class or function is defined, as the API reference finds it."""
    return f"{value.__module__}.{value.__qualname__}"


def directive(value: Any, heading: str) -> list[str]:
    """The directive that renders one class or function from its docstring."""
    return [
        f"::: {identifier(value)}",
        "    options:",
        f"      heading: {heading}",
        f"      toc_label: {heading.rpartition('.')[2]}\n",
    ]


def python_page() -> str:
    """Every public name of the package, from its docstring."""
    names: dict[str, list[str]] = {}
    for name in castling.__all__:
        names.setdefault(identifier(public(name)), []).append(name)
    sections: dict[str, list[str]] = {heading: [] for heading in SECTIONS.values()}
    for where, aliases in names.items():
        value = public(aliases[0])
        if not where.startswith("castling."):
            package = where.split(".")[0]
            what = f"{package}'s `{aliases[0]}`: castling's models are in its registry."
            sections["Models"] += [f"### castling.{aliases[0]}\n", f"{what}\n"]
            continue
        heading = f"castling.{value.__name__ if value.__name__ in aliases else aliases[0]}"
        lines = directive(value, heading)
        others = [f"`castling.{name}`" for name in aliases if f"castling.{name}" != heading]
        if others:
            lines.append(f"Also available as {', '.join(others)}.\n")
        sections[SECTIONS[where.split(".")[1]]] += lines
    for floor in WHOLE:
        package = importlib.import_module(f"castling.{floor}")
        for name in package.__all__:
            if identifier(getattr(package, name)) not in names:
                heading = f"castling.{floor}.{name}"
                sections[SECTIONS[floor]] += directive(getattr(package, name), heading)
    lines = [
        "# Python\n",
        "Everything that `import castling` offers. A trailing underscore means: ",
    ]
    lines[-1] += "the model is changed in place. Configurations are frozen dataclasses.\n"
    for heading, content in sections.items():
        lines += [f"## {heading}\n", *content] if content else []
    return "\n".join(lines)


def interfaces_page() -> str:
    """What a kernel, host, source or task implements."""
    lines = [
        "# Interfaces for extensions\n",
        "What [an extension](../extend/index.md) implements, and how it registers itself.\n",
    ]
    for heading, modules in INTERFACES.items():
        lines.append(f"## {heading}\n")
        for module, names in modules.items():
            for name in names:
                lines += directive(getattr(importlib.import_module(module), name), name)
    return "\n".join(lines)


def help_text(verb: str, part: str = "") -> str:
    """What ``castling VERB --help`` prints, 88 columns wide; RuntimeError if it prints nothing."""
    output = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            run(verb, [*([part] if part else []), "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    if not output.getvalue():
        raise RuntimeError(f"castling {verb} {part} --help failed")
    return re.sub(r"[ \t]+$", "", output.getvalue(), flags=re.MULTILINE).strip()


def command_line_page() -> str:
    """The help of every verb."""
    lines = ["# Command line\n", f"```text\n{usage().strip()}\n```\n"]
    lines.append(
        "Every verb that reports takes `--json`, every verb with progress `--quiet`. Results go to "
        "standard output, progress and errors to standard error. `CASTLING_DEBUG=1` shows the "
        "traceback of an error.\n"
    )
    codes = "\n".join(f"| {code} | {text} |" for code, text in EXIT_CODES.items())
    lines.append(f"| exit code | meaning |\n|---|---|\n{codes}\n")
    for verb in VERBS:
        for part in PARTS.get(verb, [""]):
            name = f"castling {verb} {part}".strip()
            lines += [f"## {name}\n", f"```text\n{help_text(verb, part)}\n```\n"]
    return "\n".join(lines)
