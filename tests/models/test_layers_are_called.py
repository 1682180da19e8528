"""Whatever is put on a layer counts: hooks, pruning, parametrisations, fake quantisation.

For every layer of every family, with every attention. timm's hosts pass the same checks.
"""

import warnings

import pytest
import timm
import torch
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig, prepare_qat
from torch.nn.utils import parametrizations, parametrize, prune

import castling
from castling.attention import attention_config, list_kernels
from castling.attention.config import BareConfig
from castling.surgery import fold_

KERNELS = [name for name in list_kernels() if not isinstance(attention_config(name), BareConfig)]
MODELS = [
    *(("deit_pico", {"name": name, "local": "grid2d"}) for name in KERNELS),
    ("deit_pico", {"name": "linear_angular", "local": "token1d"}),
    ("deit_pico", {"name": "hedgehog", "separate": False}),
    ("castling_deit_pico", None),
    ("castling_levit_pico", None),
    ("levit_pico_conv", None),
    ("castling_mvitv2_pico", None),
    ("cas_vit_pico", None),
    ("cas_vit_pico", {"name": "linear_angular", "local": "grid2d"}),
    ("cas_vit_pico", {"name": "separable"}),
    ("qt_vit_pico", None),
    ("qt_vit_pico", {"name": "linear_angular", "local": "grid2d"}),
]


def ident(value):
    return value if isinstance(value, str) else "-".join(map(str, (value or {}).values())) or None


def build(name, attention):
    torch.manual_seed(0)
    if name == "levit_pico_conv":
        model = timm.create_model("levit_conv_128s", num_classes=5, img_size=64)
        castling.linearize_(model, castling.LinearAngular())
    elif attention is None:
        model = timm.create_model(name, num_classes=5)
    elif name == "deit_pico":
        model = timm.create_model(name, num_classes=5)
        castling.linearize_(model, attention)
    else:
        model = timm.create_model(name, num_classes=5, attention=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.2)
    size = 64 if "levit" in name else 32
    return model, torch.randn(2, 3, size, size)


def first(out):
    return out[0] if isinstance(out, tuple) else out


def weighted(model):
    """Every module with a weight of its own, and those that hold some, except lists."""
    return {
        name: module
        for name, module in model.named_modules()
        if next(module.parameters(), None) is not None and not isinstance(module, nn.ModuleList)
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "attention"), MODELS, ids=ident)
def test_hooks_of_every_module_fire(name, attention, training):
    model, x = build(name, attention)
    model.train(training)
    modules = weighted(model)
    fired, before = set(), set()
    for key, module in modules.items():
        module.register_forward_hook(lambda *args, key=key: fired.add(key))
        module.register_forward_pre_hook(lambda *args, key=key: before.add(key))
    model(x)
    assert not sorted(set(modules) - fired)
    assert not sorted(set(modules) - before)


@torch.no_grad()
@pytest.mark.parametrize(("name", "attention"), MODELS, ids=ident)
def test_a_hook_changes_no_more_than_rounding(name, attention):
    model, x = build(name, attention)
    model.eval()
    expected = model(x)
    for module in model.modules():
        module.register_forward_hook(lambda *args: None)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def owners(model):
    return [m for m in model.modules() if isinstance(m._parameters.get("weight"), nn.Parameter)]


class Scaled(nn.Module):
    def forward(self, weight):
        return 0.7 * weight

    def right_inverse(self, weight):
        return weight


def prune_(model):
    for module in owners(model):
        # By a mask of our own: l1_unstructured cannot take channels-last weights.
        prune.custom_from_mask(module, "weight", torch.rand(module.weight.shape) > 0.3)


def parametrize_(model):
    for module in owners(model):
        parametrize.register_parametrization(module, "weight", Scaled())


def old_weight_norm_(model):
    for module in owners(model):
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.utils.weight_norm(module, "weight")


def weight_norm_(model):
    for module in owners(model):
        if isinstance(module, nn.Conv2d | nn.Linear):
            parametrizations.weight_norm(module, "weight")


def make_permanent(model):
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
        elif "weight_mask" in module._buffers:
            prune.remove(module, "weight")
        elif "weight_g" in module._parameters:
            nn.utils.remove_weight_norm(module, "weight")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [prune_, parametrize_, old_weight_norm_, weight_norm_])
@pytest.mark.parametrize(("name", "attention"), MODELS, ids=ident)
def test_weights_that_are_recomputed_are_those_used(name, attention, change):
    """As a checkpoint of a pruned model is loaded into another pruned one, and trained on."""
    model, x = build(name, attention)
    other, _ = build(name, attention)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    change(model)
    change(other)
    other.load_state_dict(model.state_dict())
    make_permanent(model.eval())
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x), model(x), rtol=1e-5, atol=1e-5)
    optimiser = torch.optim.SGD(other.train().parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        first(other(x)).pow(2).sum().backward()
        optimiser.step()
    moved = [n for n, p in other.named_parameters() if n.endswith("weight_orig") and p.grad is None]
    assert not [n for n in moved if "auxiliary" not in n]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "attention"), MODELS, ids=ident)
def test_fake_quantised_layers_are_called(name, attention):
    model, x = build(name, attention)
    model.train().qconfig = get_default_qat_qconfig("x86")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = prepare_qat(model)
        first(model(x)).pow(2).sum().backward()
    quantised = {
        n: m
        for n, m in model.named_modules()
        if type(m).__module__.startswith("torch.ao.nn.qat") and hasattr(m, "weight_fake_quant")
    }
    assert quantised
    for key, module in quantised.items():
        observer = module.weight_fake_quant.activation_post_process
        assert observer.min_val.isfinite().all(), key
        assert module.weight.grad is not None, key


@torch.no_grad()
@pytest.mark.parametrize("change", [prune_, parametrize_])
@pytest.mark.parametrize("name", ["castling_levit_pico", "cas_vit_pico", "qt_vit_pico"])
def test_folding_leaves_what_is_recomputed_and_bakes_what_is_permanent(name, change):
    model, x = build(name, None)
    change(model.eval())
    expected = model(x)
    report = fold_(model, x)
    assert report.batch_norms_after == report.batch_norms_before
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    make_permanent(model)
    report = fold_(model, x)
    assert report.batch_norms_after < report.batch_norms_before
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_folded_model_that_is_changed_afterwards():
    for change in (prune_, parametrize_):
        model, x = build("cas_vit_pico", None)
        fold_(model.eval(), x)
        change(model)
        found = model(x)
        make_permanent(model)
        torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_conv", [False, True])
def test_a_conversion_that_is_refused_leaves_the_queries_path_of_levit(use_conv):
    host = timm.create_model("levit_conv_128s" if use_conv else "levit_128s", img_size=64).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = host(x)
        with pytest.raises(ValueError, match="as wide as its keys"):
            castling.linearize_(host, "convolutional_additive")
        torch.testing.assert_close(host(x), expected)
