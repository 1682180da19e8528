"""What a conversion measured after each of its stages."""

from __future__ import annotations

import dataclasses
from typing import Any

from castling.conversion.budget import MixedModel
from castling.surgery.linearize_report import LinearizeReport
from castling.surgery.switch_report import SwitchReport


@dataclasses.dataclass(frozen=True)
class StageFigures:
    """A student beside its teacher, on the held-out images.

    Attributes:
        stage: ``replaced``, ``closed form``, ``layer by layer`` or ``end to end``.
        views: images that the stage learned from.
        seconds: that it took.
        layer_errors: layer -> mean squared error of its output on the teacher's input, in parts of
            the variance of the teacher's output.
        output_error: of the model's output, in parts of the norm of the teacher's; the mean over
            images.
        agreement: part of the images on which teacher and student choose the same class; None
            without classes.
        cosine: mean cosine of the outputs of teacher and student.
    """

    stage: str
    views: int
    seconds: float
    layer_errors: dict[str, float]
    output_error: float
    agreement: float | None
    cosine: float

    @property
    def mean_layer_error(self) -> float:
        """Over layers."""
        return sum(self.layer_errors.values()) / len(self.layer_errors)


@dataclasses.dataclass
class ConversionReport:
    """What was converted, and how near the student came after each stage.

    Attributes:
        replaced: what :func:`castling.linearize_` did.
        images: held-out images that the figures are of.
        stages: in the order they ran.
        not_fitted: layers that stage 0 left, and why.
        switch: the certificate; None where there was no auxiliary branch.
        chosen: which layers a budget made linear; None without a budget.
        curve: choices that were measured for the budget, slowest first.
        kept: layers that gain nothing and were no candidates of a budget, and why.
    """

    replaced: LinearizeReport
    images: int
    stages: list[StageFigures] = dataclasses.field(default_factory=list)
    not_fitted: dict[str, str] = dataclasses.field(default_factory=dict)
    switch: SwitchReport | None = None
    chosen: MixedModel | None = None
    curve: list[MixedModel] = dataclasses.field(default_factory=list)
    kept: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "replaced": self.replaced.replaced,
            "left": self.replaced.left,
            "images": self.images,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "not_fitted": self.not_fitted,
            "switch": None if self.switch is None else self.switch.to_dict(),
            "chosen": None if self.chosen is None else self.chosen.to_dict(),
            "curve": [one.to_dict() for one in self.curve],
            "kept": self.kept,
        }

    def __str__(self) -> str:
        """A table of the stages."""
        lines = [
            str(self.replaced),
            f"on {self.images} held-out images:",
            f"{'stage':<16}{'views':>9}{'seconds':>9}{'layer error':>13}{'output error':>14}"
            f"{'agreement':>11}",
        ]
        for stage in self.stages:
            agreement = "–" if stage.agreement is None else f"{100 * stage.agreement:.1f} %"
            lines.append(
                f"{stage.stage:<16}{stage.views:>9,}{stage.seconds:>9.0f}"
                f"{stage.mean_layer_error:>13.3f}{stage.output_error:>14.3f}{agreement:>11}"
            )
        if self.not_fitted:
            lines.append(f"not solved in closed form: {', '.join(self.not_fitted)}")
        if self.switch is not None:
            lines.append(str(self.switch))
        lines += self._of_budget()
        return "\n".join(lines)

    def _of_budget(self) -> list[str]:
        """The curve of a budget, the chosen row marked."""
        if self.chosen is None:
            return []
        lines = [f"{'linear layers':>13}{'ms':>9}{'sum of layer errors':>21}{'agreement':>11}"]
        for one in self.curve:
            mark = "  chosen" if one.linear == self.chosen.linear else ""
            lines.append(
                f"{len(one.linear):>13}{one.milliseconds:>9.2f}{one.layer_error:>21.3f}"
                f"{100 * (one.agreement or 0):>9.1f} %{mark}"
            )
        lines += [f"{name} stays as it is: {reason}" for name, reason in self.kept.items()]
        return lines
