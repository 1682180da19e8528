"""The arguments of every C++ kernel: the one table behind the C++ header and the Python packing.

After a change run ``python -m castling.ops.native``, which writes ``csrc/arguments.h``,
and build the library again (``python setup.py build_ext --inplace``).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from castling.ops.native.structures import (
    INTEGER,
    OPTIONAL_TENSOR,
    REAL,
    TENSOR,
    Block,
    Field,
    Structure,
    header,
)

ENUMERATIONS = {
    "Dtype": ("FLOAT32", "BFLOAT16", "FLOAT16"),
    "Features": ("UNIT", "RELU", "SQUARES", "IDENTITY"),
    "Normalisation": ("NONE", "L2", "ROWSUM"),
    "LocalKind": ("NO_LOCAL", "ALONG_TOKENS", "ON_GRID"),
}

#: What is the same for all calls of a module, packed once.
LINEAR_FORMULA = Block(
    "formula",
    "Sizes and formula, the same for all calls of a module.",
    (
        *(Field(name, INTEGER) for name in ("batch", "queries", "keys", "heads")),
        Field("dim", INTEGER, "of queries and keys"),
        Field("value_dim", INTEGER),
        Field("dtype", INTEGER, "Dtype"),
        Field("features", INTEGER, "Features"),
        Field("normalize", INTEGER, "Normalisation"),
        Field("local", INTEGER, "LocalKind"),
        Field("taps", INTEGER, "along one axis"),
        Field("height", INTEGER),
        Field("width", INTEGER),
        Field("prefix", INTEGER, "tokens before the grid"),
        Field("identity", REAL, "ι"),
        Field("gamma", REAL, "γ"),
        Field("kv_scale", REAL, "s; 0: 1/N"),
        Field("eps", REAL, "under the root of every norm"),
        Field("row_eps", REAL, "added to a row sum"),
    ),
)
LINEAR_OPTIONAL = Block(
    "optional",
    "Often absent.",
    (
        Field("residual", OPTIONAL_TENSOR),
        Field("key_mask", "const uint8_t*", "1 where a key takes part"),
        Field("mask_batch", INTEGER, "stride"),
        Field("mask_token", INTEGER, "stride"),
    ),
)
LINEAR_GRADIENTS = Block(
    "gradients",
    "Backward only; channels contiguous.",
    (
        Field("d_query", OPTIONAL_TENSOR),
        Field("d_key", OPTIONAL_TENSOR),
        Field("d_value", OPTIONAL_TENSOR),
        Field("d_residual", OPTIONAL_TENSOR),
        Field("d_local_weight", "float*", "contiguous, written"),
        Field("d_constant", "float*", "one float: the gradient of a"),
    ),
)
LINEAR = Structure(
    "LinearArguments",
    "Linear attention, forward and backward: castling/ops/linear_attention.py has the formula.",
    (
        Field("query", TENSOR),
        Field("key", TENSOR),
        Field("value", TENSOR),
        Field("out", TENSOR, "backward: the gradient of the output"),
        Field("local_weight", "const float*", "contiguous; null: no convolution"),
        Field("state", "float*", "(B, H, d·d_v + d + d_v): written forward unless null, then read"),
        Field("threads", INTEGER),
        Field("constant", REAL, "a"),
        LINEAR_FORMULA,
        LINEAR_OPTIONAL,
        LINEAR_GRADIENTS,
    ),
)

TAYLOR = Structure(
    "TaylorArguments",
    "Exact second-order Taylor attention, forward and backward.",
    (
        Field("threads", INTEGER),
        Field("dtype", INTEGER, "Dtype"),
        *(Field(name, INTEGER) for name in ("batch", "heads", "queries", "keys")),
        Field("dim", INTEGER, "of queries and keys"),
        Field("value_dim", INTEGER),
        Field("normalise", INTEGER, "1: z = ⟨q̂, k̂⟩; 0: ⟨q, k⟩/√d"),
        Field("features", INTEGER, "order: 0 direct, 1 features"),
        Field("eps", REAL, "under norms, and added to the mean of a row of similarities"),
        Field("key_mask", "const uint8_t*", "(batch, keys) contiguous, 1: takes part; or null"),
        Field("state", "float*", "null where nothing is saved"),
        Field("query", TENSOR),
        Field("key", TENSOR),
        Field("value", TENSOR),
        Field("out", TENSOR),
        Field("grad_out", OPTIONAL_TENSOR, "backward only, as those below"),
        Field("grad_query", OPTIONAL_TENSOR),
        Field("grad_key", OPTIONAL_TENSOR),
        Field("grad_value", OPTIONAL_TENSOR),
    ),
)

ADDITIVE_BLOCK = Structure(
    "AdditiveBlockArguments",
    "The folded CAS-ViT block: its weights are packed once, then read by every forward pass.",
    (
        Field("weights", "const float* const*", "to pack: contiguous, in BlockWeights' order"),
        Field("packed", "float*", "written to pack, read forward"),
        Field("size", "int64_t*", "written: the floats of `packed`"),
        Field("x", "const float*", "(batch, height, width, channels), contiguous"),
        Field("out", "float*", "the same shape"),
        *(Field(name, INTEGER) for name in ("batch", "height", "width", "channels", "hidden")),
        Field("local", INTEGER, "whether there is a local integration"),
        Field("threads", INTEGER),
    ),
)

#: Number of weights of a block that has a local integration.
WITH_LOCAL = 24

MULTIPLY_ADD = Structure(
    "MultiplyAddArguments",
    "The rate of multiply-adds of one thread.",
    (Field("rate", "double*", "written: 10⁹ floating-point operations a second, two each"),),
)

STRUCTURES = (LINEAR, TAYLOR, ADDITIVE_BLOCK, MULTIPLY_ADD)
HEADER = Path(__file__).parent / "csrc" / "arguments.h"

#: PyTorch's precisions and the enumeration's numbers.
DTYPES = {getattr(torch, name.lower()): i for i, name in enumerate(ENUMERATIONS["Dtype"])}


def numbers(enumeration: str) -> dict[str, int]:
    """Enumerators in lower case, as options have them, and their numbers."""
    return {name.lower(): i for i, name in enumerate(ENUMERATIONS[enumeration])}


def header_text() -> str:
    """What ``csrc/arguments.h`` must hold."""
    return header(STRUCTURES, ENUMERATIONS, "python -m castling.ops.native")


def dtype_code(*tensors: Tensor) -> int:
    """The library's number for the one precision of all tensors.

    Raises:
        ValueError: they differ, or the library does not support it.
    """
    dtype = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype != dtype or dtype not in DTYPES:
            names = ", ".join(str(each.dtype).removeprefix("torch.") for each in tensors)
            raise ValueError(
                "the native operators take tensors of one precision, float32, bfloat16 or "
                f"float16; got {names}: convert them, or use the naive backend"
            )
    return DTYPES[dtype]
