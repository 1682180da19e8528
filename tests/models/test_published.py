"""Published weights without a network: refused at once, or taken from the cache."""

import time

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

from castling.models import published
from castling.models.builder import build_model

NAME = "vit_tiny_patch16_224"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", [NAME, "timm:" + NAME, "castling_deit_tiny_patch16_224"])
def test_offline_fails_within_seconds_and_says_what_to_do(offline, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    started = time.perf_counter()
    with pytest.raises(OSError, match=r"--model\.checkpoint FILE"):
        build_model(name, {}, pretrained=True)
    assert time.perf_counter() - started < 10


def test_an_unknown_server_and_a_silent_one():
    assert "no network" in published.unreachable("http://localhost:9")  # nobody listens there
    import socket

    with socket.socket() as silent:  # takes the connection and never answers
        silent.bind(("localhost", 0))
        silent.listen()
        said = published.unreachable(f"http://localhost:{silent.getsockname()[1]}", timeout=0.3)
    assert "no answer within 0.3 s" in said or "timed out" in said


def test_cached_weights_are_used_without_a_network(offline, monkeypatch, tmp_path):
    torch.manual_seed(1)
    host = timm.create_model(NAME)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(host.state_dict(), file)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: str(file))
    made = build_model(NAME, {}, pretrained=True)
    for name, value in host.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name
    # With another number of classes timm leaves the head out.
    fewer = build_model(NAME, {"num_classes": 3}, pretrained=True)
    assert torch.equal(fewer.blocks[0].attn.qkv.weight, host.blocks[0].attn.qkv.weight)
