"""From names to models: prefixes, what a model takes, what is said of a wrong argument."""

import pytest
import timm
from timm.models import model_entrypoint

import castling
from castling.attention import AttentionCore
from castling.models.arguments import arguments_of
from castling.models.builder import build_model
from castling.models.names import timm_name
from castling.surgery import convertible


def taken(name):
    return arguments_of(model_entrypoint(name))


def test_the_prefix_of_timm_may_be_written_or_left_out():
    assert timm_name("timm:deit_pico") == timm_name("deit_pico") == "deit_pico"
    assert timm_name("vit_base_patch16_224.augreg_in1k") == "vit_base_patch16_224.augreg_in1k"
    assert type(build_model("timm:deit_pico", {})) is type(build_model("deit_pico", {}))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:google/vit-base-patch16-224", "Hugging Face cannot be converted yet"),
        ("keras:vit", "prefix of a model is timm: .* got 'keras'"),
        ("retinanett/cas_vit_xs", "there is no head 'retinanett'"),
        ("cas_vit_sx", r"timm knows no model 'cas_vit_sx'.*did you mean .*cas_vit_"),
        ("timm:castling_dit_pico", r"did you mean castling_deit_pico"),
        ("zzzz", "timm knows no model 'zzzz'"),
    ],
)
def test_names_that_cannot_be_built(name, says):
    with pytest.raises(ValueError, match=says):
        build_model(name, {})


@pytest.mark.parametrize("name", castling.list_models())
def test_our_models_take_a_size_and_an_attention_but_for_twin_and_convolutions(name):
    names = taken(name).names
    convolutional = name.startswith("esnet_")
    assert ("img_size" in names) != convolutional
    assert ("attention" in names) != (convolutional or name == "deit_pico")
    assert taken(name).closed


@pytest.mark.parametrize(
    ("name", "sized"),
    [
        ("vit_tiny_patch16_224", True),
        ("deit_base_distilled_patch16_224", True),  # passes **kwargs on to its base class
        ("swin_tiny_patch4_window7_224", True),
        ("levit_128s", True),
        ("mvitv2_tiny", True),
        ("hiera_tiny_224", True),  # no annotation
        ("resnet18", False),
        ("convnext_atto", False),
        ("regnetx_002", False),  # takes **kwargs of any name
        ("mobilenetv3_small_050", False),
        ("efficientvit_b0", False),  # no annotation
        ("poolformer_s12", False),
    ],
)
def test_which_models_of_timm_take_a_size(name, sized):
    assert ("img_size" in taken(name).names) == sized


def test_a_size_goes_to_models_that_take_one_and_nowhere_else():
    vit = build_model("vit_tiny_patch16_224", {"depth": 1}, image_size=(32, 48))
    assert vit.patch_embed.grid_size == (2, 3)
    own = build_model("vit_tiny_patch16_224", {"depth": 1, "img_size": 64}, image_size=(32, 32))
    assert own.patch_embed.grid_size == (4, 4)
    assert build_model("resnet18", {}, image_size=(64, 64)).num_classes == 1000


def test_an_attention_goes_into_builders_that_take_one_and_hosts_are_converted():
    own = build_model("cas_vit_pico", {}, "pooling")
    assert own.network[0][0].attn.config == castling.Pooling()
    host = build_model("vit_tiny_patch16_224", {"depth": 2}, "elu", ["blocks.1*"])
    assert [isinstance(m, AttentionCore) for m in convertible(host).values()] == [False, True]


@pytest.mark.parametrize(
    ("name", "kwargs", "says"),
    [
        ("deit_pico", {"dept": 2}, r"deit_pico takes no argument 'dept'.*did you mean depth"),
        ("cas_vit_pico", {"atention": "elu"}, r"takes no argument 'atention'.*did you mean atten"),
        ("resnet18", {"img_size": 64}, "resnet18 takes no argument 'img_size'"),
        ("castling_levit_pico", {"wher": None, "colour": 1}, "takes no argument 'wher'"),
        ("qt_vit_pico", {"shortcuts": True}, "did you mean shortcut"),
    ],
)
def test_a_wrong_argument_is_named_with_the_nearest_ones(name, kwargs, says):
    with pytest.raises(ValueError, match=says):
        build_model(name, kwargs)


def test_a_choice_of_layers_that_a_builder_does_not_take():
    with pytest.raises(ValueError, match="cas_vit_pico takes no argument 'where'"):
        build_model("cas_vit_pico", {}, "elu", ["network.0*"])


def test_errors_inside_a_model_are_not_taken_for_wrong_arguments():
    with pytest.raises(ValueError, match=r"^deit_pico: "):
        build_model("deit_pico", {"depth": "many"})


@pytest.mark.slow
def test_what_is_read_off_timms_classes_is_what_they_take():
    """One model of each of timm's files, built with a size where it is said to take one."""
    import torch

    seen = set()
    for name in timm.list_models(exclude_filters=["castling_*", "*_pico"]):
        module = model_entrypoint(name).__module__
        if module in seen or module.startswith("castling."):
            continue
        seen.add(module)
        size = timm.get_pretrained_cfg(name, allow_unregistered=True)
        height, width = (size.input_size if size else (3, 224, 224))[1:]
        with torch.device("meta"):
            build_model(name, {"num_classes": 3}, image_size=(height, width))


def test_create_model_puts_an_attention_into_any_model():
    own = castling.create_model("cas_vit_pico", attention="pooling")
    assert own.network[0][0].attn.config == castling.Pooling()
    host = castling.create_model("deit_pico", attention="elu", where="blocks.1", num_classes=3)
    assert [isinstance(m, AttentionCore) for m in convertible(host).values()] == [
        *(False, True, False, False)
    ]
    assert host.num_classes == 3
    named = castling.create_model("castling_deit_pico", attention="elu", where="blocks.1")
    assert len([m for m in convertible(named).values() if isinstance(m, AttentionCore)]) == 1


def test_create_model_without_an_attention_is_timms():
    assert type(castling.create_model("deit_pico")) is type(timm.create_model("deit_pico"))
    with pytest.raises(TypeError, match="dept"):
        castling.create_model("deit_pico", dept=2)
    with pytest.raises(ValueError, match="ResNet holds no attention that can be replaced"):
        castling.create_model("resnet10t", attention="elu")
