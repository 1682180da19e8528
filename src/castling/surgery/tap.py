"""``tap``: record what goes into every attention of a model and what comes out.

Notable:
- ours and the softmax attentions of every supported host, so that teacher and student are recorded
  in the same way;
- nothing is copied, and gradients flow through what is recorded unless ``detach=True``;
- a record can be replayed on one layer alone, with the grid its tokens had.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from castling.surgery.geometry import Geometry, Grid, GridUnknownError
from castling.surgery.grid_records import TokenGrid
from castling.surgery.grid_watch import watches
from castling.surgery.hosts import HostAttention, Place, adapter_on_request
from castling.surgery.plan import Plan
from castling.surgery.selection import Where, attention_layers, choose, owner_of, read_plan

Taps = dict[str, list["AttentionCall"]]


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One call of an attention.

    Attributes:
        args: its positional arguments; the first are the tokens, (B, N, C) or (B, C, h, w).
        kwargs: its keyword arguments (masks, grid, ``feat_size``, …).
        output: what it returned.
        grid: (h, w) of the tokens behind the prefix; None where nobody knows it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    grid: Grid | None

    def replay(self, layer: nn.Module) -> Any:
        """The output of ``layer`` for these arguments on this grid.

        Args:
            layer: the attention itself, its counterpart in another model, or what took its place.
        """
        with ExitStack() as stack:
            if self.grid is not None:
                stack.enter_context(token_grid(layer, self.grid))
            return layer(*self.args, **self.kwargs)


@contextmanager
def token_grid(module: nn.Module, grid: Grid) -> Iterator[None]:
    """Within the context, converted layers inside ``module`` take their tokens to lie on ``grid``.

    A layer or block called alone cannot know the grid: its host's patch embedding did not run. In
    the thread that enters the context, the blocks around the layers know it too, also when gradient
    checkpointing recomputes them later.

    Args:
        module: a converted attention, or a module that holds some.
        grid: (h, w) of the tokens in front of the first of them, without prefix tokens; layers
            behind a downsampling derive theirs from it.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, HostAttention)]
    places = [layer.place for layer in layers]
    first = min((place.level for place in places), default=0)
    given = Geometry(grid)
    for layer, place in zip(layers, places, strict=True):
        layer.place = dataclasses.replace(place, geometry=given, level=place.level - first)
    watched = [
        (watch, watch.geometry.give(watch, TokenGrid(*grid, first))) for watch in watches(module)
    ]
    try:
        yield
    finally:
        for watch, before in watched:
            watch.geometry.give(watch, before)
        for layer, place in zip(layers, places, strict=True):
            layer.place = place


@contextmanager
def tap(model: nn.Module, where: Where | None = None, *, detach: bool = False) -> Iterator[Taps]:
    """Record every call of the attentions of ``model`` made inside the context.

    Args:
        model: any model with attentions of ours or of a supported host; it may itself be one.
        where: which layers, as for :func:`castling.linearize_`; None for all.
        detach: cut the recorded tensors from the graph; else gradients flow through them.

    Yields:
        layer name -> its calls, both in order of execution. A layer that did not run is absent.

    Raises:
        ValueError: the model holds no attention, or ``where`` matches none.

    Example:
        >>> with castling.tap(teacher, detach=True) as taps:
        ...     teacher(images)
        >>> call = taps["blocks.0.attn"][0]
        >>> loss = (call.replay(student.blocks[0].attn) - call.output).square().mean()
    """
    layers = _chosen(model, where)
    taps: Taps = {}
    with ExitStack() as stack:
        places = stack.enter_context(_places(owner_of(model), layers))
        for name, layer in layers.items():
            record = _recorder(taps, name, places.get(name, Place()), detach)
            handle = layer.register_forward_hook(record, with_kwargs=True)
            stack.callback(handle.remove)
        yield taps


def _chosen(model: nn.Module, where: Where | None) -> dict[str, nn.Module]:
    where = read_plan(where)
    layers = attention_layers(model, where)
    if not layers:
        raise ValueError(f"{type(model).__name__} holds no attention that can be recorded")
    if isinstance(where, Plan):
        where = where.linear
    chosen = choose(layers, where)
    return {name: layer for name, layer in layers.items() if name in chosen}


@contextmanager
def _places(model: nn.Module, layers: dict[str, nn.Module]) -> Iterator[dict[str, Place]]:
    """Where the layers stand; hooks that tell the grid of a softmax host last for the context."""
    before = _geometries(model)
    places: dict[str, Place] = {}
    for adapter in dict.fromkeys(map(adapter_on_request, layers.values())):
        if adapter is not None:
            places.update(adapter.places(model))
    installed = {place.geometry for place in places.values()} - before - {None}
    try:
        yield places
    finally:
        # Layers converted inside the context keep the hooks they now depend on.
        for geometry in installed - _geometries(model):
            assert geometry is not None
            geometry.release()


def _geometries(model: nn.Module) -> set[Geometry | None]:
    """The geometries that converted layers of ``model`` rely on."""
    return {m.place.geometry for m in model.modules() if isinstance(m, HostAttention)}


def _recorder(taps: Taps, name: str, place: Place, detach: bool) -> Callable[..., None]:
    """The forward hook of one layer."""

    def kept(value: Any) -> Any:
        return value.detach() if detach and isinstance(value, Tensor) else value

    def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        grid = _call_grid(layer, place, args, kwargs)
        given, named, output = tree_map(kept, (args, kwargs, out))
        taps.setdefault(name, []).append(AttentionCall(given, named, output, grid))

    return record


def _call_grid(
    layer: nn.Module, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Grid | None:
    adapter = adapter_on_request(layer)
    if adapter is not None:
        place = layer.place if isinstance(layer, HostAttention) else place
        try:
            return adapter.call_grid(layer, place, args, kwargs)
        except GridUnknownError:
            return None
    given = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
    x = given["x"]
    return (x.shape[-2], x.shape[-1]) if x.dim() == 4 else given.get("grid")
