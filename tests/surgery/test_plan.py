"""Plans: written and read back, obeyed, and refused where they are wrong or of another model."""

import copy
import dataclasses
import json

import pytest
import timm
import torch

import castling
from castling.attention import LinearAngular, MaskedSoftmax, Softmax
from castling.surgery import Plan, PlanError, convertible, linearize_, load_plan
from castling.surgery.hosts import HostAttention
from castling.surgery.plan import PlannedLayer, Predicted, Verified

LINEAR = LinearAngular(local="none")


def layer(name, choice, heads=2):
    times = (2.0, 1.0) if choice == "linear" else (1.0, 2.0)
    return PlannedLayer(name, 65, heads, 32, 32, *times, choice)


def a_plan(*choices):
    choices = choices or ("softmax", "linear")
    return Plan(
        model="deit_pico",
        attention=LINEAR,
        device="cpu (some)",
        threads=1,
        torch="2.15.0",
        backends=("native", "naive"),
        image_size=(32, 64),
        batch=2,
        layers=tuple(layer(f"blocks.{i}.attn", choice) for i, choice in enumerate(choices)),
        predicted=Predicted(10.0, 9.0, 8.0),
        verified=Verified(10.5, 9.5, 8.5),
    )


def a_model(depth=2):
    return timm.create_model("deit_pico", depth=depth)


def test_round_trip(tmp_path):
    plan = a_plan()
    path = tmp_path / "plans" / "plan.json"
    plan.save(path)
    assert load_plan(path) == plan
    assert json.loads(path.read_text())["schema"] == "castling plan 1"
    unverified = dataclasses.replace(plan, verified=None)
    unverified.save(path)
    assert load_plan(path) == unverified
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]


def test_what_it_says():
    plan = a_plan()
    assert plan.linear == ("blocks.1.attn",)
    assert plan.error == pytest.approx(8 / 8.5 - 1)
    assert dataclasses.replace(plan, verified=None).error is None
    text = str(plan)
    assert "blocks.0.attn" in text
    assert "off by -5.9 %" in text


@pytest.mark.parametrize("form", ["plan", "path", "text"])
def test_linearize_obeys(tmp_path, form):
    plan, model = a_plan(), a_model()
    path = tmp_path / "plan.json"
    plan.save(path)
    where = {"plan": plan, "path": path, "text": str(path)}[form]
    assert linearize_(model, LINEAR, where) == ["blocks.1.attn"]
    assert [isinstance(m, HostAttention) for m in convertible(model).values()] == [False, True]


def test_a_plan_may_leave_all_as_it_is():
    model = a_model()
    before = list(model.modules())
    assert linearize_(model, LINEAR, a_plan("softmax", "softmax")) == []
    assert list(model.modules()) == before


def test_the_branch_of_training_does_not_matter_to_a_plan():
    model = a_model()
    config = dataclasses.replace(LINEAR, auxiliary=MaskedSoftmax())
    assert linearize_(model, config, a_plan()) == ["blocks.1.attn"]
    assert model.blocks[1].attn.auxiliary is not None


def test_plans_reach_models_wrapped_for_their_features():
    model = timm.create_model("deit_pico", depth=2, features_only=True, out_indices=[1])
    assert linearize_(model, LINEAR, a_plan()) == ["blocks.1.attn"]


@pytest.mark.parametrize(
    ("plan", "depth", "says"),
    [
        (a_plan(), 1, "it plans blocks.1.attn, which this model does not have"),
        (a_plan(), 3, "it does not mention blocks.2.attn"),
        (dataclasses.replace(a_plan(), layers=(layer("*", "linear"),)), 1, r"it plans \*"),
        (
            dataclasses.replace(a_plan(), layers=(layer("blocks.0.attn", "linear", heads=3),)),
            1,
            "blocks.0.attn has 2 heads here and 3 in the plan",
        ),
        (dataclasses.replace(a_plan(), attention=Softmax()), 2, "was measured for Softmax"),
    ],
)
def test_a_plan_of_another_model_is_refused_and_nothing_is_changed(plan, depth, says):
    model = a_model(depth)
    with pytest.raises(PlanError, match=says):
        linearize_(model, LINEAR, plan)
    assert not any(isinstance(m, HostAttention) for m in model.modules())


def changed(**entries):
    return {**a_plan().to_dict(), **entries}


def in_layer(**entries):
    values = copy.deepcopy(a_plan().to_dict())
    values["layers"] = list(values["layers"])
    values["layers"][0].update(entries)
    return values


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], '"schema" is not'),
        (changed(schema="castling plan 9"), "castling plan 9"),
        (changed(extra=1), "must have the entries"),
        ({k: v for k, v in a_plan().to_dict().items() if k != "batch"}, "see batch"),
        (changed(batch=0), "the plan's batch must be a positive integer"),
        (changed(batch=True), "batch"),
        (changed(batch=10**30), "batch"),
        (changed(model="a\nb"), "the plan's model must be a short text"),
        (changed(model="a" * 501), "model"),
        (changed(image_size=[32]), "image_size"),
        (changed(image_size="3232"), "image_size"),
        (changed(backends=[]), "backends"),
        (changed(backends=[7]), "backends"),
        (changed(layers={}), "layers must be a list"),
        (changed(layers=[]), "layers must be a list"),
        (changed(layers=[3]), "a layer must be an object"),
        (changed(layers=[a_plan().to_dict()["layers"][0]] * 2), "each once"),
        (in_layer(choice="best"), "choice must be one of softmax, linear"),
        (in_layer(choice=["linear"]), "choice"),
        (in_layer(softmax_ms=float("nan")), "softmax_ms must be a time"),
        (in_layer(softmax_ms=float("inf")), "softmax_ms"),
        (in_layer(softmax_ms=-1.0), "softmax_ms"),
        (in_layer(softmax_ms="1"), "softmax_ms"),
        (in_layer(softmax_ms=10**400), "softmax_ms"),
        (changed(attention="linear_angular"), "attention must be an object"),
        (changed(attention={"name": "os.system"}), "unknown attention"),
        (changed(attention={"name": ["x"]}), "attention"),
        (changed(attention={"name": "relu_linear", "eps": "x", "__class__": 1}), "attention"),
        (changed(predicted=None), "predicted must be an object"),
        (changed(verified=[]), "verified must be an object"),
    ],
)
def test_hostile_files(tmp_path, values, says):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(values))
    with pytest.raises(PlanError, match=says):
        load_plan(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b" " * (1 << 21)], ids=range(5)
)
def test_files_that_are_no_json(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match="is no plan"):
        load_plan(path)
    with pytest.raises(PlanError, match="is no plan"):
        linearize_(a_model(), LINEAR, path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such plan"):
        linearize_(a_model(), LINEAR, tmp_path / "absent.json")


def test_public_names():
    assert castling.load_plan is load_plan
    assert castling.Plan is Plan
    model = a_model().eval()
    castling.linearize_(model, LINEAR, where=a_plan())
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_plan_of_an_earlier_version_is_read():
    plan = a_plan()
    values = json.loads(json.dumps(plan.to_dict()))
    values["paths"] = values.pop("backends")
    assert Plan.from_dict(values) == plan
