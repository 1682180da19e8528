"""``result.json``: the outcome of a training run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

RESULT = "result.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The outcome of a training run.

    Attributes:
        run_dir: the run's folder.
        metrics: of the trained model, e.g. ``{"val_top1": 91.2, "test_top1": 90.8, …}``;
            accuracies in percent.
        switched_metrics: the same after the auxiliary branches were cast away; empty for a model
            without branches, or when the switch was refused.
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
    """

    run_dir: str
    metrics: dict[str, float]
    switched_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Accuracy and loss of each split before and after the switch, and how that went."""
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
        return "\n".join(lines)

    def _figures(self, what: str, metrics: dict[str, float]) -> list[str]:
        lines = []
        for split in ("val", "test"):
            if f"{split}_top1" not in metrics or (self.images and split not in self.images):
                continue
            values = [f"top-1 {metrics[f'{split}_top1']:.2f} %"]
            if not 0 < self.classes < 6:  # trivially high with few classes
                values.append(f"top-5 {metrics[f'{split}_top5']:.2f} %")
            values.append(f"loss {metrics[f'{split}_loss']:.4f}")
            count = f" ({self.images[split]} images)" if self.images else ""
            lines.append(f"{what}, {split}: {', '.join(values)}{count}")
        return lines


def read_result(run_dir: Path) -> TrainResult | None:
    """The result of a finished run, or None for one that is not finished."""
    path = run_dir / RESULT
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    # a run's folder may have been moved since
    values["run_dir"] = str(run_dir)
    values["model_dir"] = str(run_dir)
    if values["switched_dir"]:
        values["switched_dir"] = str(run_dir / Path(values["switched_dir"]).name)
    return TrainResult(**values)
