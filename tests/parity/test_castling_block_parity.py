"""Our official preset against numbers that the authors' block gave for the same weights and tokens.

Weights and tokens follow a rule (``fixed_values``), so only outputs are stored:
golden_castling_block.json was written by running the public code, class ``LinAngularAttention``
of ``attention.py``, in float32.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import castling
from castling.attention import Attention

GOLDEN = json.loads((Path(__file__).parent / "golden_castling_block.json").read_text())


def fixed_values(name, shape, scale=1.0):
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.tensor(random.normal(0, scale, shape), dtype=torch.float32)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_reference_block(case):
    auxiliary = None
    if case["sparse_reg"]:
        auxiliary = castling.MaskedSoftmax(threshold="fixed", epsilon=0.02, schedule="constant")
    block = Attention(
        case["dim"],
        case["heads"],
        castling.LinearAngular(preset="official", auxiliary=auxiliary),
        qkv_bias=case["qkv_bias"],
    )
    state = block.state_dict()
    assert sorted(state) == case["keys"]
    block.load_state_dict(
        {n: fixed_values(n, tuple(t.shape), t[0].numel() ** -0.5) for n, t in state.items()}
    )
    tokens = fixed_values("tokens", (2, case["tokens"], case["dim"]))
    out = block(tokens)
    golden = torch.tensor(case["output"])
    sample = out.flatten()[:: case["every"]]
    torch.testing.assert_close(sample, golden, rtol=1e-6, atol=1e-6)
    out.square().sum().backward()
    gradient = block.qkv.weight.grad
    assert float(gradient.norm()) == pytest.approx(case["gradient_norm"], rel=1e-5)


def test_the_reference_turns_nan_where_our_preset_does_not():
    """One zero token makes every output of the reference block NaN; eps keeps ours finite."""
    tokens = torch.randn(1, 16, 32)
    tokens[0, 3] = 0
    assert Attention(32, 4, castling.LinearAngular(preset="official"))(tokens).isnan().all()
    assert Attention(32, 4, castling.LinearAngular())(tokens, grid=(4, 4)).isfinite().all()
