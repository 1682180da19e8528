"""The folded CAS-ViT block in C++; see :mod:`castling.ops.additive_block` for the formula.

Weights are packed once, in the order in which the products read them, and the packed copy is kept
as long as the weights live and nobody writes to them.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from castling.ops.additive_block import WITH_LOCAL
from castling.ops.native.library import check, function

_LAYOUT = struct.Struct("=12q")
_size = function("additive_block_size")
_pack = function("additive_block_pack")
_forward = function("additive_block_forward")

# By a block's last weight: which memory in which state was packed, that memory, samples of what it
# held, and the packed copy. Memory that is held here cannot be given to other weights, so its
# address tells it.
_Entry = tuple[list[int], list[Tensor], list[bytes], Tensor]
_packed_weights: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def additive_block_forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The block's result, computed in float32, in the precision of ``x``.

    Args:
        x: (B, C, h, w) of any strides.
        weights: as :meth:`castling.ops.additive_block.AdditiveBlockWeights.flat` lists them.

    Returns:
        (B, C, h, w) in channels-last memory.

    Raises:
        ValueError: ``x`` has another number of channels than the weights.
    """
    image = x.float().contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(image)
    batch, channels, height, width = image.shape
    if channels != weights[-2].shape[0]:
        raise ValueError(
            f"the block is for images of {weights[-2].shape[0]} channels, got {channels}: "
            f"{tuple(x.shape)}"
        )
    if out.numel():
        hidden, local = weights[-2].shape[1], len(weights) == WITH_LOCAL
        packed = _packed(weights)
        check(
            _forward(
                _LAYOUT.pack(
                    *(0, packed.data_ptr(), 0, image.data_ptr(), out.data_ptr()),
                    *(batch, height, width, channels, hidden, local, torch.get_num_threads()),
                )
            )
        )
    return out.to(x.dtype)


def _packed(weights: Sequence[Tensor]) -> Tensor:
    """The packed weights, made anew when a weight was written to or got other memory."""
    if any(weight.is_inference() for weight in weights):
        return _make(weights)  # such tensors do not tell whether they were written to
    state = [value for w in weights for value in (w.data_ptr(), w._version)]
    entry: _Entry | None = _packed_weights.get(weights[-2])
    samples = [sample for weight in weights for sample in _samples(weight)]
    if entry is None or entry[0] != state or entry[2] != samples:
        entry = (state, [weight.detach() for weight in weights], samples, _make(weights))
        _packed_weights[weights[-2]] = entry
    return entry[3]


def _samples(weight: Tensor) -> tuple[bytes, ...]:
    """Its first, middle and last numbers in memory.

    Fused optimisers and writes through ``.data`` leave no trace in a tensor's version.
    """
    address, size = weight.data_ptr(), weight.numel() * weight.element_size()
    width = min(8, size)
    places = (0, size // 2 // width * width, size - width) if size else ()
    return tuple(ctypes.string_at(address + place, width) for place in places)


def _make(weights: Sequence[Tensor]) -> Tensor:
    channels, hidden = weights[-2].shape[:2]
    local = len(weights) == WITH_LOCAL
    sources = [weight.detach().float().contiguous() for weight in weights]
    addresses = (ctypes.c_void_p * len(sources))(*(source.data_ptr() for source in sources))
    size = ctypes.c_int64()
    shape = (0, 0, 0, channels, hidden, local, 1)
    _size(_LAYOUT.pack(0, 0, ctypes.addressof(size), 0, 0, *shape))
    # Whatever the program's default precision and device are: the library counts in float32.
    packed = torch.empty(size.value, dtype=torch.float32, device="cpu")
    _pack(_LAYOUT.pack(ctypes.addressof(addresses), packed.data_ptr(), 0, 0, 0, *shape))
    return packed
