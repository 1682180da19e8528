"""Multiply-accumulates of a model, every matrix product included.

- Counted by running the model, on the backend that it selects.
- Run on PyTorch's ``meta`` device if the model allows it: no arithmetic, no memory, any size.
- The given model keeps its mode, buffers and caches.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from castling.utils.modes import eval_mode
from castling.utils.shared import SharedSetting

logger = logging.getLogger(__name__)

CONVENTION = (
    "One multiply-accumulate (MAC) is one multiplication and one addition inside a matrix product. "
    "Counted: linear layers, convolutions, and every attention product (q·kᵀ, weights·v, "
    "φ(k)ᵀ·v, φ(q)·state), whether written as matmul, einsum or fused attention. "
    "Not counted: biases, norms, activations, softmax, element-wise products, pooling, resizing."
)


@dataclass(frozen=True)
class MacsReport:
    """Result of :func:`macs`.

    Attributes:
        total: multiply-accumulates of one forward pass over the whole batch.
        per_layer: module name → multiply-accumulates spent in that module itself, outside of
            its sub-modules (``blocks.0.attn`` has the attention products, ``blocks.0.attn.qkv`` the
            projection). ``""`` is the model itself. Sums to ``total``.
        convention: a description of what is counted.
        parameters: number of parameters of the model.
        input_size: (channels, height, width) of the images.
        batch: number of images.
    """

    total: int
    per_layer: dict[str, int]
    convention: str
    parameters: int
    input_size: tuple[int, int, int]
    batch: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        size = "×".join(str(side) for side in (self.batch, *self.input_size))
        return f"{self.total / 1e9:.4f} GMACs, {self.parameters / 1e6:.3f} M parameters at {size}"


def _matrix_vector(matrix: tuple[int, ...], vector: tuple[int, ...], **_: Any) -> int:
    return 2 * prod(matrix)


def _quantized_linear(images: tuple[int, ...], *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * images[-1] * prod(out_shape)


# PyTorch does not count products with a vector, nor those of dynamically quantised linear layers.
_formulas: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten.dot: _matrix_vector,
    **{
        getattr(torch.ops.quantized, name): _quantized_linear
        for name in ("linear_dynamic", "linear_relu_dynamic", "linear_dynamic_fp16")
    },
}


def register_macs(operator: Any, formula: Callable[..., int]) -> None:
    """Register an operator's multiply-accumulates for :func:`macs`.

    Args:
        operator: the ``torch.library`` operator without overload, such as
            ``torch.ops.castling.linear_angular``.
        formula: receives the operator's arguments with every tensor replaced by its shape, plus
            ``out_shape``, and returns the operator's multiply-accumulates.

    Raises:
        TypeError: ``operator`` is an overload (``….default``) or ``formula`` cannot be called.
    """
    if not isinstance(operator, torch._ops.OpOverloadPacket):
        raise TypeError(
            "register_macs wants an operator packet such as torch.ops.castling.name, "
            f"got {operator!r}"
        )
    if not callable(formula):
        raise TypeError(f"the formula of {operator} must be callable, got {formula!r}")

    def doubled(*args: Any, **kwargs: Any) -> int:
        return 2 * formula(*args, **kwargs)

    _formulas[operator] = doubled
    # PyTorch's own counter ignores unknown operators.
    if operator not in flop_registry:
        register_flop_formula(operator)(doubled)


def macs(
    model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224), batch: int = 1
) -> MacsReport:
    """Count the multiply-accumulates of one inference pass.

    The model is neither modified nor moved: its train/eval mode, BatchNorm statistics and caches
    stay as they are. The forward pass counted is that of ``eval()``.

    Args:
        model: takes a tensor (batch, channels, height, width). Of a model with a method
            ``inference``, as detectors have, that is counted: decoding included.
        input_size: (channels, height, width).
        batch: number of images; ``total`` is for all of them.

    Returns:
        The count, in total and per module.

    Raises:
        ValueError: ``input_size`` is not three positive numbers, or ``batch`` is not positive.
    """
    if len(input_size) != 3 or min(input_size) < 1:
        raise ValueError(f"input_size must be (channels, height, width), got {input_size}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    channels, height, width = (int(size) for size in input_size)
    shape = (batch, channels, height, width)
    try:
        per_layer = _count(_on_meta(model), shape, torch.device("meta"))
    except Exception as error:
        # Models with plain-tensor attributes or data-dependent branches cannot run without data.
        logger.debug("counting with a real forward pass, the meta device failed: %s", error)
        with eval_mode(model):
            per_layer = _count(model, shape, _device_of(model))
    return MacsReport(
        total=sum(per_layer.values()),
        per_layer=per_layer,
        convention=CONVENTION,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        input_size=(channels, height, width),
        batch=batch,
    )


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters and buffers have shapes but no storage."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=False
        )
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo).eval()


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")


def _count(
    model: nn.Module, shape: tuple[int, int, int, int], device: torch.device
) -> dict[str, int]:
    """Run the model once; multiply-accumulates spent in each module itself."""
    names = {module: name for name, module in model.named_modules()}
    own: dict[str, int] = {}
    nested = [0]  # products seen in finished sub-modules, one entry per open module
    started: list[int] = []
    counter = FlopCounterMode(display=False, custom_mapping=dict(_formulas))

    def enter(module: nn.Module, _: Any) -> None:
        started.append(counter.get_total_flops())
        nested.append(0)

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        spent = counter.get_total_flops() - started.pop()
        inside = nested.pop()
        nested[-1] += spent
        if spent > inside:
            name = names[module]
            own[name] = own.get(name, 0) + (spent - inside) // 2

    handles = []
    for module in names:
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    images = torch.zeros(shape, dtype=dtype, device=device)
    try:
        with torch.no_grad(), _plain_attention(), counter:
            getattr(model, "inference", model)(images)
    finally:
        for handle in handles:
            handle.remove()
    outside = counter.get_total_flops() - nested[0]
    if outside:
        own[""] = own.get("", 0) + outside // 2
    return own


def _disable_fused_attention() -> Callable[[], None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    return lambda: torch.backends.mha.set_fastpath_enabled(before)


#: Keeps ``nn.MultiheadAttention`` off its fused inference kernel, whose products are hidden.
_plain_attention = SharedSetting(_disable_fused_attention)
