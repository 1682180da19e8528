"""Whether a module's weights may be read instead of calling it.

A fused path reads the weights of a layer and computes its output otherwise. That skips whatever was
put on the layer: hooks, pruning and spectral norm (which recompute the weight in a hook), fake
quantisation and low-rank adapters (other classes), parametrisations and fully sharded weights
(classes made on the fly), quantised or distributed tensors. Such layers must be called.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_OVERRIDDEN = ("forward", "weight", "bias")


def globally_hooked() -> bool:
    """Whether hooks are registered for all modules of this process."""
    return bool(
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )


def is_plain_tensor(tensor: Tensor | None) -> bool:
    """Whether a weight is there and not a quantised, distributed or otherwise wrapped one."""
    if type(tensor) is nn.Parameter:
        return True
    return tensor is not None and not is_traceable_wrapper_subclass(tensor)


def is_plain(module: nn.Module | None, *classes: type[nn.Module]) -> bool:
    """Whether a call of ``module`` computes what one of these very classes does, and no more.

    If so, its weights are what its ``_parameters`` hold, and may be read instead.
    """
    if module is None or type(module) not in classes or globally_hooked():
        return False
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return False
    if any(name in module.__dict__ for name in _OVERRIDDEN):
        return False
    return all(weight is None or is_plain_tensor(weight) for weight in module._parameters.values())
