"""What a run says about its data: source, splits, transforms and loaders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, OpenUnitInterval, PositiveInt

from castling.data.registry import SourceConfig, source_to_dict
from castling.data.sources import source_from
from castling.data.sources.digits import DigitsConfig
from castling.data.transforms.base import TransformConfig
from castling.data.transforms.classification import ClassificationTransformConfig
from castling.utils.checks import check_fields, check_known, config_from_dict


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which images train, validate and test.

    Attributes:
        val_fraction: share of the training images held out for validation where the source has
            none; None is 0.1, except that a source with a test split then validates on it.
        test_fraction: the same for the test split; None is 0.1 (0.2 for the digits), except that
            a source with a validation split then tests on it.
        by: what decides which images are held out, where they are files: their ``content``, so that
            a file added, removed or renamed moves no other, and copies of one file fall into one
            split (every file is read once before training); their ``path``, which reads nothing
            and knows no copies; or their ``position`` in the sorted list, as earlier versions did.
            Other sources are always divided by position.
        seed: chooses the images of held-out shares and subsets.
        subset: train on this many images only, spread evenly over the classes; None for all.
        val_subset: the same for validation.
    """

    val_fraction: OpenUnitInterval | None = None
    test_fraction: OpenUnitInterval | None = None
    by: Literal["content", "path", "position"] = "content"
    seed: int = 0
    subset: PositiveInt | None = None
    val_subset: PositiveInt | None = None

    def __post_init__(self) -> None:
        check_fields(self, "data.split")
        if (self.val_fraction or 0.0) + (self.test_fraction or 0.0) >= 1:
            raise ValueError(
                f"data.split.val_fraction is {self.val_fraction} and test_fraction "
                f"{self.test_fraction}: together they leave nothing to train on; lower one"
            )


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How images are read and batched.

    Attributes:
        batch_size: training images per batch and process.
        sampler: ``shuffle`` sees every training image once an epoch; ``balanced`` draws as many
            images, equally many of every class, those of small classes several times.
        eval_batch_size: the same for validation and test; None is ``batch_size``.
        last_batch: what becomes of the training images that do not fill a batch at the end of an
            epoch (others in every epoch): ``drop`` leaves them out, ``fill`` completes the batch
            with images of the epoch's beginning, ``auto`` fills where more than a tenth of the
            images would be left out.
        group_by_aspect: make training batches of images of similar aspect ratio, so that little
            padding is needed where images keep theirs.
        workers: data-loading processes; 0 loads in the training process.
        verify: what is checked before training: that every file's ``headers`` can be read, that
            every image decodes (``full``), or ``none``.
        cache: keep decoded images in ``memory``, ``none``, or ``auto``: when they fit the limit.
        cache_limit_megabytes: limit of ``auto``, in 10⁶ bytes, for all splits together.
    """

    batch_size: PositiveInt = 128
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    eval_batch_size: PositiveInt | None = None
    last_batch: Literal["auto", "drop", "fill"] = "auto"
    group_by_aspect: bool = False
    workers: NonNegativeInt = 0
    verify: Literal["headers", "full", "none"] = "headers"
    cache: Literal["auto", "memory", "none"] = "auto"
    cache_limit_megabytes: NonNegativeInt = 512

    def __post_init__(self) -> None:
        check_fields(self, "data.loader")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, which of them for what, how changed, and in which batches.

    Attributes:
        source: where images come from.
        split: which of them train, validate and test.
        transform: from samples to batches; the class that the task asks for.
        loader: batches, processes, checks and memory.
    """

    source: SourceConfig = field(default_factory=DigitsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    transform: TransformConfig = field(default_factory=ClassificationTransformConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)

    def __post_init__(self) -> None:
        check_fields(self, "data")


def data_config_from_dict(
    values: Mapping[str, Any],
    transform_class: type[TransformConfig] = ClassificationTransformConfig,
) -> DataConfig:
    """A data section from plain values.

    Args:
        values: ``source`` (a shorthand such as ``"digits"``, or a mapping with ``name``),
            ``split``, ``transform`` and ``loader``; what is left out keeps its default.
        transform_class: the transform options of the task.

    Raises:
        ValueError: a name is unknown, or a value does not fit.
    """
    check_known(values, dict.fromkeys(each.name for each in dataclasses.fields(DataConfig)), "data")
    sections: dict[str, type] = {
        "split": SplitConfig,
        "transform": transform_class,
        "loader": LoaderConfig,
    }
    found: dict[str, Any] = {
        name: value
        if dataclasses.is_dataclass(value)
        else config_from_dict(section, value, f"data.{name}")
        for name, section in sections.items()
        for value in [values.get(name) or {}]
    }
    if "source" in values:
        found["source"] = source_from(values["source"])
    return DataConfig(**found)


def data_config_to_dict(config: DataConfig) -> dict[str, Any]:
    """``config`` as plain values for YAML or JSON; undone by :func:`data_config_from_dict`."""
    return {
        "source": source_to_dict(config.source),
        **{
            name: _plain(dataclasses.asdict(getattr(config, name)))
            for name in ("split", "transform", "loader")
        },
    }


def _plain(value: Any) -> Any:
    """Tuples as lists: YAML has no tuples."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
