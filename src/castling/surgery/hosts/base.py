"""What a converted host attention is.

An adapter is an ``AttentionCore`` that takes over the children of the host's attention module,
names and weights unchanged, and calls ``attend`` where the host computed its softmax. This file
knows no library of models. A new family is one file beside it, imported by the package, with a
subclass of :class:`HostAttention` decorated by :func:`register_host` that

1. reads heads, widths and the scale of the scores off the host in ``__init__``, and moves the
   host's children with :meth:`HostAttention.take`;
2. says in :meth:`HostAttention.places` where the attentions of a model stand, and where the host
   does not hand its grid over, hooks a ``Geometry`` up (``shared_geometry``, ``watch_tokens``);
3. keeps the host's ``forward`` signature: project, call ``attend``, project back;
4. overrides :meth:`HostAttention.call_grid` where the grid is among the arguments of the call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from castling.attention import AttentionConfig, AttentionCore, SoftmaxKernel
from castling.surgery.geometry import Geometry, Grid
from castling.surgery.grid_watch import tokens_among


@dataclasses.dataclass
class Place:
    """Where in its host an attention stands.

    Attributes:
        geometry: the host's grid, or None where the host hands it over by itself.
        level: downsamplings between the host's patch embedding and this attention's keys.
        num_prefix_tokens: class, distillation and register tokens in front of the grid.
        no_grid: why the grid is not known here; empty where it is.
        positions: (B, V) places on the grid of the tokens that are there; None: all are. Set by
            :func:`castling.surgery.visible_tokens`.
    """

    geometry: Geometry | None = None
    level: int = 0
    num_prefix_tokens: int = 0
    no_grid: str = ""
    positions: Tensor | None = None

    def grid_of(self, tokens: Tensor) -> Grid | None:
        """(h, w) of the keys among ``tokens`` (B, N, C); None where the host has no geometry.

        Raises:
            GridUnknownError: the geometry cannot tell which image the tokens are of.
        """
        return None if self.geometry is None else self.geometry.grid_of(tokens, self)


class HostAttention(AttentionCore):
    """Base of all adapters.

    A subclass is built as ``adapter(host, config, place)`` from the module to replace, whose
    children are moved, not copied. The host may be a ``HostAttention`` of the same family: an
    already converted layer is converted again.

    Args:
        config: the new attention.
        place: where the module stands.
        num_heads: H.
        head_dim: d.
        value_dim: d_v; None means d.
        scale: factor of the host's scores ⟨q, k⟩, for softmax kernels and auxiliary branches.
    """

    #: Parameters and buffers that only score biases use; cast away with the auxiliary branch.
    bias_names: ClassVar[tuple[str, ...]] = ()
    #: Whether its ``forward`` hands ``place.positions`` on.
    takes_positions: ClassVar[bool] = False

    def __init__(
        self,
        config: AttentionConfig,
        place: Place,
        *,
        num_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        scale: float,
    ) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        self.place = place
        self.scale = scale
        if isinstance(self.kernel, SoftmaxKernel):
            self.kernel.scale = scale
        if self.auxiliary is not None:
            self.auxiliary.scale = scale

    @classmethod
    def places(cls, model: nn.Module) -> dict[str, Place]:
        """The place of every attention of this family in ``model``, by module name.

        Called before any layer is replaced; installs the hooks it needs, once per host.
        """
        raise NotImplementedError

    @classmethod
    def call_grid(
        cls, module: nn.Module, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Grid | None:
        """The grid (h, w) of the tokens that one call of an attention of this family receives.

        Args:
            module: the host's attention, or its adapter.
            place: where it stands.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.

        Raises:
            GridUnknownError: nobody knows it.
        """
        return place.grid_of(tokens_among(args, kwargs))

    @property
    def uses_grid(self) -> bool:
        """Whether some part of this attention depends on the grid."""
        return self.kernel.needs_grid or self.config.local == "grid2d"

    def known_grid(self, tokens: Tensor) -> Grid | None:
        """(h, w) of this layer's keys; None where it has no use for it or no host to ask.

        Raises:
            GridUnknownError: as :meth:`Place.grid_of`.
        """
        return self.place.grid_of(tokens) if self.uses_grid else None

    @property
    def wants_bias(self) -> bool:
        """Whether a score bias would be used at all at this moment."""
        return self.kernel.takes_bias or (self.auxiliary is not None and not self.auxiliary.empty)

    def take(self, host: nn.Module, *names: str) -> None:
        """Move children, parameters, buffers or plain attributes of ``host`` here, names kept.

        Raises:
            AttributeError: the host lacks one. Only ``bias_names`` may be missing: hosts without
                score biases have none, and an earlier switch may have cast them away.
        """
        for name in names:
            if name in host._buffers:
                persistent = name not in host._non_persistent_buffers_set
                self.register_buffer(name, host._buffers[name], persistent=persistent)
            elif name not in self.bias_names or hasattr(host, name):
                setattr(self, name, getattr(host, name))

    def lost_biases(self) -> list[str]:
        """Names of the score biases that an earlier switch cast away."""
        return [name for name in self.bias_names if not hasattr(self, name)]

    def check_bias(self) -> None:
        """Raise ValueError when score biases are wanted that an earlier switch cast away."""
        missing = self.lost_biases()
        if missing and self.wants_bias:
            raise ValueError(
                f"{type(self).__name__} has lost {', '.join(missing)} in an earlier switch: "
                "convert the model as it was before that"
            )

    def strip(self) -> None:
        """Cast away the auxiliary branch, and the score biases if nothing else reads them."""
        super().strip()
        if not self.kernel.takes_bias:
            for name in self.bias_names:
                if hasattr(self, name):
                    delattr(self, name)


def named_hosts(model: nn.Module, host_class: type[nn.Module]) -> list[tuple[str, Any]]:
    """Sub-modules of ``model`` (itself included) of a host class, with their names."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, host_class)]


def shared_geometry(
    host: nn.Module, stem: nn.Module, watch: Callable[[Geometry, nn.Module], None]
) -> Geometry:
    """The one geometry of a host: hooked up already, or known to its layers, or new.

    Layers may know a geometry that is not hooked to this host: blocks shared by two models.

    Args:
        host: the whole model.
        stem: the module of the host that sees the image.
        watch: how a geometry hooks itself up to it.
    """
    for hook in (*stem._forward_pre_hooks.values(), *stem._forward_hooks.values()):
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Geometry):
            return owner
    known = (m.place.geometry for m in host.modules() if isinstance(m, HostAttention))
    geometry = next((g for g in known if g is not None), None) or Geometry()
    watch(geometry, stem)
    return geometry


def watch_tokens(host: nn.Module, geometry: Geometry, places: dict[str, Place]) -> None:
    """Let the geometry follow the tokens of ``host`` to its attentions.

    Args:
        host: the whole model.
        geometry: of the host.
        places: of its attentions, by name from the host, in order of execution.
    """
    geometry.watch_host(host)
    first: dict[str, Place] = {}
    for name, place in places.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            first.setdefault(".".join(parts[:depth]), place)
    for name, place in first.items():
        geometry.watch_tokens(host.get_submodule(name), place)


def join(prefix: str, name: str) -> str:
    """``prefix.name``, or ``name`` alone below the root."""
    return f"{prefix}.{name}" if prefix else name


def tokens_to_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h·w, H, d) -> (B, h, w, H, d)."""
    return tokens.reshape(tokens.shape[0], grid[0], grid[1], *tokens.shape[2:])


def symbolic(*sizes: int) -> bool:
    """Whether a program is being traced that leaves any of these sizes open."""
    # ``torch.jit.trace`` hands out sizes as tensors.
    return any(isinstance(size, torch.SymInt | Tensor) for size in sizes)
