"""Conversion of a pretrained model: each stage nearer to the teacher, and the right numbers."""

import copy
import dataclasses

import pytest
import timm
import torch
from tests.conversion.pretrained_vit import images, teacher, transformers_vit
from torch import nn
from torch.nn import functional as F

import castling
from castling import tap
from castling.attention import auxiliaries
from castling.conversion import ConversionConfig, convert, stages
from castling.conversion.images import Views
from castling.conversion.layers import layer_errors, solve_projections
from castling.surgery.hosts import HostAttention

SHORT = ConversionConfig(
    closed_form_images=256,
    layer_views=240,
    model_views=240,
    held_out=8,
    new_lr=2e-3,
    layer_lr=1e-3,
    attention_lr=5e-4,
    rest_lr=5e-5,
)


@pytest.mark.parametrize(
    "attention",
    ["relu_linear", castling.QuadraticTaylor(form="exact", qk_norm=False), "hedgehog"],
    ids=["relu", "taylor", "hedgehog"],
)
def test_every_stage_comes_nearer(attention):
    model = teacher()
    before = copy.deepcopy(model.state_dict())
    calls = []
    student, report = convert(
        model, images(), attention, config=SHORT, progress=lambda *said: calls.append(said)
    )
    assert [stage.stage for stage in report.stages] == [
        "replaced",
        "closed form",
        "layer by layer",
        "end to end",
    ]
    errors = [stage.mean_layer_error for stage in report.stages]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < 0.97 * errors[1]
    assert report.stages[3].output_error < 0.95 * report.stages[0].output_error
    assert report.stages[3].cosine > report.stages[0].cosine - 0.01
    assert [stage.views for stage in report.stages] == [0, 256, 240, 240]
    assert report.images == 8
    assert not report.not_fitted
    assert report.switch is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    layers = castling.surgery.convertible(student)
    assert all(isinstance(layer, HostAttention) for layer in layers.values())
    assert not student.training
    assert calls[0][:3] == ("layer by layer", 8, 240)
    assert calls[-1][:3] == ("end to end", 240, 240)
    assert "end to end" in str(report)
    assert report.to_dict()["stages"][3]["views"] == 240


def test_softmax_needs_nothing():
    model = teacher()
    config = ConversionConfig(closed_form_images=8, layer_views=0, model_views=0, held_out=8)
    student, report = convert(model, images(), "softmax", config=config)
    for stage in report.stages:
        assert stage.mean_layer_error < 1e-8
        assert stage.agreement == 1.0
    name = "blocks.0.attn.proj.weight"
    torch.testing.assert_close(student.get_parameter(name), model.get_parameter(name))


@pytest.mark.parametrize("bias", [True, False])
def test_the_closed_form_is_the_minimum(bias):
    model = teacher()
    if not bias:
        for block in model.blocks:
            block.attn.proj = nn.Linear(block.attn.proj.in_features, 64, bias=False)
        assert model.embed_dim == 64
    student = copy.deepcopy(model)
    names = castling.linearize_(student, "relu_linear")
    layers = {name: student.get_submodule(name) for name in names}
    layer = layers["blocks.1.attn"]
    batches, ridge = images(256), 1e-3
    inputs, targets = [], []
    with torch.no_grad():
        handle = layer.proj.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
        for batch in batches:
            with tap(model) as taps:
                model(batch)
            call = taps["blocks.1.attn"][0]
            call.replay(layer)
            targets.append(call.output)
        handle.remove()
        x = torch.cat(inputs).flatten(0, 1).double()
        y = torch.cat(targets).flatten(0, 1).double()
        weight, offset = layer.proj.weight.double(), layer.proj.bias
        pull = x.square().sum(0).mean() * ridge
        # The same problem as ordinary least squares: the pull is rows of data of its own.
        rows = torch.cat([x, pull.sqrt() * torch.eye(x.shape[1]).double()])
        wanted = torch.cat([y, pull.sqrt() * weight.T])
        if bias:
            ones = torch.cat([x.new_ones(len(x), 1), x.new_zeros(x.shape[1], 1)])
            rows = torch.cat([rows, ones], dim=1)
        solution = torch.linalg.lstsq(rows, wanted).solution
    before = layer_errors(model, layers, batches)
    assert solve_projections(model, layers, batches, [ridge]) == {}
    after = layer_errors(model, layers, batches)
    assert all(after[name] < before[name] for name in names)
    torch.testing.assert_close(
        layer.proj.weight.double(), solution[: x.shape[1]].T, rtol=1e-3, atol=1e-5
    )
    if bias:
        torch.testing.assert_close(layer.proj.bias.double(), solution[-1], rtol=1e-3, atol=1e-4)
    else:
        assert offset is None


def test_projections_that_cannot_be_solved_are_listed():
    torch.manual_seed(0)
    model = timm.create_model("levit_128s", img_size=64, num_classes=4).eval()
    config = ConversionConfig(closed_form_images=4, layer_views=8, model_views=0, held_out=4)
    batches = list(torch.randn(16, 3, 64, 64).split(4))
    _, report = convert(model, batches, "relu_linear", config=config)
    assert set(report.not_fitted) == set(report.replaced)
    assert "not solved in closed form" in str(report)


def test_features_and_chosen_layers():
    model = teacher(classes=0)
    student, report = convert(model, images(), "relu_linear", "blocks.[12].attn", config=SHORT)
    assert list(report.replaced) == ["blocks.1.attn", "blocks.2.attn"]
    assert report.stages[-1].agreement is None
    assert report.stages[-1].cosine > report.stages[0].cosine
    with torch.no_grad():
        batch = images()[0]
        cosine = F.cosine_similarity(student(batch), model(batch)).mean()
    assert float(cosine) == pytest.approx(report.stages[-1].cosine, abs=1e-5)


def test_auxiliary_branches_are_switched_away():
    attention = castling.LinearAngular(
        local="grid2d",
        constant="mean",
        normalize="rowsum",
        auxiliary=castling.MaskedSoftmax(schedule="ramp"),
    )
    student, report = convert(teacher(), images(), attention, config=SHORT)
    assert report.switch is not None
    assert report.switch.max_gap == 0
    assert not auxiliaries(student)
    # The branch helped at first and is gone at the end: what counts is the kernel without it.
    alone = dataclasses.replace(attention, auxiliary=None)
    nothing = ConversionConfig(closed_form_images=0, layer_views=0, model_views=0, held_out=8)
    _, unlearned = convert(teacher(), images(), alone, config=nothing)
    assert report.stages[-1].output_error < unlearned.stages[0].output_error


def test_a_model_of_transformers():
    model = transformers_vit(5, initializer_range=0.3)
    _, report = convert(model, images(), "relu_linear", config=SHORT)
    assert report.stages[-1].agreement is not None
    assert report.stages[2].mean_layer_error < 0.97 * report.stages[0].mean_layer_error
    assert not report.not_fitted


def test_held_out_images_are_never_learned_from():
    tagged = torch.arange(20.0)[:, None, None, None].expand(20, 3, 4, 4)
    views = Views(list(tagged.split(6)), torch.device("cpu"), 8)
    assert torch.cat(views.held_out)[:, 0, 0, 0].tolist() == list(range(8))
    seen = []
    for batch in views:
        seen += batch[:, 0, 0, 0].tolist()
        if len(seen) >= 24:
            break
    assert seen == [*range(8, 20), *range(8, 20)]


def test_wrong_images_are_refused_before_any_work():
    model = teacher()
    with pytest.raises(ValueError, match="no images"):
        convert(model, [])
    with pytest.raises(TypeError, match=r"float.*uint8"):
        convert(model, [torch.zeros(2, 3, 32, 32, dtype=torch.uint8)])
    with pytest.raises(TypeError, match="got str"):
        convert(model, ["photo.jpg"])
    with pytest.raises(ValueError, match="all 8 images are held out"):
        convert(model, images(8), config=SHORT)
    bad = [*images(16), torch.full((8, 3, 32, 32), float("nan"))]
    only = ConversionConfig(closed_form_images=0, layer_views=24, held_out=16)
    for wrong in (bad, bad[::-1]):
        with pytest.raises(ValueError, match="NaN or infinity"):
            convert(model, wrong, config=only)
    with pytest.raises(ValueError, match="an iterator gives them once"):
        convert(model, iter(images(24)), config=only)
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="small steps vanish"):
            convert(teacher().to(half), images(), config=only)
    dropping = teacher()
    dropping.forward = lambda batch: F.dropout(type(dropping).forward(dropping, batch))
    with pytest.raises(ValueError, match="answers the same images differently"):
        convert(dropping, images(), config=only)


def test_a_new_local_residual_starts_at_zero():
    config = ConversionConfig(closed_form_images=0, layer_views=0, model_views=0, held_out=8)
    attentions = [castling.ReLULinear(), castling.ReLULinear(local="grid2d")]
    reports = [convert(teacher(), images(), a, config=config)[1] for a in attentions]
    alone, beside = (report.stages[0].layer_errors for report in reports)
    assert alone == beside
    moved, report = convert(teacher(), images(), attentions[1], config=SHORT)
    assert bool(moved.blocks[0].attn.dconv.weight.any())
    assert report.stages[2].mean_layer_error < report.stages[1].mean_layer_error


def test_a_loss_that_explodes_is_said():
    wild = ConversionConfig(closed_form_images=0, layer_views=64, layer_lr=1e30, held_out=8)
    with pytest.raises(ValueError, match=r"layer by layer.*not finite.*lower its learning"):
        convert(teacher(), images(), config=wild)


def test_fixed_parameters_stay_and_the_caller_may_have_no_gradients():
    model = teacher()
    model.pos_embed.requires_grad_(False)
    with torch.no_grad():
        student, _ = convert(model, images(), config=SHORT)
    assert torch.equal(student.pos_embed, model.pos_embed)
    assert not student.pos_embed.requires_grad
    assert student.head.weight.requires_grad
    assert not torch.equal(student.head.weight, model.head.weight)
    student, _ = convert(model.requires_grad_(False), images(), config=SHORT)
    assert not torch.equal(student.head.weight, model.head.weight)


def test_towers_are_called_as_the_user_says():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes["intermediate_size"] = 64
    config = transformers.CLIPConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        text_config={**sizes, "vocab_size": 50},
    )
    _, report = convert(
        transformers.CLIPModel(config).eval(),
        images(),
        config=SHORT,
        compared=lambda model, batch: model.get_image_features(pixel_values=batch).pooler_output,
    )
    assert report.stages[-1].agreement is None


def test_layers_without_anything_to_solve_are_left():
    model = teacher()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.zero_()
            block.attn.qkv.bias.zero_()
    config = ConversionConfig(closed_form_images=8, layer_views=0, model_views=0, held_out=8)
    _, report = convert(model, images(), config=config)
    assert len(report.not_fitted) == 4


def test_a_plan_that_keeps_all_is_refused(tmp_path):
    model = teacher()
    layers = dict.fromkeys(castling.surgery.convertible(model), None)
    with pytest.raises(ValueError, match=r"selects none|nothing to convert"):
        convert(model, images(), "relu_linear", layers)


def test_settings_without_a_meaning_are_refused():
    for wrong in (
        {"layer_views": -1},
        {"ridges": (0.0,)},
        {"temperature": 0.0},
        {"warmup": 1.0},
        {"held_out": 0},
        {"closed_form_images": 1},
        {"outputs": "both"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ConversionConfig(**wrong)


class OwnViT(nn.Module):
    """Somebody's model: attention that nobody has an adapter for."""

    num_classes = 5

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 8, 8)
        self.attn = OwnAttention()
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head((tokens + self.attn(tokens)).mean(1))


class OwnAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.head_dim = 2, 16
        self.to_qkv, self.to_out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = self.to_qkv(x).mul(3).unflatten(-1, (3, 2, 16)).transpose(1, 3).unbind(2)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_own_models_are_converted_where_layers_are_named():
    torch.manual_seed(0)
    _, report = convert(OwnViT().eval(), images(), "relu_linear", ["attn"], SHORT)
    assert list(report.replaced) == ["attn"]
    errors = [stage.mean_layer_error for stage in report.stages]
    assert errors[2] < errors[1] < errors[0]
    assert not report.not_fitted


def test_the_switch_compares_what_the_stages_compare():
    attention = castling.ReLULinear(auxiliary=castling.MaskedSoftmax(schedule="ramp"))
    _, of_logits = convert(teacher(), images(), attention, config=SHORT)
    assert of_logits.switch.agreement == 1.0
    _, report = convert(
        teacher(),
        images(),
        attention,
        config=SHORT,
        compared=lambda model, batch: model.forward_features(batch),
    )
    assert report.switch.agreement is None  # features have no classes


def test_several_outputs_are_averaged():
    def two(model, batch):
        tokens = model.forward_features(batch)
        return [tokens, 3 * tokens[..., :7]]

    student, report = convert(teacher(), images(), "relu_linear", config=SHORT, compared=two)
    batch = images()[0]
    with torch.no_grad():
        pairs = zip(two(student, batch), two(teacher(), batch), strict=True)
        figures = [
            (
                F.cosine_similarity(a, b, dim=-1).mean(),
                ((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).mean(),
            )
            for a, b in pairs
        ]
    assert report.stages[-1].cosine == pytest.approx(sum(float(c) for c, _ in figures) / 2)
    assert report.stages[-1].output_error == pytest.approx(sum(float(e) for _, e in figures) / 2)
    assert report.stages[-1].agreement is None


def test_a_branch_closes_evenly_over_both_stages():
    attention = castling.ReLULinear(auxiliary=castling.MaskedSoftmax(schedule="ramp"))
    config = dataclasses.replace(SHORT, layer_views=32, model_views=96, closed_form_images=0)
    seen, original = [], stages.set_progress
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "set_progress", lambda m, p: (seen.append(p), original(m, p)))
        convert(teacher(), images(), attention, config=config)
    assert seen == [1.0, *(i / 16 for i in range(4)), 1.0, *(i / 16 for i in range(4, 16)), 1.0]
