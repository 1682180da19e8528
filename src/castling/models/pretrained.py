"""Whether timm's published weights can be had, found out within seconds.

Left alone, the hub's client repeats its attempts for a minute before it looks into its cache.
"""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from timm.models import get_pretrained_cfg

#: Seconds that a server may take to answer at all.
TIMEOUT = 5.0


def require_pretrained(name: str, instead: str) -> dict[str, Any]:
    """Refuse at once to download weights whose server does not answer.

    Args:
        name: in timm's registry, with or without a tag.
        instead: what to give in place of a download, such as ``"model.checkpoint"``.

    Returns:
        What ``timm.create_model`` needs as ``pretrained_cfg_overlay``: nothing where it can
        download, the cached file where it cannot.

    Raises:
        ValueError: the weights are not cached, and their server does not answer.
    """
    # Ours start from their host's weights.
    names = (name, name.removeprefix("castling_"))
    found = (get_pretrained_cfg(each, allow_unregistered=True) for each in names)
    config = next((each for each in found if each and (each.hf_hub_id or each.url)), None)
    if config is None:
        return {}  # timm knows what to say
    if config.hf_hub_id:
        from huggingface_hub import constants

        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
        reason = offline or no_answer(constants.ENDPOINT)
        cached = _cached(config.hf_hub_id, config.hf_hub_filename) if reason else None
    else:
        address = urlsplit(config.url)
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(address.path).name
        cached = file if file.is_file() else None
        reason = "" if cached else no_answer(f"{address.scheme}://{address.netloc}")
    if not reason:
        return {}
    if cached is None:
        raise ValueError(f"{unreachable(name, instead)} ({reason})")
    return {"file": str(cached)}


def unreachable(name: str, instead: str) -> str:
    """What to say where the weights of ``name`` cannot be downloaded."""
    return (
        f"the published weights of {name} cannot be downloaded: their server is not reachable from "
        f"this machine. Download the file elsewhere and give it as {instead}"
    )


def no_answer(server: str, timeout: float = TIMEOUT) -> str:
    """Why a server does not answer within some seconds, proxies used; empty where it does."""
    answer = [f"no answer within {timeout:g} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=timeout)
            answer[0] = ""
        except urllib.error.HTTPError:
            answer[0] = ""  # an answer all the same
        except OSError as error:
            reason = getattr(error, "reason", error)
            # Certificates are the client's own matter; somebody is there.
            answer[0] = "" if isinstance(reason, ssl.SSLError) else f"no network: {reason}"

    # Looking a name up knows no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answer[0]


def _cached(repository: str, filename: str | None) -> Path | None:
    """The file of weights in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = repository.partition("@")
    for name in filter(None, (filename, "model.safetensors", "pytorch_model.bin")):
        found = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None
