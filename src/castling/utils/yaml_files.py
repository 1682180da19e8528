"""YAML files from people and other machines, read with bounds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 10**6
"""Largest YAML file, far above any recipe with a plan for every layer."""

MAX_VALUES = 10**5
"""Most values in a file with every alias written out: ten lines of aliases can stand for 10⁹."""


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that names a key twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; raises ConstructorError at a repeated key."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if (
                key_node.tag == "tag:yaml.org,2002:merge"
            ):  # several may be given; they hold no value
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The content of a YAML file; nothing in it is executed.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not valid YAML, names a key twice, is nested too deeply, or is larger than
            the bounds above; the message names the file.
    """
    path = Path(path)
    with path.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES:,} bytes, so it is no recipe")
    try:
        loader = _UniqueKeys(content.decode("utf-8"))
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _values(node, {}) > MAX_VALUES:
                raise ValueError(f"its aliases stand for more than {MAX_VALUES:,} values")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError as error:
        raise ValueError(f"{path} is not valid YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise ValueError(f"{path} is not valid YAML: {error}") from error


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node with its aliases written out; ValueError where one holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    count = known.get(id(node))
    if count is None:
        known[id(node)] = 0  # until all below is counted
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = [each for pair in node.value for each in pair]
        count = known[id(node)] = 1 + sum(_values(child, known) for child in children)
    elif count == 0:
        raise ValueError("an alias stands for a value that holds it")
    return count
