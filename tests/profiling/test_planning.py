"""Planning with a clock that only the layers advance, so that no test depends on this machine."""

import json
from contextlib import contextmanager

import pytest
import timm
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from timm.layers.attention import Attention as TimmAttention
from timm.models import VisionTransformer
from torch.nn.modules.module import register_module_forward_hook

import castling
from castling.attention import LinearAngular, MaskedSoftmax, ReLULinear
from castling.profiling.layer_timing import Stopwatch
from castling.surgery.hosts import HostAttention
from castling.surgery.hosts.timm_vit import ViTAttention
from castling.surgery.plan import Plan, PlannedLayer, Predicted, Verified

CPU = torch.device("cpu")
#: Milliseconds of the attention layers of a model of two blocks, and of the rest.
SOFTMAX, LINEAR, REST = (3.0, 1.0), (1.5, 2.0), 10.0


class FakeClock(Stopwatch):
    """Stands still until it is told."""

    def __init__(self):
        super().__init__(CPU)
        self.now = 0.0

    def mark(self):
        return self.now

    def seconds(self, start, end):
        return end - start

    @contextmanager
    def running(self, model, softmax=SOFTMAX, linear=LINEAR, rest=REST):
        """Let the attention layers of ``model`` and its copies, and its head, take their time."""
        # Copies share the weights, and converted layers keep them.
        weights = [id(block.attn.qkv.weight) for block in model.blocks]
        times = {
            TimmAttention: dict(zip(weights, softmax, strict=True)),
            ViTAttention: dict(zip(weights, linear, strict=True)),
        }

        def hook(module, *_):
            if type(module) in times:
                self.now += times[type(module)][id(module.qkv.weight)] / 1e3
            elif isinstance(module, VisionTransformer):
                self.now += rest / 1e3

        handle = register_module_forward_hook(hook)  # runs before hooks of the module itself
        try:
            yield
        finally:
            handle.remove()


@pytest.fixture
def model():
    return timm.create_model("deit_pico", depth=2)


@pytest.fixture
def clock(model):
    clock = FakeClock()
    with clock.running(model):
        yield clock


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


def test_noise_leaves_no_negative_time(model):
    """The whole model was timed in a lucky moment: shorter than its attention layers alone."""
    clock = FakeClock()
    with clock.running(model, rest=-2.0):
        plan = plan_of(model, clock, verify=False)
    assert plan.predicted.softmax == pytest.approx(2.0)
    assert plan.predicted.planned == pytest.approx(2.5)


#: Milliseconds in whole microseconds, so that differences are far above rounding errors; at least
#: 10 ms, because shorter models are called many times.
TIMES = st.integers(10**4, 10**6).map(lambda microseconds: microseconds / 1e3)


@settings(max_examples=15, deadline=None, phases=[Phase.generate])
@given(softmax=st.tuples(TIMES, TIMES), linear=st.tuples(TIMES, TIMES), rest=TIMES)
def test_predictions_follow_from_the_times_of_the_layers(softmax, linear, rest):
    model = timm.create_model("deit_pico", depth=2, embed_dim=16, num_heads=1)
    clock = FakeClock()
    with clock.running(model, softmax, linear, rest):
        plan = plan_of(model, clock)
    predicted = plan.predicted
    assert predicted.softmax == pytest.approx(rest + sum(softmax))
    assert predicted.linear == pytest.approx(rest + sum(linear))
    assert predicted.planned == pytest.approx(rest + sum(map(min, softmax, linear)))
    assert predicted.planned <= min(predicted.softmax, predicted.linear) * (1 + 1e-9)
    assert plan.verified.planned == pytest.approx(predicted.planned)
    for layer, before, after in zip(plan.layers, softmax, linear, strict=True):
        assert before == after or layer.choice == ("linear" if after < before else "softmax")


TEXT = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20)
COUNT = st.integers(1, 10**6)
MILLISECONDS = st.floats(1e-6, 1e9)
LAYER = st.builds(
    PlannedLayer,
    *(TEXT, COUNT, COUNT, COUNT, COUNT, MILLISECONDS, MILLISECONDS),
    st.sampled_from(("softmax", "linear")),
)
ATTENTION = st.builds(
    LinearAngular,
    local=st.sampled_from(("none", "token1d", "grid2d")),
    eps=st.floats(1e-9, 1e-3),
) | st.builds(ReLULinear)
PLAN = st.builds(
    Plan,
    *(TEXT, ATTENTION, TEXT, COUNT, TEXT, st.lists(TEXT, min_size=1, max_size=3).map(tuple)),
    *(st.tuples(COUNT, COUNT), COUNT),
    st.lists(LAYER, min_size=1, max_size=4, unique_by=lambda layer: layer.name).map(tuple),
    st.builds(Predicted, MILLISECONDS, MILLISECONDS, MILLISECONDS),
    st.none() | st.builds(Verified, MILLISECONDS, MILLISECONDS, MILLISECONDS),
)


@given(PLAN)
def test_any_plan_survives_its_file(plan):
    written = json.loads(json.dumps(plan.to_dict()))
    assert Plan.from_dict(written) == plan


def test_a_plan_is_saved_and_loaded(model, clock, tmp_path):
    plan = plan_of(model, clock)
    plan.save(tmp_path / "plan.json")
    assert castling.load_plan(tmp_path / "plan.json") == plan


def test_without_verification(model, clock):
    plan = plan_of(model, clock, verify=False)
    assert (plan.verified, plan.error) == (None, None)


def test_a_plan_records_its_setting_and_leaves_the_model_unchanged(model, clock):
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


def test_a_converted_model_is_planned_against_softmax():
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


def test_a_plan_of_a_detector_names_the_layers_of_the_whole_model(tmp_path):
    name = "retinanet_pico/levit_s8_pico"
    model = castling.create_model(name, num_classes=3).eval()
    found = castling.plan(
        model, LinearAngular(), image_size=(64, 96), name=name, seconds=0.0, verify=False
    )
    assert found.model == name
    assert len(found.layers) == 5
    assert all(layer.name.startswith("backbone.body.") for layer in found.layers)
    assert found.layers[0].tokens == 96
    found.save(tmp_path / "plan.json")
    built = castling.create_model(
        name, num_classes=3, attention=LinearAngular(), where=tmp_path / "plan.json"
    )
    linear = {layer.name for layer in found.layers if layer.choice == "linear"}
    converted = {
        each
        for each, module in built.named_modules()
        if isinstance(module, HostAttention) and isinstance(module.config, LinearAngular)
    }
    assert converted == linear
