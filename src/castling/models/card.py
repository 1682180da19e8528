"""The card of a saved model: what is needed to rebuild it, to feed it and to read its answers."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from castling.attention import attention_config, config_to_dict
from castling.utils.files import parse_json, write_json
from castling.utils.version import VERSION

CARD = "model.json"
FORMAT = "castling model 2"
_OLD_FORMAT = "castling model 1"
#: Entries of the old format that are options of the preprocessing now.
_OLD_PREPROCESSING = ("image_size", "mean", "std", "interpolation", "crop_fraction", "eval_crop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is needed to rebuild a model, to feed it and to read its answers.

    Attributes:
        name: timm name of the model, or ``HEAD/BACKBONE``.
        classes: names in the order of the labels.
        preprocessing: options of the task's transforms that evaluation needs: ``image_size``
            (height, width) in pixels, ``mean`` and ``std`` per channel of pixels in [0, 1], and
            whatever else the task's transform has, such as ``interpolation``.
        task: ``name`` of the task and its options.
        head: ``name`` and all options of a dense model's head; None for whole models.
        kwargs: further keyword arguments of timm.create_model, for the backbone where there is a
            head; ``num_classes`` is the whole model's.
        attention: the attention put into the model, as ``config_to_dict`` writes it; None keeps
            what the named model has.
        where: names of the attention layers converted, or a plan (see ``linearize_``); None
            means all.
        switched: whether the auxiliary branches were cast away.
        progress: training progress in [0, 1] of the auxiliary branches, where there still are any.
        folded: whether ``fold_`` has rewritten the model.
        metrics: results, e.g. ``{"val_top1": 91.2}``, in percent.
        colours: [red, green, blue] by which people know each class, in the order of the labels;
            empty where the data had none.
        castling_version: that wrote the file.
    """

    name: str
    classes: list[str]
    preprocessing: dict[str, Any]
    task: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "classification"})
    head: dict[str, Any] | None = None
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    attention: dict[str, Any] | None = None
    where: list[str] | dict[str, Any] | None = None
    switched: bool = False
    progress: float = 1.0
    folded: bool = False
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    colours: list[list[int]] = dataclasses.field(default_factory=list)
    castling_version: str = VERSION

    def __post_init__(self) -> None:
        """Raise ValueError where an entry has no meaning."""
        for name, kind in (
            ("name", str),
            ("preprocessing", dict),
            ("task", dict),
            ("kwargs", dict),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f'"{name}" is {getattr(self, name)!r}, not a {kind.__name__}')
        if not isinstance(self.head, dict | None):
            raise ValueError(f'"head" is {self.head!r}, not a dict')
        classes: Any = self.classes
        if not isinstance(classes, list) or not all(isinstance(each, str) for each in classes):
            raise ValueError(f'"classes" is not a list of names: {classes!r}')
        if len(set(classes)) < len(classes):
            raise ValueError('"classes" names a class twice')
        if self.colours and not _are_colours(self.colours, len(classes)):
            raise ValueError('"colours" is not a list of [red, green, blue] for each class')
        missing = [key for key in ("image_size", "mean", "std") if key not in self.preprocessing]
        if missing:
            raise ValueError(f'"preprocessing" lacks {", ".join(missing)}')
        for key, usable in (("mean", math.isfinite), ("std", lambda x: 0 < x < math.inf)):
            values = self.preprocessing[key]
            if (
                not isinstance(values, (list, tuple))
                or len(values) != 3
                or not all(_is_number(value) and usable(value) for value in values)
            ):
                raise ValueError(
                    f'"{key}" is {values!r}; images cannot be normalised by it: it must be three '
                    f"finite numbers{', each above 0' if key == 'std' else ''}"
                )
        size: Any = self.preprocessing["image_size"]
        sides = [size, size] if isinstance(size, int) else size
        if (
            not isinstance(sides, (list, tuple))
            or len(sides) != 2
            or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sides)
        ):
            raise ValueError(
                f'"image_size" is {size!r}; it must be a side or [height, width] in pixels'
            )
        crop: Any = self.preprocessing.get("crop_fraction")
        if crop is not None and not (_is_number(crop) and 0 < crop <= 1):
            raise ValueError(f'"crop_fraction" is {crop!r}; it must lie in (0, 1]')
        if not (_is_number(self.progress) and 0 <= self.progress <= 1):
            raise ValueError(f'"progress" is {self.progress!r}; it must lie in [0, 1]')

    def at_size(self, size: tuple[int, int]) -> ModelCard:
        """The card of the same model for images of another (height, width) in pixels."""
        return dataclasses.replace(
            self, preprocessing=self.preprocessing | {"image_size": list(size)}
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the model was trained at."""
        size = self.preprocessing["image_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return int(height), int(width)

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, subtracted from pixels in [0, 1]."""
        return tuple(self.preprocessing["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, divided by."""
        return tuple(self.preprocessing["std"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"format": FORMAT, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelCard:
        """The inverse of :meth:`to_dict`; cards of the first format are upgraded.

        Raises:
            ValueError: not a card.
        """
        values = dict(values)
        written = values.pop("format", None)
        if written == _OLD_FORMAT:
            values = _upgraded(values)
        elif written != FORMAT:
            raise ValueError(f'"format" is not "{FORMAT}"')
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown entries {sorted(unknown)}; written by a newer castling?")
        try:
            card = cls(**values)
        except TypeError as error:
            raise ValueError(str(error)) from error
        outputs = card.kwargs.get("num_classes", len(card.classes))
        if outputs != len(card.classes):
            raise ValueError(
                f'"classes" has {len(card.classes)} names, "num_classes" in "kwargs" is {outputs!r}'
            )
        return card


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_colours(colours: Any, classes: int) -> bool:
    return (
        isinstance(colours, list)
        and len(colours) == classes
        and all(isinstance(each, list) and len(each) == 3 for each in colours)
        and all(type(part) is int and 0 <= part <= 255 for each in colours for part in each)
    )


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Entries of the first format, which knew classification only, in the present one."""
    found = {key: values.pop(key) for key in _OLD_PREPROCESSING if key in values}
    defaults = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return values | {"preprocessing": defaults | found}


def read_card(path: Path) -> ModelCard:
    """The card in a file.

    Raises:
        ValueError: the file is not a card; the message names it.
    """
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        return ModelCard.from_dict(values)
    except ValueError as error:  # JSON and Unicode errors are ValueErrors too
        raise ValueError(f"{path} does not describe a castling model: {error}") from error


def write_card(path: Path, card: ModelCard) -> None:
    """Write ``card`` as JSON."""
    write_json(path, card.to_dict())


def describe_attention(attention: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """An attention with all options written out, as a card holds it."""
    return None if attention is None else config_to_dict(attention_config(attention))
