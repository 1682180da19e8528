"""What may stand beside the weights in a PyTorch file, and how it is read without running it.

Training scripts save their options, metrics and paths with the weights. Nothing here calls the
classes that a file names: the reader puts a stand-in where each would be. Containers become plain
ones, because weights may lie inside them; everything else is ignored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any


class Ignored:
    """Takes the place of a value that has nothing to do with weights."""

    def __init__(self, *_: Any) -> None:
        """Whatever the file passes is dropped."""

    def __setstate__(self, _: Any) -> None:
        """As is the state that it sets."""


class _Mapping:
    """Takes the place of subclasses of ``dict``; what is built is an ``OrderedDict``."""

    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """An empty dictionary: the unpickler fills it entry by entry."""
        return OrderedDict()


def _list(*_: Any) -> list[Any]:
    """Takes the place of ``collections.deque``."""
    return []


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_FACTORIES = ("bool", "dict", "float", "frozenset", "int", "list", "str", "tuple")

#: Where the values of a file may come from: module -> names. Stand-ins take their place.
VALUES: dict[str, tuple[str, ...]] = {
    "argparse": ("Namespace",),
    "builtins": _FACTORIES,  # of a defaultdict
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "torch.torch_version": ("TorchVersion",),
    "types": ("SimpleNamespace",),
}
#: Dictionaries of configuration libraries and trainers.
MAPPINGS: dict[str, tuple[str, ...]] = {
    "addict.addict": ("Dict",),
    "collections": ("defaultdict",),
    "easydict": ("EasyDict",),
    "lightning.fabric.utilities.data": ("AttributeDict",),
    "lightning.pytorch.utilities.parsing": ("AttributeDict",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
    "yacs.config": ("CfgNode",),
}


def stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Pairs for ``torch.serialization.safe_globals``: a stand-in and the name that it is for."""
    return [
        *((Ignored, name) for name in _qualified(VALUES)),
        *((_Mapping, name) for name in _qualified(MAPPINGS)),
        (_list, "collections.deque"),
    ]


def _qualified(table: dict[str, tuple[str, ...]]) -> Iterator[str]:
    return (f"{module}.{name}" for module, names in table.items() for name in names)
