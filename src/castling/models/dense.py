"""Heads of dense models, registered by name: ``HEAD/BACKBONE`` builds the head on the backbone.

Heads stand a floor above the models, in ``castling.heads``; here is only what finds them, so that
models are built, saved and opened by name whatever they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from torch import nn

from castling.models.backbone import Backbone, WholeViT
from castling.utils.text import did_you_mean


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Base of the options of all heads; a subclass sets ``name`` and adds its options.

    Heads are imported with the package, so number types with a range (``PositiveInt``, …) are
    imported under ``TYPE_CHECKING``; ``castling.utils.checks`` knows them by name.

    Attributes:
        freeze_batchnorm: keep the backbone's BatchNorm as it is, statistics and weights: for
            pretrained backbones and small batches.
    """

    name: ClassVar[str] = ""
    #: Options in whose place a trial without files and network takes others.
    trial_options: ClassVar[Mapping[str, Any]] = {}
    freeze_batchnorm: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        from castling.utils.checks import check_fields

        check_fields(self, "model.head")


class MakeBackbone(Protocol):
    """Builds the backbone that a head is put on; given by the builder."""

    def __call__(self, strides: Sequence[int]) -> Backbone:
        """The backbone with one feature map of each stride, in pixels of the image.

        Raises:
            ValueError: it has no map of a stride; the message says which it has.
        """
        ...

    def coarsest(self) -> Backbone:
        """The backbone with its coarsest feature map alone."""
        ...

    def whole_vit(self) -> WholeViT:
        """The backbone as a whole plain vision transformer; ValueError where it is none."""
        ...


class HeadSpec(NamedTuple):
    """A registered head.

    Attributes:
        config: class of its options.
        defaults: of the named size: options that differ from those of the class.
        build: (options, backbone, number of classes) → dense model.
        task: name of the task that trains it, such as ``"detection"``.
    """

    config: type[HeadConfig]
    defaults: Mapping[str, Any]
    build: Callable[[Any, MakeBackbone, int], nn.Module]
    task: str


BuilderT = TypeVar("BuilderT", bound=Callable[[Any, MakeBackbone, int], nn.Module])
_HEADS: dict[str, HeadSpec] = {}


def register_head(
    config: type[HeadConfig], *, task: str, sizes: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[[BuilderT], BuilderT]:
    """Decorator: the function that builds dense models with a head.

    Args:
        config: class of its options.
        task: that trains it.
        sizes: name → options of each named size; None registers ``config.name`` alone.

    Raises:
        ValueError: another head has one of the names.
    """

    def register(build: BuilderT) -> BuilderT:
        for name, defaults in (sizes or {config.name: {}}).items():
            taken = _HEADS.get(name)
            if taken is not None and taken.config.__module__ != config.__module__:
                raise ValueError(
                    f"there is a head {name!r} already, of {taken.config.__module__}: choose "
                    "another name"
                )
            _HEADS[name] = HeadSpec(config, defaults, build, task)
        return build

    return register


def list_heads(task: str | None = None) -> list[str]:
    """Names of all heads, or of those of a task, sorted."""
    return sorted(name for name, spec in _HEADS.items() if task in (None, spec.task))


def head_spec(name: str) -> HeadSpec:
    """The head registered under ``name``; ValueError lists the known names."""
    if name not in _HEADS:
        raise ValueError(
            f"there is no head {name!r} (known are {', '.join(list_heads())})"
            f"{did_you_mean(name, _HEADS)}"
        )
    return _HEADS[name]


def head_config(name: str, options: Mapping[str, Any] | None = None) -> HeadConfig:
    """The options of a head by name, its size's defaults replaced by ``options``.

    Args:
        name: of the head.
        options: as :func:`head_to_dict` gives them, or some of them.

    Raises:
        ValueError: there is no such head or option, or a value does not fit.
    """
    from castling.utils.checks import config_from_dict

    spec = head_spec(name)
    values = {**spec.defaults, **(options or {})}
    other = values.pop("name", name)
    if other != name:
        raise ValueError(f"model.head.name is {other!r}, the model's head {name!r}: leave it out")
    found: HeadConfig = config_from_dict(spec.config, values, "model.head")
    return found


def head_to_dict(name: str, config: HeadConfig) -> dict[str, Any]:
    """All options of a head as plain values for YAML or JSON, ``name`` (of the size) first."""
    options: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return {"name": name, **options}
