"""Where a conversion stands, in one file: the same call goes on from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from castling.conversion.budget import MixedModel
from castling.conversion.report import ConversionReport, StageFigures
from castling.utils.files import replacing
from castling.utils.text import first_line

SCHEMA = "castling conversion 1"
#: Seconds between two writings of the file while a stage learns.
EVERY = 60.0


def fingerprint(model: nn.Module) -> str:
    """Digest of names and values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(plain.numpy().tobytes())
    return digest.hexdigest()


@dataclasses.dataclass
class Standing:
    """How far a conversion has come.

    Attributes:
        stage: that is being learned; empty between stages.
        views: that this stage has seen.
        seconds: that it has taken.
        batches: that all stages have seen.
        student: its values.
        optimizer: of the stage; None between stages.
    """

    stage: str
    views: int
    seconds: float
    batches: int
    student: dict[str, Any]
    optimizer: dict[str, Any] | None


class StateFile:
    """The file; without a path nothing is written and nothing found.

    Args:
        path: of the file.
        arguments: of the conversion, as plain values; a file of others is refused.
        limits: of the budget; they count once a choice has been made by them.
        seen: tensors that tell images and outputs apart; those of the file must be close.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        arguments: dict[str, Any],
        limits: list[float | None],
        seen: dict[str, list[Tensor]],
    ) -> None:
        self.path = None if path is None else Path(path)
        self.arguments, self.limits = arguments, limits
        self.seen = {name: [each.cpu() for each in found] for name, found in seen.items()}
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write again."""
        return self.path is not None and time.monotonic() - self._written >= EVERY

    def write(self, standing: Standing, report: ConversionReport) -> None:
        """Replace the file."""
        if self.path is None:
            return
        plain = {
            "arguments": self.arguments,
            "limits": self.limits,
            "stages": [dataclasses.asdict(stage) for stage in report.stages],
            "not_fitted": report.not_fitted,
            "chosen": None if report.chosen is None else report.chosen.to_dict(),
            "curve": [one.to_dict() for one in report.curve],
        }
        # As JSON, since numbers of the command line are of classes that a safe reader refuses.
        values = {"schema": SCHEMA, "plain": json.dumps(plain), "standing": vars(standing)}
        values["seen"] = self.seen
        with replacing(self.path) as temporary:
            torch.save(values, temporary)
        self._written = time.monotonic()

    def read(self, report: ConversionReport) -> Standing | None:
        """Take up what an interrupted conversion has measured; None where there is no file.

        Raises:
            ValueError: the file is damaged, or of a conversion with other arguments.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            values = torch.load(self.path, map_location="cpu", weights_only=True)
            schema = values["schema"]
            if schema == SCHEMA:
                plain, seen = json.loads(values["plain"]), values["seen"]
                stages = [StageFigures(**stage) for stage in plain["stages"]]
                curve = [_mixed(one) for one in plain["curve"]]
                chosen = None if plain["chosen"] is None else _mixed(plain["chosen"])
                standing = Standing(**values["standing"])
        except Exception as error:  # damaged files raise anything
            raise ValueError(
                f"{self.path} is no state of a conversion ({first_line(error)}): delete it, or "
                "give another name"
            ) from error
        if schema != SCHEMA:
            raise ValueError(
                f"{self.path} was written by another version of castling ({schema}): finish with "
                "that one, or delete the file to begin anew"
            )
        wanted = json.loads(json.dumps(self.arguments))
        other = [key for key in wanted if plain["arguments"].get(key) != wanted[key]]
        other += [key for key in plain["arguments"] if key not in wanted]
        other += [name for name, found in self.seen.items() if not _close(found, seen.get(name))]
        if chosen is not None and plain["limits"] != self.limits:
            other.append("limits of the budget")
        if other:
            raise ValueError(
                f"{self.path} is the state of a conversion with other arguments "
                f"({', '.join(other)}): use the original arguments, or delete the file to begin "
                "anew"
            )
        report.stages[:], report.not_fitted = stages, plain["not_fitted"]
        report.curve, report.chosen = curve, chosen
        return standing


def _close(found: list[Tensor], before: list[Tensor] | None) -> bool:
    """Whether tensors are the same but for rounding."""
    return (
        before is not None
        and [f.shape for f in found] == [b.shape for b in before]
        and all(
            torch.allclose(one, other, rtol=1e-3, atol=1e-3)
            for one, other in zip(found, before, strict=True)
        )
    )


def _mixed(values: dict[str, Any]) -> MixedModel:
    return MixedModel(**values | {"linear": tuple(values["linear"])})
