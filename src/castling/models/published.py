"""Published weights: used from the hub's cache without a network, refused at once where neither is.

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

import timm
import torch

#: Seconds that a server may take to answer at all.
TIMEOUT = 5.0


class NoPublishedWeightsError(ConnectionError):
    """Weights would have to be downloaded, and cannot be."""


def published_weights(name: str, options: str = "model.") -> dict[str, Any]:
    """What ``timm.create_model(pretrained=True)`` needs as ``pretrained_cfg_overlay``.

    Args:
        name: in timm's registry, with or without the tag of its weights.
        options: what the names of a recipe's options ``checkpoint`` and ``pretrained`` of this
            model begin with, for the error.

    Returns:
        Nothing where timm can download; the cached file where it cannot.

    Raises:
        NoPublishedWeightsError: within seconds: the weights are not cached, and the server that
            holds them cannot be reached.
    """
    # Ours start from their host's weights.
    names = (name, name.removeprefix("castling_"))
    found = (timm.get_pretrained_cfg(each, allow_unregistered=True) for each in names)
    cfg = next((each for each in found if each and (each.hf_hub_id or each.url)), None)
    if cfg is None:
        return {}  # timm knows what to say
    if cfg.hf_hub_id:
        from huggingface_hub import constants

        server = constants.ENDPOINT
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(server)
        cached = _cached(cfg.hf_hub_id, cfg.hf_hub_filename) if reason else None
    else:
        server = "{0.scheme}://{0.netloc}".format(urlsplit(cfg.url))
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(cfg.url).path).name
        cached = file if file.is_file() else None
        reason = "" if cached else unreachable(server)
    if not reason:
        return {}
    if cached is not None:
        return {"file": str(cached)}
    raise NoPublishedWeightsError(no_weights(name, reason, options))


def no_weights(name: str, reason: str, options: str = "model.") -> str:
    """What to say where the weights of ``name`` cannot be had."""
    return (
        f"the published weights of {name} are not in the cache, and cannot be downloaded "
        f"({reason}): give a file of weights with --{options}checkpoint FILE, or take random ones "
        f"with --{options}pretrained false"
    )


def _cached(repository: str, filename: str | None) -> Path | None:
    """The file of weights in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = repository.partition("@")
    for name in filter(None, (filename, "model.safetensors", "pytorch_model.bin")):
        found = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None


def unreachable(server: str, timeout: float = TIMEOUT) -> str:
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
