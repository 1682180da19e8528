"""A plan: which attention layers of a model to make linear, as measured on one device.

``castling.plan`` measures and makes one; ``linearize_(model, attention, where=plan)`` applies it.
The file is small JSON; nothing in it is executed or used as a pattern.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from castling.attention import AttentionConfig, config_to_dict
from castling.surgery.hosts.reading import heads_of
from castling.surgery.plan_values import (
    Choice,
    PlanError,
    attention_of,
    build,
    entries,
    size_of,
    text,
)
from castling.utils.files import parse_json, write_json

SCHEMA = "castling plan 1"
#: A plan of a thousand layers is smaller.
_MAX_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class PlannedLayer:
    """One attention layer.

    Attributes:
        name: of the module in the model.
        tokens: number of its keys at the plan's image size.
        heads: H.
        head_dim: d.
        value_dim: d_v.
        softmax_ms: median milliseconds of the whole layer, projections included, with softmax.
        linear_ms: the same with the linear attention.
        choice: the faster one.
    """

    name: str
    tokens: int
    heads: int
    head_dim: int
    value_dim: int
    softmax_ms: float
    linear_ms: float
    choice: Choice


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Milliseconds of a call of the whole model.

    Attributes:
        softmax: all layers with softmax, as measured.
        linear: all layers linear: ``softmax`` with the time of every layer replaced.
        planned: the chosen layers linear, likewise.
    """

    softmax: float
    linear: float
    planned: float


@dataclasses.dataclass(frozen=True)
class Verified:
    """Milliseconds of a call of the whole model, measured after planning, in turns.

    Attributes:
        softmax: all layers with softmax.
        linear: all layers linear.
        planned: the model converted by the plan.
    """

    softmax: float
    linear: float
    planned: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was measured, and which layers to make linear because of it.

    Attributes:
        model: name of the model.
        attention: of the linear layers, without auxiliary branch.
        device: that measured it.
        threads: CPU threads.
        torch: version.
        backends: of attention that were available, the one used first.
        image_size: (height, width) in pixels.
        batch: images a call.
        layers: in order of execution.
        predicted: of the whole model.
        verified: the same, measured; None where that was not done.
    """

    model: str
    attention: AttentionConfig
    device: str
    threads: int
    torch: str
    backends: tuple[str, ...]
    image_size: tuple[int, int]
    batch: int
    layers: tuple[PlannedLayer, ...]
    predicted: Predicted
    verified: Verified | None = None

    @property
    def linear(self) -> tuple[str, ...]:
        """Names of the layers to make linear."""
        return tuple(layer.name for layer in self.layers if layer.choice == "linear")

    @property
    def error(self) -> float | None:
        """(predicted − measured) / measured of the planned model; None where not verified."""
        if self.verified is None:
            return None
        return self.predicted.planned / self.verified.planned - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        return {"schema": SCHEMA, **values, "attention": config_to_dict(self.attention)}

    @classmethod
    def from_dict(cls, values: object) -> Plan:
        """The inverse of :meth:`to_dict`.

        Raises:
            PlanError: not a plan of this schema; the message says what is wrong with it.
        """
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, dict) else type(values).__name__
            raise PlanError(f'"schema" is not "{SCHEMA}" but {found!r:.60}: measure a new plan')
        values = {key: value for key, value in values.items() if key != "schema"}
        if "paths" in values:  # the name of earlier versions
            values["backends"] = values.pop("paths")
        layers = entries(values.get("layers"), "layers")
        plan = build(
            cls,
            values,
            "the plan",
            attention=attention_of(values.get("attention")),
            backends=tuple(
                text(one, "backends") for one in entries(values.get("backends"), "backends")
            ),
            image_size=size_of(values.get("image_size")),
            layers=tuple(build(PlannedLayer, layer, "a layer") for layer in layers),
            predicted=build(Predicted, values.get("predicted"), "predicted"),
            verified=None
            if values.get("verified") is None
            else build(Verified, values["verified"], "verified"),
        )
        names = [layer.name for layer in plan.layers]
        if not names or len(set(names)) < len(names):
            raise PlanError("layers must be named, each once")
        return plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all."""
        write_json(path, self.to_dict())

    def require_fits(self, layers: Mapping[str, nn.Module], attention: AttentionConfig) -> None:
        """Raise PlanError unless the plan was made for these layers and this attention.

        Args:
            layers: the attentions of a model, by name.
            attention: to be put in; its auxiliary branch, cast away for use, does not matter.
        """
        planned = {layer.name: layer for layer in self.layers}
        missing = [name for name in planned if name not in layers]
        unknown = [name for name in layers if name not in planned]
        if missing or unknown:
            said = [f"it plans {missing[0]}, which this model does not have"] if missing else []
            said += [f"it does not mention {unknown[0]}"] if unknown else []
            raise PlanError(
                f"the plan is of another model ({self.model}, {len(planned)} layers): "
                f"{'; '.join(said)}. Measure this model with castling plan"
            )
        for name, layer in planned.items():
            heads = heads_of(layers[name])
            if heads != layer.heads:
                raise PlanError(
                    f"the plan is of another model ({self.model}): {name} has {heads} heads here "
                    f"and {layer.heads} in the plan. Measure this model with castling plan"
                )
        wanted = dataclasses.replace(attention, auxiliary=None)
        if wanted != self.attention:
            raise PlanError(
                f"the plan was measured for {self.attention}, not for {wanted}: measure again, or "
                "pass the names that it chose (plan.linear)"
            )

    def __str__(self) -> str:
        side = "×".join(map(str, self.image_size))
        lines = [
            f"{self.model}, {side} pixels, batch {self.batch}, {self.device}, "
            f"{self.threads} threads, torch {self.torch}, {self.backends[0]} backend",
            f"{'layer':32}{'tokens':>8}{'heads':>7}{'softmax ms':>12}{'linear ms':>11}  choice",
        ]
        lines += [
            f"{layer.name:32}{layer.tokens:8}{layer.heads:7}{layer.softmax_ms:12.3f}"
            f"{layer.linear_ms:11.3f}  {layer.choice}"
            for layer in self.layers
        ]
        lines.append(f"{'whole model, ms':32}{'all softmax':>14}{'all linear':>13}{'planned':>11}")
        rows = [("predicted", self.predicted), ("measured", self.verified)]
        lines += [
            f"{name:32}{row.softmax:14.2f}{row.linear:13.2f}{row.planned:11.2f}"
            for name, row in rows
            if row is not None
        ]
        if self.error is not None:
            lines.append(f"the prediction is off by {100 * self.error:+.1f} %")
        return "\n".join(lines)


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan's file.

    Raises:
        FileNotFoundError: no such file.
        PlanError: it is no plan.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such plan: {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise PlanError(f"{path} is no plan: {path.stat().st_size} bytes are too many")
    try:
        return Plan.from_dict(parse_json(path.read_text(encoding="utf-8")))
    except ValueError as error:  # JSON and Unicode errors are ValueErrors too
        raise PlanError(f"{path} is no plan: {error}") from error
