"""A conversion that was interrupted anywhere ends as if it had not been."""

import dataclasses

import pytest
import torch
from tests.conversion.pretrained_vit import images, plan_of, teacher

import castling
from castling.conversion import Budget, ConversionConfig, convert
from castling.conversion import state as state_file
from castling.conversion.images import Views

CONFIG = ConversionConfig(closed_form_images=12, layer_views=40, model_views=40, held_out=12)
BRANCH = castling.ReLULinear(local="grid2d", auxiliary=castling.MaskedSoftmax(schedule="ramp"))


class StopError(Exception):
    """An interruption."""


def stop_at(stage, views):
    def progress(name, seen, count, loss):
        if name == stage and seen >= views:
            raise StopError(seen)

    return progress


@pytest.fixture(autouse=True)
def _written_after_every_step(monkeypatch):
    monkeypatch.setattr(state_file, "EVERY", 0.0)


def same(one, other):
    values = other.state_dict()
    return all(torch.equal(value, values[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize(
    ("stage", "views"),
    [("layer by layer", 8), ("layer by layer", 24), ("layer by layer", 40), ("end to end", 24)],
)
@pytest.mark.parametrize("rank", [0, 4])
def test_it_goes_on_to_the_same_result(tmp_path, stage, views, rank):
    path = tmp_path / "state.ckpt"
    config = dataclasses.replace(CONFIG, rank=rank)
    torch.manual_seed(0)
    whole, first = convert(teacher(), images(), BRANCH, config=config)
    order = {"config": config, "state": path}
    with pytest.raises(StopError) as stopped:
        convert(teacher(), images(), BRANCH, progress=stop_at(stage, views), **order)
    assert path.is_file()
    said = []
    resumed, second = convert(
        teacher(), images(), BRANCH, progress=lambda *one: said.append(one), **order
    )
    # The step during which it was interrupted is repeated, and none before it.
    assert said[0][:2] == (stage, stopped.value.args[0])
    assert same(whole, resumed)
    for one, other in zip(first.stages, second.stages, strict=True):
        assert dataclasses.replace(one, seconds=0) == dataclasses.replace(other, seconds=0)
    assert first.not_fitted == second.not_fitted
    assert first.switch.max_gap == second.switch.max_gap
    # What is finished is not learned again.
    again, third = convert(teacher(), images(), BRANCH, progress=stop_at(stage, 0), **order)
    assert same(whole, again)
    assert third.stages == second.stages


def test_a_budget_is_not_chosen_anew(tmp_path):
    budget = Budget(plan=plan_of([(3.0, 1.0)] * 4), milliseconds=7.0)
    order = {"config": CONFIG, "budget": budget}
    whole, first = convert(teacher(), images(), **order)
    order["state"] = tmp_path / "state.ckpt"
    with pytest.raises(StopError):
        convert(teacher(), images(), progress=stop_at("end to end", 24), **order)
    resumed, second = convert(teacher(), images(), **order)
    assert same(whole, resumed)
    assert first.chosen == second.chosen
    assert first.curve == second.curve


def test_less_may_be_asked_of_a_budget_that_could_not_be_kept(tmp_path):
    path = tmp_path / "state.ckpt"
    plan = plan_of([(3.0, 1.0)] * 4)
    order = {"config": dataclasses.replace(CONFIG, closed_form_images=0), "state": path}
    with pytest.raises(ValueError, match=r"Ask for less"):
        convert(teacher(), images(), budget=Budget(plan=plan, agreement=1.0), **order)
    said = []
    _, report = convert(
        teacher(),
        images(),
        budget=Budget(plan=plan, agreement=0.01),
        progress=lambda *one: said.append(one[0]),
        **order,
    )
    assert set(said) == {"end to end"}
    assert len(report.chosen.linear) == 4


def test_a_state_of_something_else_is_refused(tmp_path):
    path = tmp_path / "state.ckpt"
    with pytest.raises(StopError):
        convert(
            teacher(), images(), config=CONFIG, state=path, progress=stop_at("layer by layer", 8)
        )
    before = path.read_bytes()
    other = dataclasses.replace(CONFIG, layer_lr=1.0)
    with pytest.raises(ValueError, match=r"other arguments \(config\)"):
        convert(teacher(), images(), config=other, state=path)
    with pytest.raises(ValueError, match=r"other arguments \(attention\)"):
        convert(teacher(), images(), "hedgehog", config=CONFIG, state=path)
    moved = teacher()
    with torch.no_grad():
        moved.head.bias[0] += 1e-6
    with pytest.raises(ValueError, match=r"other arguments \(model\)"):
        convert(moved, images(), config=CONFIG, state=path)
    others = [-batch for batch in images()]
    with pytest.raises(ValueError, match=r"other arguments \(images, compared\)"):
        convert(teacher(), others, config=CONFIG, state=path)
    with pytest.raises(ValueError, match=r"other arguments \(compared\)"):
        convert(
            teacher(),
            images(),
            config=CONFIG,
            state=path,
            compared=lambda model, batch: model.forward_features(batch),
        )
    assert path.read_bytes() == before
    values = torch.load(path, weights_only=True)
    torch.save(values | {"schema": "castling conversion 0"}, path)
    with pytest.raises(ValueError, match="another version of castling"):
        convert(teacher(), images(), config=CONFIG, state=path)
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(ValueError, match="no state of a conversion"):
        convert(teacher(), images(), config=CONFIG, state=path)


@pytest.mark.parametrize("taken", range(1, 9))
def test_images_go_on_behind_those_taken(taken):
    tagged = list(torch.arange(20.0)[:, None, None, None].expand(20, 3, 2, 2).split(6))

    def numbers(views, count):
        batches = iter(views)
        return [next(batches)[:, 0, 0, 0].tolist() for _ in range(count)]

    whole = numbers(Views(tagged, torch.device("cpu"), 8), 12)
    views = Views(tagged, torch.device("cpu"), 8)
    views.skip(taken)
    assert views.taken == taken
    assert numbers(views, 12 - taken) == whole[taken:]
