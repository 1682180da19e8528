"""Planning by a clock that only the layers turn: no speed of this machine is asserted."""

import pytest
import timm
import torch
from timm.layers.attention import Attention as TimmAttention

import castling
from castling.attention import LinearAngular, MaskedSoftmax, ReLULinear
from castling.profiling.layer_timing import Stopwatch, TimedModel
from castling.surgery.hosts.timm_vit import ViTAttention

CPU = torch.device("cpu")
#: Milliseconds of the layers of a model of two blocks, and of all that is no attention.
SOFTMAX, LINEAR, REST = (3.0, 1.0), (1.5, 2.0), 10.0


class Clock(Stopwatch):
    """Stands still until it is told."""

    def __init__(self):
        super().__init__(CPU)
        self.now = 0.0

    def mark(self):
        return self.now

    def seconds(self, start, end):
        return end - start

    def slow_down(self, monkeypatch, kind, milliseconds):
        """Make every layer of ``kind`` take its time; twins share their weights."""
        forward = kind.forward

        def timed(layer, *args, **options):
            self.now += milliseconds[id(layer.qkv.weight)] / 1e3
            return forward(layer, *args, **options)

        monkeypatch.setattr(kind, "forward", timed)


@pytest.fixture
def model():
    return timm.create_model("deit_pico", depth=2)


@pytest.fixture
def clock(monkeypatch, model):
    clock = Clock()
    weights = [id(block.attn.qkv.weight) for block in model.blocks]
    clock.slow_down(monkeypatch, TimmAttention, dict(zip(weights, SOFTMAX, strict=True)))
    clock.slow_down(monkeypatch, ViTAttention, dict(zip(weights, LINEAR, strict=True)))

    def rest(*_):
        clock.now += REST / 1e3

    model.head.register_forward_hook(rest)
    return clock


def plan_of(model, clock, attention="linear_angular", **options):
    options = {"image_size": 32, "rounds": 3, "seconds": 0, "stopwatch": clock} | options
    return castling.plan(model, attention, **options)


def test_softmax_stays_where_it_is_faster(model, clock):
    plan = plan_of(model, clock)
    assert [layer.choice for layer in plan.layers] == ["linear", "softmax"]
    assert [layer.softmax_ms for layer in plan.layers] == pytest.approx(list(SOFTMAX))
    assert [layer.linear_ms for layer in plan.layers] == pytest.approx(list(LINEAR))
    expected = (14.0, 13.5, 12.5)
    for times in (plan.predicted, plan.verified):
        assert (times.softmax, times.linear, times.planned) == pytest.approx(expected)
    assert plan.error == pytest.approx(0.0)
    assert castling.linearize_(model, "linear_angular", where=plan) == ["blocks.0.attn"]


def test_noise_leaves_no_time_below_zero(model, clock, monkeypatch, tmp_path):
    """The whole was timed in a lucky moment: shorter than its layers alone."""
    monkeypatch.setattr(TimedModel, "total", lambda self: 2.0)
    plan = plan_of(model, clock)
    assert plan.predicted.planned == pytest.approx(2.5)
    plan.save(tmp_path / "plan.json")
    assert castling.load_plan(tmp_path / "plan.json") == plan


def test_without_verification(model, clock):
    plan = plan_of(model, clock, verify=False)
    assert (plan.verified, plan.error) == (None, None)


def test_what_a_plan_knows_of_its_layers_and_leaves_alone(model, clock):
    before = list(model.modules())
    plan = plan_of(model, clock, ReLULinear(auxiliary=MaskedSoftmax()), batch=2, name="mine")
    assert plan.attention == ReLULinear()
    first = plan.layers[0]
    assert (first.tokens, first.heads, first.head_dim, first.value_dim) == (65, 2, 32, 32)
    assert (plan.model, plan.image_size, plan.batch) == ("mine", (32, 32), 2)
    assert (plan.torch, plan.threads) == (torch.__version__, torch.get_num_threads())
    assert list(model.modules()) == before
    assert model.training
    assert not any(block.attn._forward_hooks for block in model.blocks)


def test_a_converted_model_is_planned_with_softmax_back_in_place():
    model = timm.create_model("castling_deit_pico", depth=1)
    plan = plan_of(model, None, "linear_angular", rounds=1)
    assert [layer.name for layer in plan.layers] == ["blocks.0.attn"]
    assert model.blocks[0].attn.auxiliary is not None
    assert isinstance(model.blocks[0].attn.config, LinearAngular)
    assert castling.linearize_(model, "linear_angular", where=plan) == list(plan.linear)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("castling_levit_pico", [64, 64, 16, 16, 4]), ("castling_mvitv2_pico", None)],
)
def test_other_hosts(name, tokens):
    plan = plan_of(timm.create_model(name), None, image_size=(64, 64), rounds=1)
    if tokens is not None:
        assert [layer.tokens for layer in plan.layers] == tokens
    assert plan.model == name
    assert plan.verified is not None


def test_bad_input(model):
    with pytest.raises(ValueError, match="does not run at 30×30 pixels"):
        plan_of(model, None, image_size=30)
    with pytest.raises(ValueError, match="positive"):
        plan_of(model, None, batch=0)
    with pytest.raises(ValueError, match="no attention that can be replaced"):
        plan_of(timm.create_model("cas_vit_pico"), None)
