"""A layer's weights are read only where nothing was put on it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from castling.utils.plain import is_plain


class Scaled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def hooked(layer):
    layer.register_forward_hook(lambda *args: None)


def pre_hooked(layer):
    layer.register_forward_pre_hook(lambda *args: None)


def backward_hooked(layer):
    layer.register_full_backward_hook(lambda *args: None)


def pre_backward_hooked(layer):
    layer.register_full_backward_pre_hook(lambda *args: None)


def pruned(layer):
    prune.l1_unstructured(layer, "weight", amount=0.5)


def parametrised(layer):
    parametrize.register_parametrization(layer, "weight", Scaled())


def patched(layer):
    layer.forward = lambda x: x


def made_plain_attribute(layer):
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight


def subclassed(layer):
    class Own(type(layer)):
        pass

    layer.__class__ = Own


CHANGES = [
    hooked,
    pre_hooked,
    backward_hooked,
    pre_backward_hooked,
    pruned,
    parametrised,
    patched,
    made_plain_attribute,
    subclassed,
    spectral_norm,
    weight_norm,
    parametrizations.spectral_norm,
    parametrizations.weight_norm,
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change", CHANGES, ids=lambda change: f"{change.__module__}.{change.__name__}"
)
def test_a_touched_layer_is_not_plain(change):
    layer = nn.Conv2d(2, 2, 3)
    assert is_plain(layer, nn.Linear, nn.Conv2d)
    assert not is_plain(layer, nn.Linear)
    change(layer)
    assert not is_plain(layer, nn.Linear, nn.Conv2d)


def test_hooks_for_all_modules_and_their_removal():
    layer = nn.Linear(2, 2, bias=False)
    for register in (
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
    ):
        handle = register(lambda *args: None)
        assert not is_plain(layer, nn.Linear)
        handle.remove()
        assert is_plain(layer, nn.Linear)
    pruned(layer)
    prune.remove(layer, "weight")
    assert is_plain(layer, nn.Linear)
    parametrised(layer)
    parametrize.remove_parametrizations(layer, "weight")
    assert is_plain(layer, nn.Linear)
    assert not is_plain(None, nn.Linear)


def test_a_wrapped_weight_is_not_plain():
    from torch.testing._internal.two_tensor import TwoTensor

    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(TwoTensor(torch.ones(2, 2), torch.ones(2, 2)))
    assert not is_plain(layer, nn.Linear)
