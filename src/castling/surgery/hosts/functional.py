"""Adapter for attentions that leave their softmax to a function: PyTorch's or transformers' own.

Two functions are known: ``scaled_dot_product_attention`` of ``torch.nn.functional``, and what a
model of Hugging Face transformers takes from its attention interface. The host's own ``forward``
runs as it is, with that one function replaced; projections, rotary positions, norms and return
values stay the host's. Masks may exclude keys. What is added to the scores is a bias: softmax and
auxiliary branches use it, linear kernels cannot.

Classes of :data:`PROVED` are converted wherever they stand in an image model. Others are converted
where ``where`` names the layer: a window of 49 tokens gains nothing, attention across channels is
linear already, and no adapter can tell either from the outside.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from castling.attention import AttentionConfig, SoftmaxKernel
from castling.surgery.geometry import Geometry
from castling.surgery.hosts.base import HostAttention, Place, join, shared_geometry, watch_tokens
from castling.surgery.hosts.reading import (
    SDPA,
    calls_function,
    patch_projection,
    prefix_tokens,
    scale_of,
    sizes_of,
)
from castling.surgery.hosts.rebinding import rebound
from castling.surgery.hosts.registry import (
    adapter_on_request,
    qualified_name,
    register_host,
    register_host_on_request,
    register_named_hosts,
)
from castling.surgery.key_mask import key_mask_or_bias

#: Attention over all patches of an image, by qualified name, so that transformers is not imported.
PROVED = (
    "timm.models.beit.Attention",
    "timm.models.gemma4_vit.Gemma4Attention",
    "timm.models.maxxvit.Attention2d",
    "timm.models.metaformer.Attention",
    "timm.models.vision_transformer.ParallelScalingBlock",
    "timm.models.vision_transformer_relpos.RelPosAttention",
    "timm.models.visformer.Attention",
    "transformers.models.beit.modeling_beit.BeitAttention",
    "transformers.models.clip.modeling_clip.CLIPAttention",
    "transformers.models.deit.modeling_deit.DeiTAttention",
    "transformers.models.dinov2.modeling_dinov2.Dinov2Attention",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers"
    ".Dinov2WithRegistersAttention",
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTAttention",
    "transformers.models.ijepa.modeling_ijepa.IJepaAttention",
    "transformers.models.siglip.modeling_siglip.SiglipAttention",
    "transformers.models.siglip2.modeling_siglip2.Siglip2Attention",
    "transformers.models.vit.modeling_vit.ViTAttention",
    "transformers.models.vit_mae.modeling_vit_mae.ViTMAEAttention",
    "transformers.models.vit_msn.modeling_vit_msn.ViTMSNAttention",
)
#: What makes a score bias in hosts that live without it as None; cast away at the switch.
_BIASES = ("relative_position_bias_table", "relative_position_bias", "rel_pos")
#: Those of ``PROVED`` whose floating-point masks are biases and never hide a key.
ADD_BIAS = (
    "timm.models.beit.Attention",
    "timm.models.maxxvit.Attention2d",
    "timm.models.vision_transformer_relpos.RelPosAttention",
    "transformers.models.beit.modeling_beit.BeitAttention",
)


@register_named_hosts(*PROVED)
@register_host_on_request(calls_function)
@register_host()
class FunctionalAttention(HostAttention):
    """A host that runs its own ``forward`` around our attention.

    Args:
        host: its children, parameters and buffers are shared, not copied.
        config: the new attention.
        place: where the module stands.

    Raises:
        ValueError: the number of heads or their width cannot be read off the host, or it has a
            child of the name of one of ours.
    """

    inner: nn.Module
    #: Score biases that an earlier switch cast away.
    lost: tuple[str, ...] = ()
    _forward: Callable[..., Any]

    def __init__(self, host: nn.Module, config: AttentionConfig, place: Place) -> None:
        inner = host.inner if isinstance(host, FunctionalAttention) else host
        heads, head_dim = sizes_of(inner)
        super().__init__(
            config, place, num_heads=heads, head_dim=head_dim, scale=scale_of(inner, head_dim)
        )
        own = dict(self._modules)
        children = {
            name: child
            for name, child in host._modules.items()
            if not (isinstance(host, HostAttention) and f"{name}." in self.added_names)
        }
        if taken := own.keys() & children.keys():
            raise ValueError(
                f"{type(inner).__name__} has children called {', '.join(sorted(taken))}, as the "
                "parts of castling's attention are: write an adapter, docs/extend/host.md"
            )
        self._modules.clear()
        self._modules.update(children | own)
        self._parameters.update(host._parameters)
        self._buffers.update(host._buffers)
        self._non_persistent_buffers_set |= host._non_persistent_buffers_set
        # The host as an object of its own class that shares all state with this module: one
        # dictionary each, so that moving, loading and replacing reach both. Not a child: its
        # weights keep their names.
        inner = copy.copy(inner)
        for kind in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            inner.__dict__[kind] = self.__dict__[kind]
        if hasattr(inner, "fused_attn"):
            # timm's switch between the function and code of its own.
            inner.__dict__["fused_attn"] = True
        self.lost = getattr(host, "lost", ()) if isinstance(host, FunctionalAttention) else ()
        for name, value in inner.__dict__.items():  # what the modules around it may read
            if not name.startswith("_"):
                self.__dict__.setdefault(name, value)
        self.__dict__["inner"] = inner
        self._bind()

    def _bind(self) -> None:
        """Make the host's forward with its one function replaced."""
        forward = type(self.inner).forward
        self.__dict__["_forward"] = rebound(forward, self.scaled_dot_product_attention)

    def __getstate__(self) -> dict[str, Any]:
        """Without the function, which copies and pickles bind to themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "_forward"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See :meth:`__getstate__`."""
        super().__setstate__(state)
        self._bind()

    @classmethod
    def places(cls, model: nn.Module) -> dict[str, Place]:
        """See :class:`HostAttention`; the grid is known in models of Hugging Face."""
        places = {
            name: Place(no_grid=f"nothing is known of the model around {type(m).__name__}")
            for name, m in model.named_modules()
            if adapter_on_request(m) is cls
        }
        for prefix, host in model.named_modules():
            stem = patch_projection(host)
            if stem is None:
                continue
            below = {
                name.removeprefix(f"{prefix}." if prefix else ""): place
                for name, place in places.items()
                if not prefix or name.startswith(f"{prefix}.")
            }
            geometry = shared_geometry(host, stem, Geometry.watch_stem)
            tokens = prefix_tokens(host.get_submodule("embeddings"))
            inside = {name: Place(geometry, num_prefix_tokens=tokens) for name in below}
            watch_tokens(host, geometry, inside)
            places.update({join(prefix, name): place for name, place in inside.items()})
        return places

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's own."""
        if self.inner.training is not self.training:
            self.inner.training = self.training
        return self._forward(self.inner, *args, **kwargs)

    def scaled_dot_product_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """What the host calls instead of PyTorch's function; same arguments and result.

        Args:
            query: (…, H, N_q, d).
            key: (…, H, N_k, d), or fewer heads with ``enable_gqa``.
            value: (…, H, N_k, d_v).
            attn_mask: key mask, or a bias to be added to the scores.
            dropout_p: of attention weights; for softmax alone.
            is_causal: refused.
            scale: of the scores; 1/√d without.
            enable_gqa: each head of keys and values serves several of queries.

        Raises:
            ValueError: a causal mask; heads of another number or width than the host said.
        """
        if is_causal:
            raise ValueError("a converted attention attends in both directions: is_causal")
        shape, moved = query.shape, False
        if query.dim() == 3:  # heads inside the batch
            query, key, value = (t.unflatten(0, (-1, self.num_heads)) for t in (query, key, value))
            if attn_mask is not None and attn_mask.dim() == 3 and attn_mask.shape[0] > 1:
                attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        elif query.dim() == 5 and query.shape[2] != self.num_heads == query.shape[1]:
            moved = True  # (B, H, windows, N, d)
            if attn_mask is not None:
                raise ValueError(f"{SDPA} with a mask for windows behind heads is not understood")
            query, key, value = (t.transpose(-3, -4) for t in (query, key, value))
        if query.shape[-3] != self.num_heads or query.shape[-1] != self.head_dim:
            raise ValueError(
                f"{type(self.inner).__name__} calls {SDPA} with tensors of shape {tuple(shape)} "
                f"and says that it has {self.num_heads} heads of {self.head_dim} channels: write "
                "an adapter, docs/extend/host.md"
            )
        if (groups := self.num_heads // key.shape[-3]) > 1:
            key, value = (t.repeat_interleave(groups, dim=-3) for t in (key, value))
        leading = query.shape[:-3]
        if len(leading) > 1:
            query, key, value = (t.flatten(0, -4) for t in (query, key, value))
            if attn_mask is not None and attn_mask.dim() > 3:
                attn_mask = attn_mask.expand(*leading, *attn_mask.shape[-3:]).flatten(0, -4)
        factor = (scale if scale is not None else query.shape[-1] ** -0.5) / self.scale
        if not math.isclose(factor, 1.0, rel_tol=1e-6):
            query = query * factor
        if isinstance(self.kernel, SoftmaxKernel):
            self.kernel.dropout = dropout_p
        key_mask, bias = attn_mask, None
        if attn_mask is not None and attn_mask.is_floating_point() and self.kernel.takes_bias:
            key_mask, bias = None, attn_mask
        elif attn_mask is not None:
            sure = qualified_name(type(self.inner)) in ADD_BIAS
            key_mask, bias = key_mask_or_bias(attn_mask, query.shape[0], key.shape[2], sure)
        # The geometry knows tokens by their number, and by the module that runs.
        square = query.shape[2] == key.shape[2]
        grid = self.known_grid(key.transpose(1, 2)) if square else None
        out = self.attend(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            grid=grid,
            num_prefix_tokens=self.place.num_prefix_tokens,
            key_mask=key_mask,
            bias=bias,
        ).transpose(1, 2)
        out = out.unflatten(0, leading) if len(leading) > 1 else out
        out = out.transpose(-3, -4) if moved else out
        return out.reshape(*shape[:-1], out.shape[-1])

    def lost_biases(self) -> list[str]:
        """See :class:`HostAttention`."""
        return list(self.lost)

    def strip(self) -> None:
        """Cast away the auxiliary branch, and what makes score biases if nothing else reads it."""
        super().strip()
        if not self.kernel.takes_bias:
            for name in _BIASES:
                held: Any = self._parameters if name in self._parameters else self._modules
                if held.get(name) is not None:
                    held[name] = None
                    self.lost = (*self.lost, name)
