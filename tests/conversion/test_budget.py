"""Which layers stay softmax: exact choices, and the models that they stand for."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conversion.pretrained_vit import images, plan_of, teacher

import castling
from castling.conversion import Budget, ConversionConfig, MixedModel, convert
from castling.conversion.budget import choose, frontier
from castling.surgery.hosts import HostAttention

STAGES = ConversionConfig(closed_form_images=32, layer_views=64, model_views=0, held_out=8)


def brute(plan, errors):
    """Every choice of layers: (time, error)."""
    layers = [layer for layer in plan.layers if layer.name in errors]
    found = []
    for chosen in itertools.product([False, True], repeat=len(layers)):
        saved = sum(
            round(1000 * (a.softmax_ms - a.linear_ms)) for a in itertools.compress(layers, chosen)
        )
        error = sum(errors[a.name] for a in itertools.compress(layers, chosen))
        found.append((plan.predicted.softmax - saved / 1000, error))
    return found


case = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=7
)


@given(case)
def test_the_frontier_holds_exactly_the_choices_that_no_other_beats(layers):
    plan = plan_of([(a / 8, b / 8) for a, b, _ in layers])
    errors = {one.name: e / 16 for one, (_, _, e) in zip(plan.layers, layers, strict=True)}
    choices = brute(plan, errors)
    best = {
        (t, e)
        for t, e in choices
        if not any((a <= t and b < e) or (a < t and b <= e) for a, b in choices)
    }
    found = [(one.milliseconds, one.layer_error) for one in frontier(plan, errors)]
    assert found == sorted(best, reverse=True)
    for one in frontier(plan, errors):
        assert one.layer_error == sum(errors[name] for name in one.linear)


@given(case, st.floats(0.0, 1.0))
def test_a_budget_of_time_is_an_exact_knapsack(layers, part):
    layers = [(a + b, b, e) for a, b, e in layers]
    plan = plan_of([(a / 8, b / 8) for a, b, _ in layers])
    errors = {one.name: e / 16 for one, (_, _, e) in zip(plan.layers, layers, strict=True)}
    slow, fast = plan.predicted.softmax, plan.predicted.linear
    limit = fast + part * 0.99 * (slow - fast)
    budget = Budget(plan=plan, milliseconds=limit)
    names, left = budget.candidates()
    assert set(names) == set(errors)
    assert not left
    chosen, curve = choose(budget, errors, lambda names: 1.0 - len(names) / 10)
    assert chosen.milliseconds <= limit + 1e-9
    assert chosen.layer_error == min(e for t, e in brute(plan, errors) if t <= limit + 1e-9)
    assert chosen in curve
    assert [one.milliseconds for one in curve] == sorted(
        (one.milliseconds for one in curve), reverse=True
    )


@given(st.lists(st.integers(1, 20), min_size=3, max_size=7, unique=True), st.integers(1, 100))
def test_a_budget_of_agreement_takes_the_fastest_that_keeps_it(errors, percent):
    plan = plan_of([(2.0, 1.0)] * len(errors))
    errors = {one.name: float(e) for one, e in zip(plan.layers, errors, strict=True)}
    total = sum(errors.values())

    def agreement(names):
        return 1 - sum(errors[name] for name in names) / total

    budget = Budget(plan=plan, agreement=percent / 100)
    good = [one for one in frontier(plan, errors) if agreement(one.linear) >= percent / 100]
    if good == [MixedModel((), plan.predicted.softmax, 0.0)]:
        with pytest.raises(ValueError, match="no layer can become linear"):
            choose(budget, errors, agreement)
        return
    chosen, _ = choose(budget, errors, agreement)
    assert chosen.linear == good[-1].linear
    assert chosen.agreement == agreement(chosen.linear)


def test_layers_that_gain_nothing_stay_softmax():
    few = plan_of([(2.0, 1.0)] * 2, tokens=64)  # heads of 32 dimensions
    with pytest.raises(ValueError, match=r"64 tokens are at most twice the 32 dimensions"):
        Budget(plan=few, agreement=0.9).candidates()
    enough = plan_of([(2.0, 1.0), (1.0, 1.5)], tokens=65)
    names, left = Budget(plan=enough, agreement=0.9).candidates()
    assert names == ("blocks.0.attn",)
    assert "takes 1.500 ms where it was measured, softmax 1.000" in left["blocks.1.attn"]


def test_budgets_without_a_meaning_are_refused():
    plan = plan_of([(2.0, 1.0)] * 2)
    for limits in ({}, {"milliseconds": 4.0, "agreement": 0.9}):
        with pytest.raises(ValueError, match="one of them"):
            Budget(plan=plan, **limits)
    with pytest.raises(ValueError, match=r"0\.98 is 98 %"):
        Budget(plan=plan, agreement=98)
    with pytest.raises(ValueError, match="milliseconds must be positive"):
        Budget(plan=plan, milliseconds=float("nan"))
    with pytest.raises(ValueError, match=r"2\.9 ms cannot be kept.*predicts 3\.00 ms"):
        Budget(plan=plan, milliseconds=2.9).candidates()
    with pytest.raises(ValueError, match=r"5\.00 ms for the model as it is, within 5 ms"):
        Budget(plan=plan, milliseconds=5.0).candidates()


def test_a_mixed_model_is_what_its_row_says():
    model = teacher()
    plan = plan_of([(3.0, 1.0), (3.0, 2.0), (3.0, 1.0), (1.0, 2.0)])
    budget = Budget(plan=plan, milliseconds=9.0)
    student, report = convert(model, images(), "relu_linear", config=STAGES, budget=budget)
    assert list(report.kept) == ["blocks.3.attn"]
    errors = report.stages[-1].layer_errors
    # Two milliseconds are to be saved: by blocks 0 or 2 alone, never by block 1.
    best = min(("blocks.0.attn", "blocks.2.attn"), key=errors.__getitem__)
    assert report.chosen.linear == (best,)
    assert report.chosen.milliseconds == pytest.approx(9.0)
    layers = castling.surgery.convertible(student)
    assert [name for name, one in layers.items() if isinstance(one, HostAttention)] == [best]
    batch = images()[0]  # those held out
    with torch.no_grad():
        same = student(batch).argmax(1) == model(batch).argmax(1)
    assert report.chosen.agreement == pytest.approx(float(same.float().mean()))
    assert [one.linear for one in report.curve] == [one.linear for one in frontier(plan, errors)]
    assert report.curve[0].agreement == 1.0
    assert "chosen" in str(report)
    assert "blocks.3.attn stays as it is" in str(report)
    assert list(report.replaced) == [best]
    others = {"blocks.0.attn", "blocks.1.attn", "blocks.2.attn"} - {best}
    assert {name for name, why in report.replaced.left.items() if "budget" in why} == others
    assert report.to_dict()["chosen"]["linear"] == (best,)


def test_a_mixed_model_goes_on_learning():
    plan = plan_of([(3.0, 1.0)] * 4)
    longer = dataclasses.replace(STAGES, model_views=64)
    budget = Budget(plan=plan, milliseconds=7.0)
    student, report = convert(teacher(), images(), "relu_linear", config=longer, budget=budget)
    assert set(report.stages[-1].layer_errors) == set(report.chosen.linear)
    assert len(report.chosen.linear) == 3
    assert len(report.stages[-2].layer_errors) == 4
    assert sum(isinstance(m, HostAttention) for m in student.modules()) == 3


def test_the_fastest_measured_choice_counts_where_agreement_does_not_fall_evenly():
    plan = plan_of([(2.0, 1.0), (2.0, 1.2), (2.0, 1.4), (2.0, 1.6)])
    errors = {one.name: 0.1 for one in plan.layers}
    found = {0: 1.0, 1: 0.96, 2: 0.9, 3: 0.9, 4: 0.99}
    budget = Budget(plan=plan, agreement=0.95)
    chosen, curve = choose(budget, errors, lambda names: found[len(names)])
    assert len(chosen.linear) == 4
    assert chosen == curve[-1]


def test_savings_below_a_microsecond_are_none():
    plan = plan_of([(2.0, 1.9999)] * 2)
    with pytest.raises(ValueError, match="no layer is worth converting"):
        Budget(plan=plan, agreement=0.9).candidates()


def test_a_plan_must_be_of_this_model_and_attention():
    plan = plan_of([(2.0, 1.0)] * 3)
    with pytest.raises(ValueError, match=r"does not mention blocks\.3"):
        convert(teacher(), images(), config=STAGES, budget=Budget(plan=plan, agreement=0.5))
    plan = plan_of([(2.0, 1.0)] * 4)
    with pytest.raises(ValueError, match="measured for"):
        convert(teacher(), images(), "hedgehog", budget=Budget(plan=plan, agreement=0.5))
    with pytest.raises(ValueError, match="leave where out"):
        convert(teacher(), images(), where="blocks.0.*", budget=Budget(plan=plan, agreement=0.5))
