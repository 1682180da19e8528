"""``HEAD/BACKBONE`` by name: building, attention, saving, opening, weights to start from, training.

The head is a toy of ours that classifies, so that the task of classification can train it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from torch import Tensor, nn

import castling
from castling.attention import LinearAngular, Separable
from castling.models.builder import build_model
from castling.models.card import ModelCard
from castling.models.dense import (
    HeadConfig,
    MakeBackbone,
    head_config,
    head_to_dict,
    list_heads,
    register_head,
)
from castling.models.dense_weights import class_layers
from castling.models.names import split_name, timm_name
from castling.models.saved import open_model, save_model
from castling.models.starting_weights import check_start, start_from
from castling.surgery import HostAttention, Plan, convertible
from castling.surgery.plan import PlannedLayer, Predicted
from castling.train import recipe_from_dict, train
from castling.train.build import build, check, open_data
from castling.train.recipe import Recipe
from castling.train.recipe_file import parse_recipe, recipe_to_dict

if TYPE_CHECKING:  # as in heads of ours
    from jsonargparse.typing import PositiveInt


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(HeadConfig):
    """Options of the toy."""

    name = "toy"
    width: PositiveInt = 4
    strides: tuple[int, ...] = (8, 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherConfig(ToyConfig):
    """Options of another head."""

    name = "toy_other"


class Toy(nn.Module):
    """Logits from the pooled maps; a second layer of K outputs beside the classifier."""

    def __init__(self, config: ToyConfig, make: MakeBackbone, classes: int) -> None:
        super().__init__()
        self.num_classes = classes
        self.backbone = make(config.strides)
        self.neck = nn.ModuleList(nn.Linear(c, config.width) for c in self.backbone.channels)
        self.head = nn.Sequential(nn.Linear(config.width, 8), nn.GELU(), nn.Linear(8, classes))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone(images)
        pooled = [layer(x.mean((2, 3))) for layer, x in zip(self.neck, maps, strict=True)]
        return self.head(torch.stack(pooled).sum(0))


@register_head(
    ToyConfig, task="classification", sizes={"toy": {}, "toy_pico": {"width": 2, "strides": [8]}}
)
def _toy(config: ToyConfig, make: MakeBackbone, classes: int) -> nn.Module:
    return Toy(config, make, classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxesConfig(ToyConfig):
    """Options of a head for another task."""

    name = "toy_boxes"


@register_head(BoxesConfig, task="detection")
@register_head(OtherConfig, task="classification")
def _other(config: OtherConfig, make: MakeBackbone, classes: int) -> nn.Module:
    return Toy(config, make, classes)


LEVIT = {"img_size": 64}


def images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def weights_of(model: nn.Module, path: Path) -> Path:
    torch.save({"model": model.state_dict()}, path / "weights.pth")
    return path / "weights.pth"


# Names and options


def test_names() -> None:
    assert split_name("toy/timm:resnet18") == ("toy", "timm:resnet18")
    assert split_name("resnet18") == ("", "resnet18")
    assert split_name("hf:google/vit") == ("", "hf:google/vit")
    assert timm_name("toy/timm:resnet18") == "resnet18"
    assert {"toy", "toy_pico", "toy_other"} <= set(list_heads("classification"))
    with pytest.raises(ValueError, match=r"there is no head 'toi'.*did you mean"):
        castling.create_model("toi/resnet18")
    with pytest.raises(ValueError, match="timm knows no model 'resnet1'"):
        castling.create_model("toy/resnet1")
    for name in ("toy", "toy/"):
        with pytest.raises(ValueError, match=r"toy is a head alone; .* such as toy/cas_vit_xs"):
            castling.create_model(name)


def test_a_name_is_registered_once() -> None:
    class Elsewhere(HeadConfig):
        """Options of a head of another module."""

        name = "toy"

    Elsewhere.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="a head 'toy' already"):
        register_head(Elsewhere, task="classification")(lambda *_: torch.nn.Identity())


def test_options_of_a_size_and_of_the_caller() -> None:
    assert head_config("toy_pico") == ToyConfig(width=2, strides=(8,))
    config = head_config("toy_pico", {"width": 3, "freeze_batchnorm": True})
    assert config == ToyConfig(width=3, strides=(8,), freeze_batchnorm=True)
    written = head_to_dict("toy_pico", config)
    assert written["name"] == "toy_pico"
    assert head_config("toy_pico", written) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 3}, "no option 'widht' in model.head; did you mean width"),
        ({"width": 0}, "model.head.width is 0; it must be a whole number of at least 1"),
        ({"name": "picodet"}, "model.head.name is 'picodet', the model's head 'toy'"),
    ],
)
def test_wrong_options_of_a_head(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        castling.create_model("toy/cas_vit_pico", head=options)


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "message"),
    [
        ("deit_pico", {"head": {"width": 2}}, ValueError, "dense models are named HEAD/BACKBONE"),
        ("toy/deit_pico", {}, ValueError, "deit_pico has no feature map of stride 8, only of 4"),
        ("toy/cas_vit_pico", {"colour": 1}, TypeError, "colour"),
        ("toy/cas_vit_pico", {"num_classes": 0}, ValueError, "num_classes is 0"),
        ("toy/cas_vit_pico", {"out_indices": (1,)}, ValueError, "out_indices is the head's"),
    ],
)
def test_what_cannot_be_built(name: str, kwargs: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        castling.create_model(name, **kwargs)


def test_a_wrong_argument_of_the_backbone_is_said_as_that_of_a_classifier() -> None:
    with pytest.raises(ValueError, match=r"cas_vit_pico takes no argument 'deths'.*depths"):
        build_model("toy/cas_vit_pico", {"deths": 1})


# Backbones


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("cas_vit_pico", {}),
        ("castling_levit_pico", {}),
        ("resnet18", {}),
        ("efficientvit_b0", {}),
        ("mobilenetv3_small_050", {}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}),
    ],
)
def test_any_size_of_any_backbone(name: str, kwargs: dict[str, Any]) -> None:
    model = castling.create_model(f"toy/{name}", num_classes=3, **kwargs).eval()
    for height, width in ((64, 64), (96, 128)):
        maps = model.backbone(torch.randn(1, 3, height, width))
        assert [x.shape[1] for x in maps] == list(model.backbone.channels)
        assert [x.shape[-2:] for x in maps] == [(height // s, width // s) for s in (8, 16)]
        assert model(torch.randn(1, 3, height, width)).shape == (1, 3)


def test_the_map_of_a_plain_vit_is_its_last_block() -> None:
    head = {"strides": [4]}
    model = castling.create_model("toy/deit_pico", head=head).eval()
    vit = model.backbone.body.model
    (found,) = model.backbone(images(32))
    _, intermediates = vit.forward_intermediates(images(32), norm=False)
    assert torch.equal(found, intermediates[-1])
    assert model.backbone(images(48))[0].shape[-2:] == (12, 12)  # another size than 32


def test_frozen_batchnorm() -> None:
    model = castling.create_model("toy/cas_vit_pico", head={"freeze_batchnorm": True}).train()
    before = {n: b.clone() for n, b in model.backbone.named_buffers()}
    model(images()).sum().backward()
    assert all(torch.equal(b, before[n]) for n, b in model.backbone.named_buffers())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())


# Attention


def kinds(model: nn.Module) -> dict[str, str]:
    return {
        name: m.config.name if isinstance(m, HostAttention) else "softmax"
        for name, m in convertible(model).items()
    }


@pytest.mark.parametrize("where", ["backbone.body.model.stages.1", "*stages.1*", "*.stages.1.*"])
@pytest.mark.parametrize("name", ["levit_128s", "castling_levit_128s"])
def test_attention_by_the_names_of_the_dense_model(name: str, where: str) -> None:
    kwargs = {"stem_type": "s8", "embed_dim": (16, 24, 32), "depth": (1, 1, 1), **LEVIT}
    plain = castling.create_model(f"toy/{name}", **kwargs)
    model = castling.create_model(f"toy/{name}", attention="cosine", where=where, **kwargs)
    assert list(kinds(model)) == list(kinds(plain))
    assert {n: k for n, k in kinds(model).items() if k == "cosine"} == {
        n: "cosine" for n in kinds(plain) if n.startswith("backbone.body.model.stages.1.")
    }
    # Elsewhere the host's own, as in a classifier.
    assert set(kinds(model).values()) == {"cosine", "softmax"}
    with pytest.raises(
        ValueError, match=r"matches no attention .*backbone\.body\.model\.stages\.0"
    ):
        castling.create_model(f"toy/{name}", attention="cosine", where="stages.9", **kwargs)


def test_attention_of_models_that_choose_it_when_built() -> None:
    cas = castling.create_model("toy/cas_vit_pico", attention="separable")
    assert cas.backbone.body.model.network[0][0].attn.config == Separable()
    with pytest.raises(ValueError, match="cas_vit_pico takes no argument 'where'"):
        build_model("toy/cas_vit_pico", {}, "separable", ["*"])
    chosen = {"backbone.body.model.stages.0*": None, "*stages.[12].*": "linear_angular"}
    model = castling.create_model(
        "toy/castling_levit_pico", attention="cosine", where=chosen, **LEVIT
    )
    assert set(kinds(model).values()) == {"linear_angular", "softmax"}


def test_a_plan_of_the_dense_model() -> None:
    kwargs = {"stem_type": "s8", "embed_dim": (16, 24, 32), "depth": (1, 1, 1), **LEVIT}
    model = castling.create_model("toy/levit_128s", **kwargs)
    hosts = convertible(model)
    names = list(hosts)
    layers = tuple(
        PlannedLayer(n, 64, host.num_heads, 16, 16, 1.0, 1.0, choice)
        for (n, host), choice in zip(hosts.items(), ("softmax", "linear", "softmax"), strict=False)
    )
    plan = Plan(
        **{"model": "toy/levit_128s", "attention": LinearAngular(), "device": "cpu"},
        **{"threads": 1, "torch": "2", "backends": ("naive",), "image_size": (64, 64)},
        **{"batch": 1, "layers": layers, "predicted": Predicted(1.0, 1.0, 1.0)},
    )
    built = castling.create_model("toy/levit_128s", attention=LinearAngular(), where=plan, **kwargs)
    castling.linearize_(model, LinearAngular(), where=plan)
    assert kinds(built) == kinds(model)
    assert [name for name, kind in kinds(built).items() if kind != "softmax"] == [names[1]]
    with pytest.raises(ValueError, match=r"plan was measured for|plan is of another model"):
        castling.create_model("toy/castling_levit_pico", attention="elu", where=plan, **LEVIT)


def test_converting_by_hand_is_the_same() -> None:
    kwargs = {"stem_type": "s8", "embed_dim": (16, 24, 32), "depth": (1, 1, 1), **LEVIT}
    model = castling.create_model("toy/levit_128s", attention=LinearAngular(), **kwargs)
    other = castling.create_model("toy/levit_128s", **kwargs)
    castling.linearize_(other, LinearAngular())
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images()), other.eval()(images()))


# On disk


def card_of(name: str, head: dict[str, Any], classes: int = 3, **options: Any) -> ModelCard:
    size = name.partition("/")[0]
    return ModelCard(
        name=name,
        classes=[f"class {i}" for i in range(classes)],
        head=head_to_dict(size, head_config(size, head)),
        preprocessing={"image_size": [64, 64], "mean": [0.5] * 3, "std": [0.25] * 3},
        **{"kwargs": {"num_classes": classes}, **options},
    )


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("toy/cas_vit_pico", {"width": 5}, {}),
        ("toy_pico/qt_vit_pico", {}, {}),
        (
            "toy/castling_levit_pico",
            {},
            {
                "attention": {"name": "linear_angular", "local": "grid2d"},
                "where": ["backbone.body.model.stages.[12]*"],
                "kwargs": {"num_classes": 3, "img_size": 64},
            },
        ),
    ],
)
def test_round_trip(tmp_path: Path, name: str, head: dict[str, Any], options: Any) -> None:
    card = card_of(name, head, **options)
    model = build_model(card.name, card.kwargs, card.attention, card.where, head=card.head)
    save_model(model, tmp_path, card)
    opened, read = open_model(tmp_path)
    assert read == card
    assert read.head is not None
    assert set(read.head) == {"name", "freeze_batchnorm", "width", "strides"}
    assert torch.equal(opened(images()), model.eval()(images()))
    page = (tmp_path / "README.md").read_text()
    assert f"# {name}\n" in page
    assert (
        f"| options of its head | freeze\\_batchnorm: false, width: {read.head['width']}, " in page
    )
    castling.load_checkpoint(model, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "toy"}, "\"head\" is 'toy', not a dict"),
        ({"head": {"name": "toy", "depth": 1}}, "no option 'depth' in model.head"),
        ({"name": "none/cas_vit_pico"}, "there is no head 'none'"),
        ({"kwargs": {"num_classes": 4}}, '"classes" has 3 names, "num_classes" in "kwargs" is 4'),
        ({"kwargs": {}}, '"classes" has 3 names, the weights beside it are for 80 classes'),
    ],
)
def test_a_card_without_a_meaning(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    card = card_of("toy/cas_vit_pico", {})
    model = build_model(card.name, card.kwargs, head=card.head)
    save_model(model, tmp_path, card)
    values = {**card.to_dict(), **change}
    (tmp_path / "model.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"model\.json.*{message}"):
        open_model(tmp_path)


# Weights to start from


@pytest.mark.parametrize(
    ("backbone", "kwargs"),
    [
        ("cas_vit_pico", {}),
        ("qt_vit_pico", {}),
        ("castling_levit_pico", LEVIT),
        ("resnet18", {"layers": (1, 1, 1, 1)}),
        ("mobilenetv3_small_050", {}),
        ("efficientvit_b0", {}),
    ],
)
def test_a_classifier_fills_the_backbone(tmp_path: Path, backbone: str, kwargs: Any) -> None:
    name = f"{'toy_pico' if backbone == 'qt_vit_pico' else 'toy'}/{backbone}"
    source = timm.create_model(backbone, num_classes=7, **kwargs)
    path = weights_of(source, tmp_path)
    model = castling.create_model(name, num_classes=3, **kwargs)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    report = start_from(model, path)
    assert report.missing == report.unexpected == report.kept_head == report.new == ()
    assert report.loaded == sum(n.startswith("backbone.") for n in before)
    assert f"the model {backbone} and fill the backbone" in str(report)
    after = model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items() if "backbone." not in n)
    # As timm fills a model that gives features.
    overlay = {"file": str(path), "num_classes": 7}
    twin = castling.create_model(
        name, pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay, **kwargs
    )
    theirs = twin.backbone.state_dict()
    assert all(torch.equal(after[f"backbone.{n}"], t) for n, t in theirs.items())


def test_a_softmax_classifier_in_a_converted_backbone(tmp_path: Path) -> None:
    kwargs = {"stem_type": "s8", "embed_dim": (16, 24, 32), "depth": (1, 1, 1), **LEVIT}
    source = timm.create_model("levit_128s", **kwargs)
    model = castling.create_model(
        "toy/levit_128s", attention="linear_angular", where="*stages.0*", **kwargs
    )
    report = start_from(model, weights_of(source, tmp_path))
    assert report.missing == ()
    assert set(report.new) == {
        n for n in model.state_dict() if "dconv" in n or "kernel" in n or "auxiliary" in n
    }
    # Loaded before the conversion it is the same.
    other = castling.create_model("toy/levit_128s", **kwargs)
    start_from(other, weights_of(source, tmp_path))
    castling.linearize_(other, "linear_angular", where="*stages.0*")
    new = {n: model.state_dict()[n] for n in report.new}
    other.load_state_dict({**other.state_dict(), **new, **head_of(model)})
    assert torch.equal(model.eval()(images()), other.eval()(images()))


def head_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in model.state_dict().items() if not n.startswith("backbone.")}


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    path = weights_of(timm.create_model("deit_pico"), tmp_path)
    with pytest.raises(ValueError, match="does not fit the model, which is unchanged"):
        check_start(path, "toy/cas_vit_pico", {}, image_size=(64, 64))


def test_layers_of_the_classes() -> None:
    model = castling.create_model("toy/cas_vit_pico", num_classes=3)
    assert class_layers(model) == ("head.2",)


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("carded", [True, False])
def test_a_dense_model_fills_a_dense_model(tmp_path: Path, classes: int, carded: bool) -> None:
    card = card_of("toy/cas_vit_pico", {}, classes)
    source = build_model(card.name, card.kwargs, head=card.head)
    if carded:
        save_model(source, tmp_path, card)
    path = tmp_path if carded else weights_of(source, tmp_path)
    model = castling.create_model("toy/cas_vit_pico", num_classes=3)
    own = {n: t.clone() for n, t in model.state_dict().items()}
    names = ["class 0", "class 1", "class 2"]
    check_start(path, "toy/cas_vit_pico", {}, image_size=(64, 64))
    report = start_from(model, path, classes=names)
    kept = () if classes == 3 else ("head.2.weight", "head.2.bias")
    assert report.kept_head == kept
    assert report.missing == report.unexpected == ()
    after, theirs = model.state_dict(), source.state_dict()
    assert all(torch.equal(t, own[n] if n in kept else theirs[n]) for n, t in after.items())


def test_other_classes_of_the_same_number_start_afresh(tmp_path: Path) -> None:
    card = card_of("toy/cas_vit_pico", {})
    save_model(build_model(card.name, card.kwargs, head=card.head), tmp_path, card)
    model = castling.create_model("toy/cas_vit_pico", num_classes=3)
    report = start_from(model, tmp_path, classes=["x", "y", "z"])
    assert report.kept_head == ("head.2.weight", "head.2.bias")
    assert "its classes are not those of the data" in str(report)


def test_another_head_gives_its_backbone(tmp_path: Path) -> None:
    card = card_of("toy_other/cas_vit_pico", {"width": 9})
    source = build_model(card.name, card.kwargs, head=card.head)
    save_model(source, tmp_path, card)
    model = castling.create_model("toy/cas_vit_pico", num_classes=3)
    own = {n: t.clone() for n, t in head_of(model).items()}
    report = start_from(model, tmp_path, classes=card.classes)
    assert "they have the head toy_other; neck and head start afresh" in str(report)
    after, theirs = model.state_dict(), source.state_dict()
    assert all(torch.equal(t, own[n] if n in own else theirs[n]) for n, t in after.items())


# Recipes


def recipe(**options: Any) -> Recipe:
    model = {"name": "toy_pico/castling_levit_pico", **options}
    return recipe_from_dict(
        {
            "model": model,
            "data": {
                "source": "digits",
                "split": {"subset": 64},
                "transform": {"image_size": 32},
                "loader": {"batch_size": 32},
            },
            "epochs": 1,
            "hardware": {"accelerator": "cpu"},
        }
    )


def test_a_run_of_a_dense_model(tmp_path: Path) -> None:
    wanted = recipe(head={"width": 3}, attention="cosine", where="backbone.body.model.stages.0*")
    result = train(wanted, tmp_path / "run", progress=False)
    assert result.metrics
    model, card = open_model(tmp_path / "run")
    assert card.name == "toy_pico/castling_levit_pico"
    assert card.head == {
        **{"name": "toy_pico", "freeze_batchnorm": False},
        **{"width": 3, "strides": [8]},
    }
    assert card.kwargs == {"img_size": 32, "num_classes": 10}
    assert set(kinds(model).values()) == {"cosine"}
    assert castling.Predictor(tmp_path / "run")(images(32)[0].byte().permute(1, 2, 0).numpy())
    # It starts another, and its backbone a classifier's run the other way round.
    again = recipe(head={"width": 3}, checkpoint=str(tmp_path / "run"), attention="cosine")
    check(again)
    started, _, report = build(again, open_data(again)[1])
    assert report is not None
    assert report.kept_head == report.missing == ()
    assert torch.equal(started.neck[0].weight, model.neck[0].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": {"wide": 1}}, "no option 'wide' in model.head"),
        ({"name": "toi/resnet18"}, "there is no head 'toi'"),
        ({"name": "toy/resnet1"}, "timm knows no model 'resnet1'"),
        ({"name": "resnet18", "head": {"width": 1}}, "only dense models, HEAD/BACKBONE"),
        ({"name": "toy_boxes/resnet18"}, "a model for detection, and the task is classification"),
    ],
)
def test_recipes_that_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(recipe(**options))


def test_options_of_a_head_in_files_and_flags() -> None:
    flags = ["--model.name", "toy/cas_vit_pico", "--model.head.width", "3"]
    wanted = parse_recipe(flags)
    assert wanted.model.head == {"width": 3}
    assert recipe_from_dict(recipe_to_dict(wanted)) == wanted


def test_a_card_says_an_image_size_only_of_models_made_for_one() -> None:
    wanted = recipe(name="resnet18", kwargs={"layers": (1, 1, 1, 1)})
    _, card, _ = build(wanted, open_data(wanted)[1])
    assert build_model(card.name, card.kwargs).num_classes == 10
