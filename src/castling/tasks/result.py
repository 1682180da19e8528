"""``result.json``: the outcome of a training run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from castling.utils.checks import check_fields, config_from_dict
from castling.utils.files import parse_json

RESULT = "result.json"
#: Metrics in percent of runs that do not name theirs: written before there were other tasks.
_OLD_PERCENTAGES = ("top1", "top5")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The outcome of a training run.

    Attributes:
        run_dir: the run's folder.
        metrics: of the trained model, e.g. ``{"val_top1": 91.2, "test_top1": 90.8, …}``.
        headline: the metric that sums the run up, such as ``"top1"``.
        percentages: metrics in percent.
        switched_metrics: the same after the auxiliary branches were cast away; empty for a model
            without branches, or when the switch was refused.
        images_per_second: of the last evaluation of the trained model, loading and the metric
            included; 0 in results of earlier versions.
        switched_images_per_second: the same after the switch; 0 where there was none.
        switch_refused: why the switch was refused; empty otherwise.
        switch: the certificate of the switch, granted or not.
        parameters: number of parameters of the trained model.
        steps: optimiser steps.
        seconds: training time, evaluation of each epoch included, interruptions not.
        model_dir: folder of the trained model, for ``castling.models.saved.open_model``.
        switched_dir: folder of the switched model; empty where there is none.
        classes: number of classes.
        images: number of images of each split; without "test" where test is val.
        already_finished: nothing was trained, because the run was finished before.
        use: which weights the model has: those of the "last" step or of the "best" evaluation.
        best: the best evaluation of the validation images at which the switch was possible:
            ``metric``, ``value``, ``step``, ``epoch``; empty where there was none.
        other_dir: folder of the model that ``use`` did not choose, ``best`` or ``last`` in the
            run's; empty where both are the same.
        stopped_early: why training ended before its last epoch; empty otherwise.
        split: digest of the ``split.json`` that it was trained with; empty in runs of earlier
            versions.
    """

    run_dir: str
    metrics: dict[str, float]
    headline: str = "top1"
    percentages: tuple[str, ...] = _OLD_PERCENTAGES
    switched_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    images_per_second: float = dataclasses.field(default=0.0, compare=False)
    switched_images_per_second: float = dataclasses.field(default=0.0, compare=False)
    switch_refused: str = ""
    switch: dict[str, Any] = dataclasses.field(default_factory=dict)
    parameters: int = 0
    steps: int = 0
    seconds: float = 0.0
    model_dir: str = ""
    switched_dir: str = ""
    classes: int = 0
    images: dict[str, int] = dataclasses.field(default_factory=dict)
    already_finished: bool = False
    use: str = "last"
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    other_dir: str = ""
    stopped_early: str = ""
    split: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Metrics of each split before and after the switch, and how that went."""
        lines = self._figures("trained", self.metrics)
        if self.switched_metrics:
            lines += self._figures("switched", self.switched_metrics)
            certificate = self.switch
            kind = "exact" if certificate["exact"] else "within tolerance"
            kind = "forced" if certificate["forced"] else kind
            lines.append(
                f"switched: {kind}, max gap {certificate['max_gap']:.2g} "
                f"on {certificate['images']} images"
            )
        if self.switch_refused:
            lines.append(f"not switched: {self.switch_refused}")
        if self.stopped_early:
            lines.append(self.stopped_early)
        if self.other_dir:
            lines.append(self._other())
        return "\n".join(lines)

    def text_of(self, name: str, value: float | None) -> str:
        """The value of one of this run's metrics with its unit; a dash for None."""
        return "–" if value is None else metric_text(value, name in self.percentages)

    @property
    def best_since(self) -> str:
        """From when on evaluations count for ``best``; empty where all do."""
        return " after the auxiliary branch ended" if self.best and self.switch else ""

    def describe_best(self) -> str:
        """The best evaluation in words: ``epoch 7, validation top-1 91.20 %``; it must be known."""
        name = self.best["metric"]
        figure = describe_metric(name, self.best["value"], name in self.percentages)
        return f"epoch {self.best['epoch']}, validation {figure}"

    def _other(self) -> str:
        best = f"best weights{self.best_since}, of {self.describe_best()}"
        if self.use == "best":
            return f"these are the {best}; those of the last step: {self.other_dir}"
        return f"{best}: {self.other_dir} (--save.use best makes them the model)"

    def _figures(self, what: str, metrics: Mapping[str, float]) -> list[str]:
        lines = []
        for split in ("val", "test"):
            own = {
                name.removeprefix(f"{split}_"): value
                for name, value in metrics.items()
                if name.startswith(f"{split}_")
            }
            if not own or (self.images and split not in self.images):
                continue
            count = f" ({self.images[split]} images)" if self.images else ""
            lines.append(f"{what}, {split}: {describe_metrics(own, self.percentages)}{count}")
        return lines


def describe_metrics(metrics: Mapping[str, float], percentages: Iterable[str]) -> str:
    """Metrics in one line, those in percent first: ``top-1 91.20 %, loss 0.3123``."""
    percentages = tuple(percentages)
    ordered = sorted(metrics, key=lambda name: name not in percentages)
    return ", ".join(describe_metric(name, metrics[name], name in percentages) for name in ordered)


def describe_metric(name: str, value: float, percent: bool) -> str:
    """One metric with its name: ``top-1 91.20 %``."""
    return f"{metric_label(name)} {metric_text(value, percent)}"


def metric_text(value: float, percent: bool) -> str:
    """The value of a metric: ``91.20 %``, or ``0.3123`` for one that is no percentage."""
    return f"{value:.2f} %" if percent else f"{value:.4f}"


def metric_label(name: str) -> str:
    """A metric's name as people write it: ``top1`` is top-1, ``mask_AP50`` mask AP50."""
    return re.sub(r"^top(\d+)$", r"top-\1", name.replace("_", " "))


def read_result(run_dir: Path) -> TrainResult | None:
    """The result of a finished run, or None for one that is not finished.

    Raises:
        ValueError: the file is empty, half or something else; the message says what to do.
    """
    path = run_dir / RESULT
    if not path.is_file():
        return None
    try:
        return _result_from(parse_json(path.read_text(encoding="utf-8")), run_dir)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole result ({error}): the training command writes it again from "
            "the run's checkpoint; delete the folder to start anew"
        ) from error


def _result_from(values: Any, run_dir: Path) -> TrainResult:
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    # a run's folder may have been moved since
    values = values | {"run_dir": str(run_dir), "model_dir": str(run_dir)}
    for folder in ("switched_dir", "other_dir"):
        if values.get(folder):
            values[folder] = str(run_dir / Path(values[folder]).name)
    values["percentages"] = tuple(values.get("percentages", _OLD_PERCENTAGES))
    result: TrainResult = config_from_dict(TrainResult, values)
    check_fields(result)
    for name, value in (*result.metrics.items(), *result.switched_metrics.items()):
        if not isinstance(value, (int, float)):
            raise ValueError(f"{name} is {value!r}; it must be a number")
    return result
