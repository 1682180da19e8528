"""``castling.plan``: which layers are faster with linear attention, on this device at this size.

Notable:
- each layer is timed inside the running model (``layer_timing``), softmax and linear in turns;
- the predicted time is checked against the model converted by the plan.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from castling.attention import Softmax, attention_config
from castling.ops.backends import available_backends
from castling.profiling.layer_timing import Stopwatch, TimedModel, run_in_turns
from castling.profiling.machine import machine_facts
from castling.surgery import convertible, linearize_
from castling.surgery.hosts import HostAttention
from castling.surgery.plan import Plan, PlannedLayer, Predicted, Verified
from castling.surgery.selection import Attention
from castling.surgery.self_description import architecture_of
from castling.utils.devices import read_device
from castling.utils.text import first_line
from castling.utils.timing import Clock, cpu_threads, time_alternately

#: Acceptable relative error of the predicted time.
WITHIN = 0.1


@torch.no_grad()
def plan(
    model: nn.Module,
    attention: Attention,
    *,
    image_size: tuple[int, int] | int = 224,
    batch: int = 1,
    name: str = "",
    device: str | torch.device = "cpu",
    threads: int | None = None,
    clock: Clock = "wall",
    rounds: int = 25,
    seconds: float = 20.0,
    verify: bool = True,
    stopwatch: Stopwatch | None = None,
) -> Plan:
    """Measure each attention layer with softmax and linear, and choose the faster.

    Args:
        model: a timm model that ``linearize_`` can convert; it is not changed. For layers that are
            converted already, softmax attention is put back for the measurement.
        attention: of the linear layers; an auxiliary branch is ignored, as it is for training only.
        image_size: (height, width) in pixels, or the side of a square.
        batch: images per call.
        name: of the model in the plan; empty takes timm's.
        device: where to measure.
        threads: CPU threads; None leaves PyTorch's number.
        clock: ``"wall"``, or ``"cpu"`` for one thread on a busy machine.
        rounds: maximum number of timed runs per model.
        seconds: time limit of the measurement, and of the verification; at least three rounds are
            made of each.
        verify: measure the planned model too.
        stopwatch: replaces the clock.

    Returns:
        The plan; ``save`` writes it, ``linearize_(model, attention, where=plan)`` applies it.

    Raises:
        ValueError: the model has no attention that can be replaced or does not run at this size, or
            a number is not positive.

    Example:
        >>> plan = castling.plan(model, castling.LinearAngular(), image_size=512)
        >>> castling.linearize_(model, castling.LinearAngular(), where=plan)
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if min(*size, batch, rounds) < 1:
        raise ValueError("image_size, batch and rounds must be positive")
    device = read_device(device)
    config = replace(attention_config(attention), auxiliary=None)
    with cpu_threads(threads):
        stopwatch = stopwatch or Stopwatch(device, clock)
        softmax = _softmax_twin(model).to(device)
        linear = _twin(softmax)
        linearize_(linear, config)
        images = torch.randn((batch, 3, *size), generator=torch.Generator().manual_seed(0))
        images = images.to(device)
        tokens = _tokens(linear, images)
        timed = {
            "softmax": TimedModel(softmax, stopwatch),
            "linear": TimedModel(linear, stopwatch),
        }
        run_in_turns(timed, images, rounds, seconds)
        facts = machine_facts(device)
        found = Plan(
            model=name or _name_of(model),
            attention=config,
            device=facts["device"],
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            backends=available_backends(device),
            image_size=(size[0], size[1]),
            batch=batch,
            layers=_layers(linear, timed, tokens),
            predicted=Predicted(1.0, 1.0, 1.0),
        )
        found = replace(found, predicted=_predict(found, timed["softmax"].total()))
        if not verify:
            return found
        planned = _twin(softmax)
        linearize_(planned, config, where=found)
        models = {"softmax": softmax, "linear": linear, "planned": planned}
        times = time_alternately(
            {key: _call(one, images) for key, one in models.items()},
            rounds=rounds,
            seconds=seconds,
            timer=stopwatch.timer,
        )
        measured = Verified(**{key: timing.milliseconds for key, timing in times.items()})
        return replace(found, verified=measured)


def _name_of(model: nn.Module) -> str:
    return architecture_of(model) or type(model).__name__


def _twin(model: nn.Module) -> nn.Module:
    """A copy with its own modules that shares the weights."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in model.parameters()}
    return copy.deepcopy(model, shared).eval()


def _softmax_twin(model: nn.Module) -> nn.Module:
    twin = _twin(model)
    converted = [n for n, m in convertible(twin).items() if isinstance(m, HostAttention)]
    if converted:  # this removes auxiliary branches and keeps score biases
        linearize_(twin, Softmax(), converted)
    return twin


def _call(model: nn.Module, images: Tensor) -> Callable[[], Any]:
    return lambda: model(images)


def _tokens(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Number of keys of each layer.

    Raises:
        ValueError: the model does not run on these images, or a layer does not run.
    """
    found: dict[str, int] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            found[name] = inputs[0].key.shape[1]

        return hook

    layers = convertible(model)
    handles = [
        layer.kernel.register_forward_pre_hook(note(name))  # type: ignore[union-attr]
        for name, layer in layers.items()
    ]
    height, width = images.shape[-2:]
    try:
        model(images)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"the model does not run at {height}×{width} pixels: {first_line(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in layers if name not in found]
    if missing:
        raise ValueError(f"{missing[0]} does not run in a forward pass: nothing to plan")
    return found


def _layers(
    linear: nn.Module, timed: Mapping[str, TimedModel], tokens: Mapping[str, int]
) -> tuple[PlannedLayer, ...]:
    found = []
    for name, layer in convertible(linear).items():
        assert isinstance(layer, HostAttention)
        before, after = timed["softmax"].layer(name), timed["linear"].layer(name)
        found.append(
            PlannedLayer(
                name=name,
                tokens=tokens[name],
                heads=layer.num_heads,
                head_dim=layer.head_dim,
                value_dim=layer.value_dim,
                softmax_ms=before,
                linear_ms=after,
                choice="linear" if after < before else "softmax",
            )
        )
    return tuple(found)


def _predict(plan: Plan, softmax: float) -> Predicted:
    """The time of the softmax model with the times of its attention layers replaced."""
    # Layers and whole model are medians of different runs: noise must not make the rest negative.
    rest = max(0.0, softmax - sum(layer.softmax_ms for layer in plan.layers))
    return Predicted(
        softmax=softmax,
        linear=rest + sum(layer.linear_ms for layer in plan.layers),
        planned=rest + sum(min(layer.softmax_ms, layer.linear_ms) for layer in plan.layers),
    )
