"""Which layers of a converted model stay softmax: a budget of time, or of agreement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from castling.surgery.plan import Plan, PlannedLayer

#: Places of the curve that are measured besides those that the search looks at.
_PLACES = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What a converted model may cost. Exactly one of the two limits is given.

    Attributes:
        plan: milliseconds of every layer, softmax and linear, measured by ``castling.plan`` with
            the attention that the conversion puts in.
        milliseconds: a call may take so long, as the plan predicts it; of all choices within, the
            one whose layer errors have the smallest sum.
        agreement: teacher and student agree on this part of the held-out images. Taken is the
            fastest measured choice that does; a bisection decides which are measured. For outputs
            without classes, the mean cosine. Measured before the end-to-end stage, which usually
            comes nearer.
    """

    plan: Plan
    milliseconds: float | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError on limits without a meaning."""
        check_limits(self.milliseconds, self.agreement)

    def candidates(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """Layers that are worth converting, and of the others why they are not.

        Raises:
            ValueError: none is, or the limit in milliseconds cannot be kept, or needs nothing.
        """
        left = {layer.name: reason for layer in self.plan.layers if (reason := _nothing_won(layer))}
        names = tuple(layer.name for layer in self.plan.layers if layer.name not in left)
        if not names:
            name, reason = next(iter(left.items()))
            raise ValueError(f"no layer is worth converting; {name}: {reason}")
        if self.milliseconds is not None:
            least = frontier(self.plan, dict.fromkeys(names, 0.0))[-1].milliseconds
            if least > self.milliseconds:
                raise ValueError(
                    f"{self.milliseconds:g} ms cannot be kept: with all {len(names)} layers that "
                    f"gain from it linear, the plan predicts {least:.2f} ms"
                )
            if self.plan.predicted.softmax <= self.milliseconds:
                raise ValueError(
                    f"the plan predicts {self.plan.predicted.softmax:.2f} ms for the model as it "
                    f"is, within {self.milliseconds:g} ms: there is nothing to convert"
                )
        return names, left


def check_limits(milliseconds: float | None, agreement: float | None, where: object = None) -> None:
    """Raise ValueError on limits of a budget without a meaning, or beside a choice of layers."""
    if where is not None:
        raise ValueError("a budget chooses the layers: leave where out")
    if (milliseconds is None) == (agreement is None):
        raise ValueError("a budget limits either milliseconds or agreement, one of them")
    if milliseconds is not None and not milliseconds > 0:
        raise ValueError(f"milliseconds must be positive, got {milliseconds}")
    if agreement is not None and not 0 < agreement <= 1:
        raise ValueError(f"agreement must lie in (0, 1], got {agreement:g}: 0.98 is 98 %")


@dataclasses.dataclass(frozen=True)
class MixedModel:
    """A choice of layers, and what it costs.

    Attributes:
        linear: names of the linear layers; the others stay as they are.
        milliseconds: of a call of the model, as the plan predicts it.
        layer_error: sum over the linear layers of their errors after the layer-by-layer stage.
        agreement: with the teacher on the held-out images, without further learning (cosine where
            there are no classes); None where it was not measured.
    """

    linear: tuple[str, ...]
    milliseconds: float
    layer_error: float
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return dataclasses.asdict(self)


def frontier(plan: Plan, errors: Mapping[str, float]) -> list[MixedModel]:
    """All choices of layers that no other beats in both time and error: slowest first.

    The knapsack problem over the layers in ``errors``, solved exactly by dynamic programming at a
    resolution of a microsecond: choices with the same time keep the one with the least error, and
    choices that are slower and worse than another are dropped after every layer, for whatever the
    remaining layers add is the same for both.

    Args:
        plan: with milliseconds of each layer.
        errors: name -> error that it costs to make this layer linear, not negative.
    """
    # Microseconds saved -> (error, layers); from no saving upwards.
    best: dict[int, tuple[float, tuple[str, ...]]] = {0: (0.0, ())}
    for layer in plan.layers:
        if layer.name not in errors:
            continue
        saved = _saved(layer)
        merged = dict(best)
        for other, (error, names) in best.items():
            found = (error + errors[layer.name], (*names, layer.name))
            if saved + other not in merged or found[0] < merged[saved + other][0]:
                merged[saved + other] = found
        best, least = {}, float("inf")
        for total in sorted(merged, reverse=True):
            if merged[total][0] < least:
                best[total] = merged[total]
                least = merged[total][0]
    return [
        MixedModel(names, plan.predicted.softmax - total / 1000, error)
        for total, (error, names) in sorted(best.items())
    ]


def choose(
    budget: Budget, errors: Mapping[str, float], agreement_of: Callable[[Sequence[str]], float]
) -> tuple[MixedModel, list[MixedModel]]:
    """The choice that keeps a budget, and the curve of those that were measured.

    Args:
        budget: the limit.
        errors: of every candidate after the layer-by-layer stage.
        agreement_of: measures a mixed model, given by the names of its linear layers.

    Returns:
        The chosen one, measured; measured ones, slowest first.

    Raises:
        ValueError: no choice agrees well enough.
    """
    choices = frontier(budget.plan, errors)
    measured: dict[int, MixedModel] = {}

    def at(place: int) -> MixedModel:
        if place not in measured:
            found = agreement_of(choices[place].linear)
            measured[place] = dataclasses.replace(choices[place], agreement=found)
        return measured[place]

    last = len(choices) - 1
    for step in range(_PLACES):
        at(round(last * step / (_PLACES - 1)))
    if budget.milliseconds is not None:
        within = [i for i, one in enumerate(choices) if one.milliseconds <= budget.milliseconds]
        place = within[0]
    else:
        assert budget.agreement is not None
        wanted = budget.agreement
        _bisect(last, lambda i: (at(i).agreement or 0.0) >= wanted)
        place = max(i for i, one in measured.items() if (one.agreement or 0.0) >= wanted or not i)
    chosen = at(place)
    curve = [measured[i] for i in sorted(measured)]
    if not chosen.linear:
        first = at(1)
        raise ValueError(
            f"no layer can become linear at {100 * (budget.agreement or 0):g} % agreement: with "
            f"{', '.join(first.linear)} alone it is {100 * (first.agreement or 0):.1f} %. Ask for "
            "less, which goes on from a state, or begin anew with more layer_views"
        )
    return chosen, curve


def _bisect(last: int, good: Callable[[int], bool]) -> None:
    """Measure where agreement falls below a limit, if it falls from place to place."""
    low, high = 0, last + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)


def _saved(layer: PlannedLayer) -> int:
    """Microseconds that a linear layer saves."""
    return round(1000 * (layer.softmax_ms - layer.linear_ms))


def _nothing_won(layer: PlannedLayer) -> str:
    """Why a layer stays softmax; empty where it may become linear."""
    if layer.tokens <= 2 * layer.head_dim:
        return (
            f"{layer.tokens} tokens are at most twice the {layer.head_dim} dimensions of a head: "
            "linear attention gains nothing"
        )
    if _saved(layer) <= 0:
        return (
            f"linear attention takes {layer.linear_ms:.3f} ms where it was measured, softmax "
            f"{layer.softmax_ms:.3f} ms"
        )
    return ""
