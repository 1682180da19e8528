"""Quadratic Taylor attention in the generic mixer: every form, masks, auxiliary branch, state."""

from __future__ import annotations

import copy

import pytest
import torch

from castling.attention import (
    Attention,
    AttentionInputs,
    MaskedSoftmax,
    QuadraticTaylor,
    config_from_dict,
    config_to_dict,
)

FORMS = ["released", "compact", "exact", "kronecker", "pool", "chunk", "random"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_in_the_generic_mixer(form):
    torch.manual_seed(0)
    mixer = Attention(16, 2, QuadraticTaylor(form=form))
    x = torch.randn(2, 11, 16)
    out = mixer(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("form", FORMS)
def test_zero_input_is_finite_forward_and_backward(form):
    mixer = Attention(16, 2, QuadraticTaylor(form=form))
    x = torch.zeros(1, 7, 16, requires_grad=True)
    mixer(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_permutation_equivariance_and_key_mask(form):
    torch.manual_seed(1)
    mixer = Attention(16, 2, QuadraticTaylor(form=form)).double()
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    order = torch.randperm(10)
    assert torch.allclose(mixer(x[:, order]), mixer(x)[:, order], atol=1e-10)
    key_mask = torch.ones(2, 10, dtype=torch.bool)
    key_mask[:, 6:] = False
    changed = torch.cat((x[:, :6], x[:, 6:] + 5), dim=1)
    first, second = mixer(x, key_mask=key_mask), mixer(changed, key_mask=key_mask)
    assert torch.allclose(first[:, :6], second[:, :6], atol=1e-12)
    assert torch.allclose(first[:, :6], mixer(x[:, :6]), atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_feature_length_is_the_stated_one(form):
    kernel = Attention(32, 2, QuadraticTaylor(form=form)).kernel
    expected = {"released": 17, "compact": 17, "exact": 153, "kronecker": 290, "pool": 65}
    assert kernel.num_features == {**expected, "chunk": 65, "random": 17}[form]
    if form not in ("released", "exact"):
        assert kernel.features(torch.randn(3, 16)).shape == (3, kernel.num_features)


def test_exact_and_kronecker_are_the_same_attention():
    torch.manual_seed(2)
    exact = Attention(16, 2, QuadraticTaylor(form="exact")).double()
    kronecker = Attention(16, 2, QuadraticTaylor(form="kronecker")).double()
    kronecker.load_state_dict(exact.state_dict())
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    assert torch.allclose(exact(x), kronecker(x), atol=1e-10)


def test_weights_are_averages_so_constant_values_stay():
    """Rows of similarities are divided by their sum: what all values share comes out unchanged."""
    for form in FORMS:
        kernel = Attention(16, 2, QuadraticTaylor(form=form)).double().kernel
        q, k = torch.randn(2, 1, 6, 2, 8, dtype=torch.float64)
        out = kernel(AttentionInputs(q, k, torch.full_like(k, 3.0)))
        assert torch.allclose(out, torch.full_like(out, 3.0), atol=1e-6)


def test_released_is_blind_to_signs_and_exact_is_not():
    torch.manual_seed(3)
    q, k, v = torch.randn(3, 1, 12, 2, 8)
    flip = torch.randint(0, 2, k.shape) * 2 - 1.0
    for form, blind in (("released", True), ("compact", True), ("exact", False)):
        kernel = Attention(16, 2, QuadraticTaylor(form=form)).kernel
        out, flipped = (kernel(AttentionInputs(q, keys, v)) for keys in (k, k * flip))
        assert torch.allclose(out, flipped, atol=1e-6) is blind


def test_the_auxiliary_output_is_added_after_the_row_sum():
    kernel = Attention(16, 2, QuadraticTaylor()).kernel
    q, k, v, added = torch.randn(4, 1, 6, 2, 8)
    inputs = AttentionInputs(q, k, v)
    assert torch.allclose(kernel(inputs._replace(auxiliary_output=added)), kernel(inputs) + added)


def test_auxiliary_combines():
    config = QuadraticTaylor(auxiliary=MaskedSoftmax(schedule="ramp"))
    with_branch = Attention(16, 2, config)
    without = Attention(16, 2, QuadraticTaylor())
    without.load_state_dict(with_branch.state_dict())
    x = torch.randn(1, 9, 16)
    assert not torch.allclose(with_branch(x), without(x))
    with_branch.auxiliary.set_progress(1.0)
    assert torch.equal(with_branch(x), without(x))


def test_state_names():
    def extra_state(**options):
        state = Attention(16, 2, QuadraticTaylor(**options)).state_dict()
        return {name for name in state if name.startswith("kernel.")}

    assert extra_state() == {"kernel.ones_scale1"}
    assert extra_state(form="compact") == {"kernel.alpha", "kernel.gamma"}
    assert "kernel.beta" in extra_state(form="compact", beta_trainable=True)
    assert extra_state(form="compact", beta=0.5) == {"kernel.alpha", "kernel.gamma"}
    assert extra_state(form="random") == {"kernel.pairs"}
    assert extra_state(form="exact") == set()


def test_beta_brings_the_signs_back():
    torch.manual_seed(4)
    q, k, v = torch.randn(3, 1, 12, 2, 8)
    for options in ({"beta": 0.5}, {"beta": 0.5, "beta_trainable": True}):
        kernel = Attention(16, 2, QuadraticTaylor(form="compact", **options)).kernel
        assert kernel.num_features == 17
        out, flipped = (kernel(AttentionInputs(q, keys, v)) for keys in (k, -k))
        assert not torch.allclose(out, flipped, atol=1e-3)


def test_configuration_round_trip_copy_and_pickle(tmp_path):
    config = QuadraticTaylor(form="chunk", chunk=2, local="grid2d", auxiliary=MaskedSoftmax())
    assert config_from_dict(config_to_dict(config)) == config
    mixer = Attention(16, 2, QuadraticTaylor(form="random", seed=5))
    copied = copy.deepcopy(mixer)
    torch.save(mixer, tmp_path / "mixer.pt")
    opened = torch.load(tmp_path / "mixer.pt", weights_only=False)
    x = torch.randn(1, 5, 16)
    assert torch.equal(mixer(x), copied(x))
    assert torch.equal(mixer(x), opened(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "fancy"}, "form must be one of"),
        ({"order": "fast"}, "order must be"),
        ({"pool": 0}, "pool and chunk must be positive"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"form": "random", "qk_norm": False}, "needs qk_norm=True"),
    ],
)
def test_meaningless_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QuadraticTaylor(**options)


@pytest.mark.parametrize("form", ["pool", "chunk"])
def test_parts_must_divide_the_head(form):
    with pytest.raises(ValueError, match=f"{form}=3 does not divide the 8 channels"):
        Attention(16, 2, QuadraticTaylor(form=form, **{form: 3}))


@pytest.mark.parametrize("form", FORMS)
def test_compiles_without_a_graph_break(form):
    mixer = Attention(8, 1, QuadraticTaylor(form=form)).eval()
    x = torch.randn(1, 6, 8)
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), mixer(x), atol=1e-6)
