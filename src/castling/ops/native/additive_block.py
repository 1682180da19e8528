"""The folded CAS-ViT block in C++; see :mod:`castling.ops.additive_block` for the formula.

Weights are packed once, in the order in which the products read them. The packed copy is kept
until a weight is written to or freed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from castling.ops.native.arguments import ADDITIVE_BLOCK, WITH_LOCAL
from castling.ops.native.library import check, function
from castling.ops.native.structures import packer

_pack_arguments = packer(ADDITIVE_BLOCK.members)
_size = function("additive_block_size")
_pack = function("additive_block_pack")
_forward = function("additive_block_forward")

# By a block's last weight: addresses and versions of the weights, the weights (so that their memory
# is not given to other tensors and an address identifies it), samples of their values, and the
# packed copy.
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
        arguments = _pack_arguments(
            weights=0,
            packed=packed.data_ptr(),
            size=0,
            x=image.data_ptr(),
            out=out.data_ptr(),
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            hidden=hidden,
            local=local,
            threads=torch.get_num_threads(),
        )
        check(_forward(arguments))
    return out.to(x.dtype)


def _packed(weights: Sequence[Tensor]) -> Tensor:
    """The packed weights, packed again when a weight was written to or moved in memory."""
    if any(weight.is_inference() for weight in weights):
        return _make(weights)  # inference tensors have no version counter
    state = [value for w in weights for value in (w.data_ptr(), w._version)]
    entry: _Entry | None = _packed_weights.get(weights[-2])
    samples = [sample for weight in weights for sample in _samples(weight)]
    if entry is None or entry[0] != state or entry[2] != samples:
        entry = (state, [weight.detach() for weight in weights], samples, _make(weights))
        _packed_weights[weights[-2]] = entry
    return entry[3]


def _samples(weight: Tensor) -> tuple[bytes, ...]:
    """Its first, middle and last numbers in memory.

    Fused optimisers and writes through ``.data`` do not change a tensor's version.
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
    unused = {member.name: 0 for member in ADDITIVE_BLOCK.members}
    shape = {**unused, "channels": channels, "hidden": hidden, "local": local, "threads": 1}
    _size(_pack_arguments(**{**shape, "size": ctypes.addressof(size)}))
    # The library computes in float32, whatever the default dtype and device are.
    packed = torch.empty(size.value, dtype=torch.float32, device="cpu")
    memory = {"weights": ctypes.addressof(addresses), "packed": packed.data_ptr()}
    _pack(_pack_arguments(**{**shape, **memory}))
    return packed
