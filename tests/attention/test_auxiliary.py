"""The auxiliary branch: thresholds, schedules, statistics, and that it sits on any kernel."""

import copy
import math

import pytest
import torch

from castling.attention import (
    Attention,
    LinearAngular,
    MaskedSoftmax,
    attention_config,
    auxiliaries,
    auxiliary_penalty,
    collect_statistics,
    config_to_dict,
    list_kernels,
    set_progress,
)
from castling.attention.config import BareConfig

WITH_BRANCH = [n for n in list_kernels() if not isinstance(attention_config(n), BareConfig)]


def with_branch(name, **options):
    return attention_config(
        {**config_to_dict(attention_config(name)), "auxiliary": MaskedSoftmax(**options)}
    )


def mixer(config):
    return Attention(32, 4, config)


@pytest.mark.parametrize("name", WITH_BRANCH)
def test_every_kernel_takes_the_branch_and_loses_it_exactly(name):
    x = torch.randn(2, 17, 32)
    place = {"grid": (4, 4), "num_prefix_tokens": 1}
    bare = mixer(name).eval()
    both = mixer(with_branch(name)).eval()
    assert both.state_dict().keys() == bare.state_dict().keys()
    both.load_state_dict(bare.state_dict())
    assert not torch.allclose(both(x, **place), bare(x, **place))
    set_progress(both, 1.0)
    assert torch.equal(both(x, **place), bare(x, **place))


@pytest.mark.parametrize("name", WITH_BRANCH)
def test_the_branch_trains_through_every_kernel(name):
    model = mixer(with_branch(name, penalty=0.1))
    out = model(torch.randn(2, 17, 32), grid=(4, 4), num_prefix_tokens=1)
    (out.square().sum() + auxiliary_penalty(model)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.qkv.weight.grad.abs().sum() > 0


def test_relative_threshold_follows_the_tokens_and_fixed_does_not():
    model = mixer(with_branch("linear_angular", threshold="relative", alpha=2.0))
    branch = model.auxiliary
    assert float(branch.threshold(196)) == pytest.approx(2 / 196)
    assert float(branch.threshold(1)) == 1.0  # clamped: a weight cannot exceed one
    fixed = mixer(with_branch("linear_angular", threshold="fixed", epsilon=0.02)).auxiliary
    assert float(fixed.threshold(196)) == pytest.approx(0.02)


def test_fixed_threshold_cannot_empty_below_its_inverse():
    """N < 1/ε: some weight of each row is at least 1/N > ε (castling-vit.md §3)."""
    config = with_branch("linear_angular", threshold="fixed", schedule="constant")
    for tokens, survives in [(49, True), (1024, False)]:
        model = mixer(config)
        with collect_statistics(model) as statistics:
            model(torch.randn(1, tokens, 32) * 1e-3, grid=(tokens, 1))
        assert (statistics[""].nonzero_fraction > 0) == survives


def test_ramp_is_geometric_and_ends_empty():
    model = mixer(with_branch("linear_angular", alpha=1.0, ramp_start=0.2, ramp_end=0.8))
    branch = model.auxiliary
    start = 1 / 100
    for progress, exponent in [(0.0, 1), (0.2, 1), (0.5, 0.5), (0.8, 0), (1.0, 0)]:
        branch.set_progress(progress)
        assert float(branch.threshold(100)) == pytest.approx(start**exponent, rel=1e-5)
        assert branch.empty == (progress >= 0.8)


def test_gate_fades_linearly():
    model = mixer(
        with_branch("linear_angular", schedule="gate", ramp_start=0.0, ramp_end=1.0)
    ).eval()
    x = torch.randn(1, 16, 32)
    q, k, v = model.qkv(x).reshape(1, 16, 3, 4, 8).unbind(2)
    full = model.auxiliary(q, k, v)
    model.auxiliary.set_progress(0.75)
    torch.testing.assert_close(model.auxiliary(q, k, v), 0.25 * full)
    model.auxiliary.set_progress(1.0)
    assert model.auxiliary.empty


def test_constant_schedule_never_claims_to_be_empty():
    model = mixer(with_branch("linear_angular", schedule="constant"))
    set_progress(model, 1.0)
    assert not model.auxiliary.empty


def test_progress_can_be_taken_back():
    model = mixer(with_branch("linear_angular"))
    set_progress(model, 1.0)
    set_progress(model, 0.0)
    assert not model.auxiliary.empty
    assert float(model.auxiliary.threshold(50)) == pytest.approx(0.5 / 50)


def test_empty_branch_is_not_computed():
    model = mixer(with_branch("linear_angular"))
    set_progress(model, 1.0)

    def fail(*args, **kwargs):
        raise AssertionError("an empty branch was computed")

    model.auxiliary.forward = fail
    model(torch.randn(1, 16, 32), grid=(4, 4))


def test_statistics_by_layer_name():
    model = torch.nn.ModuleDict(
        {"a": mixer(with_branch("linear_angular")), "b": mixer("linear_angular")}
    )
    assert list(auxiliaries(model)) == ["a"]
    x = torch.randn(2, 16, 32)
    with collect_statistics(model) as statistics:
        for _ in range(3):
            model["a"](x, grid=(4, 4))
    figures = statistics["a"]
    assert 0 < figures.nonzero_fraction <= 1
    assert 0 < figures.surviving_mass <= 1
    assert figures.output_gap > 0
    assert figures.threshold == pytest.approx(0.5 / 16)
    set_progress(model, 1.0)
    with collect_statistics(model) as statistics:
        model["a"](x, grid=(4, 4))
    assert statistics["a"].nonzero_fraction == statistics["a"].output_gap == 0
    assert statistics["a"].threshold == 1
    with collect_statistics(model) as statistics:
        pass
    assert math.isnan(statistics["a"].output_gap)


def test_penalty_is_summed_once_and_forgotten():
    model = mixer(with_branch("linear_angular", penalty=2.0))
    model(torch.randn(1, 16, 32) * 4, grid=(4, 4))
    first = auxiliary_penalty(model)
    assert first > 0
    assert first.requires_grad
    assert auxiliary_penalty(model) == 0
    model.eval()
    model(torch.randn(1, 16, 32), grid=(4, 4))
    assert auxiliary_penalty(model) == 0


def test_copies_keep_their_own_progress():
    model = mixer(with_branch("linear_angular"))
    twin = copy.deepcopy(model)
    set_progress(model, 1.0)
    assert not twin.auxiliary.empty
    assert float(twin.auxiliary.exponent) == 1.0


def test_changing_the_threshold_does_not_recompile():
    model = mixer(with_branch("linear_angular"))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(1, 16, 32)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for progress in (0.0, 0.4, 0.6):
            set_progress(model, progress)
            torch.testing.assert_close(compiled(x, grid=(4, 4)), model(x, grid=(4, 4)))


@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": 0.0},
        {"alpha": -1.0},
        {"ramp_start": 0.5, "ramp_end": 0.5},
        {"penalty": -1.0},
        {"memory_limit_mb": 0.0},
    ],
)
def test_meaningless_options_are_refused(options):
    with pytest.raises(ValueError, match=next(reversed(options))):
        MaskedSoftmax(**options)


def test_progress_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="progress"):
        set_progress(mixer(LinearAngular(auxiliary=MaskedSoftmax())), 1.5)


def test_padding_changes_nothing():
    """Masked keys count neither as attention nor in the relative threshold."""
    model = mixer(LinearAngular(local="none", auxiliary=MaskedSoftmax(alpha=1.0))).eval()
    x = torch.randn(2, 12, 32) * 3
    padded = torch.cat([x, torch.randn(2, 20, 32)], dim=1)
    mask = torch.arange(32)[None].expand(2, -1) < 12
    torch.testing.assert_close(model(padded, key_mask=mask)[:, :12], model(x))


def test_a_penalty_does_not_outlive_its_forward_pass():
    model = mixer(with_branch("linear_angular", penalty=1.0))
    x = torch.randn(1, 16, 32)
    model(x, grid=(4, 4))
    copy.deepcopy(model)  # the penalty is no leaf: copies leave it out
    set_progress(model, 1.0)
    assert auxiliary_penalty(model) == 0
    set_progress(model, 0.0)
    model(x, grid=(4, 4))
    model.eval()(x, grid=(4, 4))
    assert auxiliary_penalty(model) == 0


def test_the_gate_fades_the_penalty_too():
    model = mixer(with_branch("linear_angular", schedule="gate", penalty=1.0, ramp_start=0.0))
    x = torch.randn(1, 16, 32) * 3
    model(x, grid=(4, 4))
    full = auxiliary_penalty(model)
    set_progress(model, 0.4)
    model(x, grid=(4, 4))
    torch.testing.assert_close(auxiliary_penalty(model), 0.5 * full)


def test_a_penalty_without_gradient_is_not_passed_over():
    model = mixer(with_branch("linear_angular", penalty=1.0))
    with torch.no_grad():
        model(torch.randn(1, 16, 32), grid=(4, 4))
    with pytest.warns(UserWarning, match="reentrant"):
        auxiliary_penalty(model)


def test_built_without_storage_then_loaded():
    source = mixer(with_branch("linear_angular", schedule="constant")).eval()
    with torch.device("meta"):
        model = mixer(with_branch("linear_angular", schedule="constant")).eval()
    model.to_empty(device="cpu")
    model.auxiliary.exponent.fill_(7.0)
    model.load_state_dict(source.state_dict())
    x = torch.randn(1, 16, 32)
    torch.testing.assert_close(model(x, grid=(4, 4)), source(x, grid=(4, 4)))


def test_half_precision_thresholds():
    branch = mixer(with_branch("linear_angular")).half().auxiliary
    assert float(branch.threshold(100_000)) == pytest.approx(0.5e-5)
