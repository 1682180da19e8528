"""Whether timm's published weights can be had; offline, its downloader tries for 45 seconds."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import torch
from timm.models import get_pretrained_cfg


def require_pretrained(name: str, instead: str) -> None:
    """Refuse at once to download weights where their host cannot be found.

    Weights that were downloaded before need no network. Through a proxy nothing is said: names are
    resolved there.

    Args:
        name: in timm's registry, with or without a tag.
        instead: what to give in place of a download, such as ``"model.checkpoint"``.

    Raises:
        ValueError: the host cannot be found.
    """
    config = get_pretrained_cfg(name)
    if config is not None and config.hf_hub_id:
        host = _hub(config.hf_hub_id, config.hf_hub_filename)
    elif config is not None and config.url:
        stored = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(config.url).path).name
        host = "" if stored.is_file() else urlparse(config.url).hostname or ""
    else:  # timm says that there are none; or the function takes those of another model
        return
    if not host or urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise ValueError(unreachable(name, instead)) from error


def unreachable(name: str, instead: str) -> str:
    """What to say where the weights of ``name`` cannot be downloaded."""
    return (
        f"the published weights of {name} cannot be downloaded: their server is not reachable from "
        f"this machine. Download the file elsewhere and give it as {instead}"
    )


def _hub(repository: str, file: str | None) -> str:
    """The hub's host; empty where the file lies in the hub's cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    repository, _, revision = repository.partition("@")
    names = [file] if file else ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        if isinstance(try_to_load_from_cache(repository, name, revision=revision or None), str):
            return ""
    return urlparse(constants.ENDPOINT).hostname or ""
