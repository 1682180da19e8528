"""What our ``torch.library`` operators share: how they are registered, called and fall back.

Notable:
- one operator each for every backend: ``torch.compile`` and ``torch.export`` see one node;
- the backend that ran forwards is an argument, so that the same one runs backwards;
- an operator that meets a machine without its backend (a loaded program) computes the naive
  formula instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from castling.ops.common import autocast_off
from castling.ops.paths import backend_for

library = torch.library.Library("castling", "DEF")


def register(
    name: str,
    *,
    forward: Callable[..., Any],
    forward_fake: Callable[..., Any],
    backward: Callable[..., Any],
    backward_fake: Callable[..., Any],
    setup: Callable[..., None],
    gradient: Callable[..., Any],
    naive: Callable[..., Any],
) -> None:
    """Give ``castling::name`` and ``castling::name_backward``, already defined, what they do.

    Args:
        name: of the forward operator.
        forward: computes it.
        forward_fake: makes outputs of the right shapes for tracing.
        backward: computes the backward operator.
        backward_fake: makes its outputs for tracing.
        setup: stores what the gradient needs, as ``torch.library.register_autograd`` wants it.
        gradient: calls the backward operator.
        naive: the forward operator in basic operators; what programs are broken down into that
            go where nobody knows ours (an ONNX file).
    """
    for operator, compute, fake in (
        (name, forward, forward_fake),
        (f"{name}_backward", backward, backward_fake),
    ):
        library.impl(operator, compute, "CompositeExplicitAutograd")
        torch.library.register_fake(f"castling::{operator}", fake, lib=library)
    torch.library.register_autograd(f"castling::{name}", gradient, setup_context=setup, lib=library)
    register_decomposition(getattr(torch.ops.castling, name).default)(naive)
    torch.library.register_autograd(f"castling::{name}_backward", _not_twice, lib=library)


def _not_twice(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "the fused attention operators are differentiable once; for gradients of gradients use "
        'castling.attention_path("naive")'
    )


def differentiating(*tensors: Tensor | None) -> bool:
    """Whether a result computed now from these tensors would carry gradients."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def call(operator: Any, function: str, save_state: bool, *arguments: Any) -> Tensor:
    """The operator's first result, for arguments that begin with the query and end with the path.

    Where nothing watches (no gradients, no tracing, no counting), the backend is called straight:
    the way through PyTorch's dispatcher takes 30 µs, a third of softmax attention at 49 tokens.

    Args:
        operator: one of ours.
        function: name of the backend's function that computes it.
        save_state: whether gradients will be asked for.
        arguments: the operator's, without ``save_state``.
    """
    query, *_, path = arguments
    if (
        not save_state
        and not torch.compiler.is_compiling()
        and type(query) is Tensor
        and torch._C._len_torch_dispatch_stack() == 0
    ):
        backend = backend_for(path, query)
        if backend is not None:
            straight: Tensor = getattr(backend, function)(*arguments[:-1], False)[0]
            return straight
    out: Tensor = operator(*arguments, save_state)[0]
    return out


def one_precision(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where a host's norms leave autocast's precision, everything is widened to the widest."""
    if query.dtype == value.dtype == key.dtype:
        return query, key, value
    wide = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    return query.to(wide), key.to(wide), value.to(wide)


def naive_gradients(
    formula: Callable[[tuple[Tensor | None, ...]], Tensor],
    grad: Tensor,
    tensors: tuple[Tensor | None, ...],
    *,
    without: int,
) -> list[Tensor | None]:
    """Gradients of a naive formula, computed again.

    Args:
        formula: takes the tensors.
        grad: gradient of its result.
        tensors: what it takes; None where there is none.
        without: position of the mask, which has no gradient and is left out.
    """
    moving = [p for p, tensor in enumerate(tensors) if tensor is not None and p != without]

    def of_moving(*values: Tensor) -> Tensor:
        given = dict(zip(moving, values, strict=True))
        return formula(tuple(given.get(p, tensor) for p, tensor in enumerate(tensors)))

    # Inside an operator PyTorch records no graph, even where gradients are enabled: a function
    # transform brings its own.
    with autocast_off(grad):
        pull_back = torch.func.vjp(of_moving, *(tensors[p] for p in moving))[1]
        found = dict(zip(moving, pull_back(grad), strict=True))
    return [
        found[p].contiguous() if p in found else None for p in range(len(tensors)) if p != without
    ]
