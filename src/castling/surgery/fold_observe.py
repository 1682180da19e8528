"""Observe a run of a model: which module's output is read by one other module only.

Comparing outputs cannot show this: a zero head or a small layer scale hides everything before it.
So every operation that reads the memory of an output is recorded, in place or not, inside modules
or between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from castling.surgery.compared import Compared, ModelOutputs, tensors_in
from castling.surgery.fold_layers import LINEAR_LAYERS


class Observation:
    """What one run of a model showed.

    Attributes:
        result: the model's raw outputs.
        outputs: tensors that the kept modules returned, one for each call.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        keep: Callable[[nn.Module], bool] | None = None,
        task: Compared | None = None,
    ) -> None:
        """Run ``model`` on ``images`` (B, C, H, W), keeping the outputs of modules as asked."""
        self.outputs: dict[nn.Module, list[Any]] = {}
        self._inputs: dict[nn.Module, list[Any]] = {}
        self._parents: dict[nn.Module, int] = {}
        for module in model.modules():
            for child in module._modules.values():
                if child is not None:
                    self._parents[child] = self._parents.get(child, 0) + 1
        # Folding would change what a hook sees, and a hook may change what a module returns.
        self._hooked = {m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks}
        self._keep = keep or (lambda module: False)
        self._watcher = _Watcher()
        handles = []
        try:
            for module in model.modules():
                handles.append(module.register_forward_pre_hook(self._enter))
                handles.append(module.register_forward_hook(self._leave))
            with self._watcher:
                self.result = (task or ModelOutputs()).raw_outputs(model, images)
        finally:
            for handle in handles:
                handle.remove()
        self._returned = {_memory(tensor) for tensor in tensors_in(self.result)}

    def called(self, module: nn.Module) -> bool:
        """Whether the module itself was called, not only its children."""
        return module in self._inputs

    def serves_only(self, first: nn.Module, second: nn.Module) -> bool:
        """Whether ``second`` alone reads the outputs of ``first``, and reads nothing else."""
        if {first, second} & self._hooked:
            return False
        if self._parents.get(first) != 1 or self._parents.get(second) != 1:
            return False
        made, taken = self.outputs.get(first, []), self._inputs.get(second, [])
        if not made or len(made) != len(taken):
            return False
        return all(self._meet(*pair, first, second) for pair in zip(made, taken, strict=True))

    def direct(self, first: nn.Module, second: nn.Module) -> bool:
        """Whether ``second`` received the very tensors of ``first``, not views of them."""
        pairs = zip(self.outputs[first], self._inputs[second], strict=True)
        return all(made is taken for made, taken in pairs)

    def receivers(self) -> dict[int, list[nn.Module]]:
        """The modules called with each tensor, by its id."""
        found: dict[int, list[nn.Module]] = {}
        for module, inputs in self._inputs.items():
            for tensor in inputs:
                found.setdefault(id(tensor), []).append(module)
        return found

    def _meet(self, made: Any, taken: Any, first: nn.Module, second: nn.Module) -> bool:
        if not isinstance(made, Tensor) or not isinstance(taken, Tensor):
            return False
        memory = _memory(made)
        if memory != _memory(taken) or memory in self._returned:
            return False
        # Linear layers have their channels last, norms have them second.
        if isinstance(first, nn.Linear) or isinstance(second, nn.Linear):
            fits = taken.dim() == 2
        else:
            fits = taken.shape == made.shape
        return fits and all(second in stack for stack in self._watcher.readers[memory])

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._watcher.stack.append(module)
        self._inputs.setdefault(module, []).append(inputs[0] if inputs else None)

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._watcher.stack.pop()
        followed = isinstance(module, (*LINEAR_LAYERS, _BatchNorm))
        if followed and isinstance(output, Tensor):
            self._watcher.readers.setdefault(_memory(output), [])
        if followed or self._keep(module):
            self.outputs.setdefault(module, []).append(output)


def observe(
    model: nn.Module, images: Tensor, keep: Callable[[nn.Module], bool], task: Compared
) -> Observation:
    """Run ``model`` once; ValueError where it does not run or its outputs are not finite."""
    try:
        seen = Observation(model, images, keep, task)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(
            f"the model does not run on images {tuple(images.shape)}: {error}; pass example=, a "
            "batch that it takes"
        ) from error
    if not all(torch.isfinite(output).all() for output in seen.result.values()):
        raise ValueError("the model's outputs are not finite: there is nothing to compare with")
    return seen


class _Watcher(TorchDispatchMode):
    """Records which modules were running when an operation read memory that is followed."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[nn.Module] = []
        self.readers: dict[int, list[tuple[nn.Module, ...]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _is_view(func):
            for tensor in tensors_in((args, kwargs)):
                readers = self.readers.get(_memory(tensor))
                if readers is not None:
                    readers.append(tuple(self.stack))
        return result


def _is_view(operation: Any) -> bool:
    """Whether an operation returns only views."""
    aliases = [value.alias_info for value in operation._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _memory(tensor: Tensor) -> int:
    """An identifier of a tensor's memory, unique while the tensor lives."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without a storage
        return -id(tensor)
