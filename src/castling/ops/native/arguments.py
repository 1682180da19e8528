"""How tensors travel to the library: an address and four strides, eight bytes each."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NO_TENSOR = (0, 0, 0, 0, 0)


def dtype_code(*tensors: Tensor) -> int:
    """The library's number for the one precision of all tensors.

    Raises:
        ValueError: they differ, or it is a precision the library does not have.
    """
    dtype = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype != dtype or dtype not in DTYPES:
            names = ", ".join(str(each.dtype).removeprefix("torch.") for each in tensors)
            raise ValueError(
                "the native operators take tensors of one precision, float32, bfloat16 or "
                f"float16; got {names}: convert them, or use the naive path"
            )
    return DTYPES[dtype]


def packed(tensor: Tensor | None) -> tuple[int, ...]:
    """Address and strides (batch, tokens, heads, channels) of a four-dimensional tensor."""
    return _NO_TENSOR if tensor is None else (tensor.data_ptr(), *tensor.stride())
