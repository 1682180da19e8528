"""What linearize_ says: replaced, replaced again, left and why; unknown hosts."""

import logging

import pytest
import timm
import torch
from torch import nn

import castling
from castling.surgery import LinearizeReport
from castling.surgery.linearize_report import unknown_attentions

SIGLIP = "timm.layers.attention_pool.AttentionPoolLatent"
CROSS = "timm.models.crossvit.CrossAttention"


def small(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def test_the_report_is_the_list_of_names():
    model = timm.create_model("deit_pico")
    report = castling.linearize_(model, "relu_linear")
    assert report == [f"blocks.{i}.attn" for i in range(4)]
    assert isinstance(report, LinearizeReport)
    assert set(report.replaced.values()) == {"softmax"}
    assert report.left == {}


def test_layers_that_where_leaves():
    model = timm.create_model("deit_pico")
    report = castling.linearize_(model, "relu_linear", where=["blocks.0", "blocks.3"])
    assert list(report) == ["blocks.0.attn", "blocks.3.attn"]
    assert report.left == dict.fromkeys(["blocks.1.attn", "blocks.2.attn"], "not chosen by where")
    assert str(report).splitlines() == [
        "replaced blocks.0.attn, blocks.3.attn (softmax)",
        "left blocks.1.attn, blocks.2.attn (not chosen by where)",
    ]


def test_a_second_conversion_says_what_it_replaces(caplog):
    model = timm.create_model("deit_pico")
    castling.linearize_(model, "relu_linear", where="blocks.0")
    caplog.set_level(logging.INFO, "castling")
    report = castling.linearize_(model, "elu")
    assert report.replaced["blocks.0.attn"] == "relu_linear"
    assert report.replaced["blocks.1.attn"] == "softmax"
    assert "converted again, with what stood there: blocks.0.attn (relu_linear)" in caplog.text


@pytest.mark.parametrize(
    ("name", "kind", "left"),
    [
        ("vit_base_patch16_siglip_224", SIGLIP, ["attn_pool"]),
        (
            "crossvit_tiny_240",
            CROSS,
            [f"blocks.{i // 2}.fusion.{i % 2}.attn" for i in range(6)],
        ),
    ],
)
def test_attentions_that_no_adapter_knows_are_named(name, kind, left, caplog):
    report = castling.linearize_(small(name), "relu_linear")
    reason = f"{kind} is linear already: one query, or a few, for all tokens of an image"
    assert report.left == dict.fromkeys(left, reason)
    assert f"{left[0]}" in caplog.text
    assert kind in caplog.text
    assert kind in str(report)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "swin_tiny_patch4_window7_224",
            r"layers\.0\.blocks\.0\.attn.* and 9 more \(timm\.models\.swin_transformer\."
            r"WindowAttention attends within windows of 49 tokens.*To add one: docs/extend/host",
        ),
        ("efficientvit_b0", r"efficientvit_mit\.LiteMLA"),
        ("pvt_v2_b0", r"pvt_v2\.Attention; one that may fit is used where where= names the layer"),
        ("resnet18", "nothing in it looks like one"),
        ("cas_vit_pico", "token mixers are chosen when it is created.*attention="),
        ("qt_vit_pico", "token mixers are chosen when it is created.*attention="),
    ],
)
def test_an_unknown_host_lists_its_attentions(name, says):
    message = f"no attention that can be replaced: .*{says}.*Supported: timm"
    with pytest.raises(ValueError, match=message):
        castling.linearize_(small(name), "relu_linear")


def test_only_the_innermost_counts():
    class CrossAttentionBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2)
            self.plain = nn.Linear(8, 8)

    found = unknown_attentions(nn.Sequential(CrossAttentionBlock(), nn.Linear(8, 8)))
    assert list(found) == ["0.attn"]


def test_wrapped_for_features_the_names_are_the_models():
    model = timm.create_model("deit_pico", features_only=True)
    report = castling.linearize_(model, "relu_linear", where="blocks.0")
    assert list(report) == ["blocks.0.attn"]
    assert "blocks.1.attn" in report.left
