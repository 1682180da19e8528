"""The ``torch.library`` operators of fused attention.

- One operator for all backends: ``torch.compile`` and ``torch.export`` see one node.
- The backend of the forward pass is an argument, so that the same one computes the gradient.
- On a machine without that backend (a loaded program) the operator computes the naive formula.
- Without tracing, counting and the like, the backend is called directly: PyTorch's dispatcher
  takes as long as softmax attention at 49 tokens, three times that with gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from castling.ops.backends import FUSED, backend_module, select_backend
from castling.ops.common import autocast_off
from castling.ops.guards import check_devices, differentiating, may_bypass_dispatcher

library = torch.library.Library("castling", "DEF")


@dataclass(frozen=True)
class FusedOperator:
    """``castling::name`` and ``castling::name_backward``; call with tensors, options and backend.

    Tensors and options are named tuples. The first three tensors are query, key and value; the
    operator computes in the widest of their precisions. ``key_mask`` has no gradient.

    Each backend has functions ``name_forward``: (tensors, options, save_state) -> output and state,
    and ``name_backward``: (gradient, tensors, saved, options) -> gradient of each tensor but the
    mask, None for an absent tensor. ``saved`` is (state,), or (output, state) with
    ``keeps_output``.

    The schema calls the backend ``path``, its earlier name, which programs exported by earlier
    versions hold.

    Attributes:
        name: of the forward operator.
        tensor_schema: the tensors, as in an operator's schema.
        option_schema: the options, likewise.
        tensors: class of the tensors.
        options: class of the options.
        same_dtype: how many of the first tensors must have one precision.
        keeps_output: whether the gradient needs the output as well as the state.
        naive: (tensors, options) -> output, in basic operators; also the decomposition for formats
            without this operator (ONNX).
        state_shape: (tensors, options, backend, save_state) -> shape of the float32 state.
    """

    name: str
    tensor_schema: str
    option_schema: str
    tensors: type[Any]
    options: type[Any]
    same_dtype: int
    keeps_output: bool
    naive: Callable[[Any, Any], Tensor]
    state_shape: Callable[[Any, Any, str, bool], tuple[Any, ...]]

    def __post_init__(self) -> None:
        kept = "Tensor out, " if self.keeps_output else ""
        moving = ", ".join(["Tensor"] * (len(self.tensors._fields) - 1))
        library.define(
            f"{self.name}({self.tensor_schema}, {self.option_schema}, str path, bool save_state) "
            "-> (Tensor, Tensor)"
        )
        library.define(
            f"{self.name}_backward(Tensor grad, {self.tensor_schema}, {kept}Tensor state, "
            f"{self.option_schema}, str path) -> ({moving})"
        )
        for name, compute, fake in (
            (self.name, self._forward, self._forward_fake),
            (self.backward, self._backward, self._backward_fake),
        ):
            library.impl(name, compute, "CompositeExplicitAutograd")
            torch.library.register_fake(f"castling::{name}", fake, lib=library)
        torch.library.register_autograd(
            f"castling::{self.name}", self._gradient, setup_context=self._setup, lib=library
        )
        register_decomposition(self.operator().default)(self._naive_forward)
        torch.library.register_autograd(f"castling::{self.name}_backward", _not_twice, lib=library)

    @functools.cached_property
    def forward(self) -> str:
        """Name of the backends' function."""
        return f"{self.name}_forward"

    @functools.cached_property
    def backward(self) -> str:
        """Name of the backends' function."""
        return f"{self.name}_backward"

    def operator(self) -> Any:
        """The forward operator, all overloads."""
        return getattr(torch.ops.castling, self.name)

    def backward_operator(self) -> Any:
        """The backward operator, all overloads."""
        return getattr(torch.ops.castling, self.backward)

    def __call__(self, tensors: Any, options: Any, backend: str) -> Tensor:
        """The output, in the precision of the value."""
        query, key, value = tensors[:3]
        dtype = value.dtype
        fourth = tensors[3] if self.same_dtype > 3 else None
        if not (query.dtype == key.dtype == dtype and (fourth is None or fourth.dtype == dtype)):
            tensors = self._in_one_precision(tensors)
            backend = select_backend(tensors.query, tensors.value)
            if backend not in FUSED:
                return self.naive(tensors, options).to(dtype)
        save_state = differentiating(*tensors)
        module = None
        if not torch.compiler.is_compiling():
            given = [tensor for tensor in tensors if tensor is not None]
            check_devices(given)
            module = (
                backend_module(backend, tensors.query) if may_bypass_dispatcher(given) else None
            )
        out: Tensor
        if module is not None:
            if save_state:
                out = _Direct.apply(self, options, backend, *tensors)
            else:
                out = getattr(module, self.forward)(tensors, options, False)[0]
        else:
            out = self.operator().default(*tensors, *options, backend, save_state)[0]
        return out if out.dtype == dtype else out.to(dtype)

    def gradients(
        self,
        grad: Tensor,
        tensors: Any,
        saved: tuple[Tensor, ...],
        options: Any,
        backend: str,
    ) -> list[Tensor | None]:
        """The gradient of each tensor, None where it has none."""
        module = backend_module(backend, tensors.query)
        # With gradients enabled the operator must be in the graph: it refuses second derivatives.
        direct = (
            not torch.compiler.is_compiling()
            and not torch.is_grad_enabled()
            and may_bypass_dispatcher([grad])
            # Batched gradients are a tensor without storage that looks like a plain one.
            and torch._C._has_storage(grad)
        )
        if module is not None and direct:
            found: Any = getattr(module, self.backward)(grad, tensors, saved, options)
        else:
            found = self.backward_operator().default(grad, *tensors, *saved, *options, backend)
        rest = iter(found)
        return [
            None if name == "key_mask" or (gradient := next(rest)) is None or tensor is None
            else gradient
            for name, tensor in zip(self.tensors._fields, tensors, strict=True)
        ]  # fmt: skip

    def saved(self, out: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        """The parts of a result that the gradient needs."""
        return (out, state) if self.keeps_output else (state,)

    def _in_one_precision(self, tensors: Any) -> Any:
        """Convert to the widest precision: some hosts' norms return float32 under autocast."""
        query, key, value = (tensor.dtype for tensor in tensors[:3])
        wide = torch.promote_types(torch.promote_types(query, key), value)
        first = (None if x is None else x.to(wide) for x in tensors[: self.same_dtype])
        return self.tensors(*first, *tensors[self.same_dtype :])

    def _parts(self, arguments: tuple[Any, ...]) -> tuple[Any, Any, tuple[Any, ...]]:
        """Tensors, options and remaining arguments of an operator's call."""
        tensors = len(self.tensors._fields)
        end = tensors + len(self.options._fields)
        options = (tuple(x) if isinstance(x, list) else x for x in arguments[tensors:end])
        return self.tensors(*arguments[:tensors]), self.options(*options), arguments[end:]

    def _backward_parts(
        self, arguments: tuple[Any, ...]
    ) -> tuple[Any, tuple[Tensor, ...], Any, str]:
        start = len(self.tensors._fields)
        end = start + 1 + self.keeps_output
        tensors, options, (backend,) = self._parts((*arguments[:start], *arguments[end:]))
        return tensors, arguments[start:end], options, backend

    def _forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        tensors, options, (backend, save_state) = self._parts(arguments)
        module = backend_module(backend, tensors.query)
        if module is None:
            return self._naive_forward(*arguments)
        found: tuple[Tensor, Tensor] = getattr(module, self.forward)(tensors, options, save_state)
        return found

    def _naive_forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        tensors, options, (backend, save_state) = self._parts(arguments)
        out = self.naive(tensors, options).contiguous()
        shape = self.state_shape(tensors, options, backend, save_state)
        return out, out.new_zeros(shape, dtype=torch.float32)

    def _forward_fake(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        tensors, options, (backend, save_state) = self._parts(arguments)
        value = tensors.value
        shape = self.state_shape(tensors, options, backend, save_state)
        out = value.new_empty((*tensors.query.shape[:3], value.shape[-1]))
        return out, value.new_empty(shape, dtype=torch.float32)

    def _backward(self, grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        tensors, saved, options, backend = self._backward_parts(arguments)
        module = backend_module(backend, tensors.query)
        if module is not None:
            found = list(getattr(module, self.backward)(grad, tensors, saved, options))
        else:
            found = self._naive_gradients(grad, tensors, options)
        # An operator returns tensors only: empty stands for None.
        return tuple(grad.new_empty(0) if g is None else g for g in found)

    def _backward_fake(self, grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        tensors, _, _, _ = self._backward_parts(arguments)
        return tuple(
            grad.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
            for name, tensor in tensors._asdict().items()
            if name != "key_mask"
        )

    def _setup(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        tensors, *ctx.rest = self._parts(inputs)
        ctx.save_for_backward(*tensors, *self.saved(*output))
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def _gradient(self, ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
        options, (backend, _) = ctx.rest
        nothing = (None,) * (len(self.options._fields) + 2)
        tensors = len(self.tensors._fields)
        if grad is None:
            return (*(None,) * tensors, *nothing)
        kept = ctx.saved_tensors
        inputs, saved = self.tensors(*kept[:tensors]), kept[tensors:]
        return (*self.gradients(grad, inputs, saved, options, backend), *nothing)

    def _naive_gradients(self, grad: Tensor, tensors: Any, options: Any) -> list[Tensor | None]:
        """Gradients of the naive formula, recomputed."""
        leaves = {
            name: tensor
            for name, tensor in tensors._asdict().items()
            if tensor is not None and name != "key_mask"
        }

        def formula(*values: Tensor) -> Tensor:
            return self.naive(tensors._replace(**dict(zip(leaves, values, strict=True))), options)

        # PyTorch records no graph inside an operator, even with gradients enabled; a function
        # transform does.
        with autocast_off(grad):
            pull_back = torch.func.vjp(formula, *leaves.values())[1]
            found = dict(zip(leaves, pull_back(grad), strict=True))
        return [
            found[name].contiguous() if name in found else None
            for name in self.tensors._fields
            if name != "key_mask"
        ]


class _Direct(torch.autograd.Function):
    """A fused operator with gradients that bypasses PyTorch's dispatcher."""

    @staticmethod
    def forward(
        ctx: Any, fused: FusedOperator, options: Any, backend: str, *arguments: Tensor | None
    ) -> Tensor:
        tensors = fused.tensors(*arguments)
        module = backend_module(backend, tensors.query)
        assert module is not None
        out, state = getattr(module, fused.forward)(tensors, options, True)
        ctx.save_for_backward(*arguments, *fused.saved(out, state))
        ctx.call = fused, options, backend
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        fused, options, backend = ctx.call
        count = len(fused.tensors._fields)
        if grad is None:
            return (None,) * (3 + count)
        kept = ctx.saved_tensors
        tensors = fused.tensors(*kept[:count])
        return (None, None, None, *fused.gradients(grad, tensors, kept[count:], options, backend))


def _not_twice(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "the fused attention operators are differentiable once; for gradients of gradients use "
        'castling.attention_backend("naive")'
    )
