"""Whether the entries of a file are plain, finite numbers, and their way into a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def require_plain(state: State, own: State, path: object) -> None:
    """Refuse entries that cannot be copied into a model's as the numbers that they are.

    Args:
        state: weights of a file, by the names of the model.
        own: the model's state.
        path: of the file, for messages.

    Raises:
        ValueError: an entry is quantised, sparse, complex, without data, or whole numbers, booleans
            or 8-bit codes for floating point.
    """
    unusable = [
        f"{name} ({reason})"
        for name, tensor in state.items()
        if name in own and (reason := _why_unusable(tensor, own[name]))
    ]
    if unusable:
        raise ValueError(
            f"{path} holds entries that are no plain weights, the model is unchanged: "
            f"{some(unusable)}"
        )


def non_finite(state: State) -> list[str]:
    """Names of entries with NaN or infinity, and which of the two."""
    found = []
    for name, tensor in state.items():
        if tensor.is_floating_point() or tensor.is_complex():
            finite = tensor.isfinite()
            if not finite.all():
                kind = "NaN" if tensor.isnan().any() else "infinity"
                found.append(f"{name} ({kind}, {int((~finite).sum())} of {tensor.numel()})")
    return found


def as_own(state: State, own: State) -> State:
    """The entries in the floating-point type of the model's, in which they must be finite."""
    return {
        name: tensor.to(own[name].dtype)
        if name in own and tensor.is_floating_point() and own[name].is_floating_point()
        else tensor
        for name, tensor in state.items()
    }


def require_finite(state: State, path: object) -> None:
    """Raise ValueError where an entry is not finite; the message names it and the file."""
    broken = non_finite(state)
    if broken:
        raise ValueError(
            f"{path} holds weights that are not finite ({len(broken)}), the model is unchanged: "
            f"{some(broken)}. The training that wrote it diverged, or the numbers are too large "
            "for the model's data type"
        )


@torch.no_grad()
def fill(model: nn.Module, state: State, path: object) -> None:
    """Copy checked entries into a model: all of them, or none.

    Raises:
        ValueError: a module of the model refused them; the model is as it was.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in state}
    try:
        model.load_state_dict(state, strict=False)
    except Exception as error:  # any: modules have hooks of their own
        for name, tensor in model.state_dict().items():
            if name in before:
                tensor.copy_(before[name])
        raise ValueError(f"{path} does not fit the model, which is unchanged: {error}") from error


def some(names: list[str]) -> str:
    """The first eight, and how many more."""
    rest = f", … {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + rest


def _why_unusable(tensor: Tensor, own: Tensor) -> str | None:
    """Why an entry of the file cannot be copied into ``own``, or None."""
    if tensor.is_meta:
        return "without data"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_complex() and not own.is_complex():
        return "complex"
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    # 8-bit codes, float8 included, mean nothing without their scales.
    if own.is_floating_point() and (whole or tensor.itemsize < 2):
        return f"{str(tensor.dtype).removeprefix('torch.')} for floating point"
    return None
