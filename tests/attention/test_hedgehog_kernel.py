"""Hedgehog's learned maps inside an attention: state, options, and what each map changes."""

import pytest
import torch

from castling.attention import Attention, Hedgehog


def test_state_names_and_their_start():
    state = Attention(16, 2, Hedgehog()).state_dict()
    maps = {
        f"kernel.{which}_map.{part}" for which in ("query", "key") for part in ("weight", "bias")
    }
    assert {name for name in state if name.startswith("kernel.")} == maps
    assert torch.equal(state["kernel.key_map.weight"], torch.eye(8).expand(2, 8, 8))
    assert not state["kernel.query_map.bias"].any()
    shared = Attention(16, 2, Hedgehog(separate=False)).state_dict()
    assert not any("key_map" in name for name in shared)


@torch.no_grad()
@pytest.mark.parametrize("which", ["query_map", "key_map"])
def test_each_map_is_read(which):
    model, x = Attention(16, 2, Hedgehog()).eval(), torch.randn(1, 6, 16)
    before = model(x)
    getattr(model.kernel, which).weight.mul_(3)
    assert not torch.allclose(model(x), before)


@torch.no_grad()
def test_one_map_for_both_is_two_equal_maps():
    one, two = (Attention(16, 2, Hedgehog(separate=separate)) for separate in (False, True))
    one.kernel.query_map.weight.add_(0.3 * torch.randn(2, 8, 8))
    two.load_state_dict(one.state_dict(), strict=False)
    two.kernel.key_map.load_state_dict(one.kernel.query_map.state_dict())
    x = torch.randn(1, 6, 16)
    torch.testing.assert_close(one(x), two(x))


@torch.no_grad()
def test_the_two_activations_weigh_keys_differently():
    bounded, plain = (Attention(16, 2, Hedgehog(activation=kind)) for kind in ("softmax", "exp"))
    plain.load_state_dict(bounded.state_dict())
    x = 3 * torch.randn(1, 6, 16)
    assert not torch.allclose(bounded(x), plain(x), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"activation": "relu"}, '"softmax" or "exp"'), ({"eps": 0.0}, "eps must be positive")],
)
def test_options_without_a_meaning_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Hedgehog(**options)
