"""The registry of attentions: names, configurations, and the modules they build.

An attention may have a kernel, which mixes the q, k and v of any host, an image mixer, which mixes
a map (B, C, h, w) whole, or both. A new one is a file that registers itself here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from castling.attention.config import AttentionConfig
from castling.attention.image_mixer import ImageMixer
from castling.attention.kernel import Kernel
from castling.utils.text import did_you_mean

KernelT = TypeVar("KernelT", bound=type[Kernel])
MixerT = TypeVar("MixerT", bound=type[ImageMixer])

_CONFIGS: dict[str, type[AttentionConfig]] = {}
_KERNELS: dict[type[AttentionConfig], type[Kernel]] = {}
_MIXERS: dict[type[AttentionConfig], type[ImageMixer]] = {}


def register_attention(config_class: type[AttentionConfig]) -> Callable[[KernelT], KernelT]:
    """Class decorator: the kernel that configurations of ``config_class`` build."""

    def register(kernel: KernelT) -> KernelT:
        _CONFIGS[config_class.name] = config_class
        _KERNELS[config_class] = kernel
        return kernel

    return register


def register_image_mixer(config_class: type[AttentionConfig]) -> Callable[[MixerT], MixerT]:
    """Class decorator: the module that mixes a whole image for this configuration."""

    def register(mixer: MixerT) -> MixerT:
        _CONFIGS[config_class.name] = config_class
        _MIXERS[config_class] = mixer
        return mixer

    return register


def kernel_class(config: AttentionConfig) -> type[Kernel]:
    """The kernel registered for a configuration.

    Raises:
        KeyError: the configuration's class is not registered.
        ValueError: it mixes whole images only, and has no kernel for q, k and v.
    """
    kernel = _KERNELS.get(type(config))
    if kernel is not None:
        return kernel
    if type(config) in _MIXERS:
        raise ValueError(
            f"{config.name} mixes whole images and has no form for the queries, keys and values of "
            "a host: use it in a CAS-ViT model (attention=), or choose one of "
            f"{', '.join(list_kernels())}"
        )
    raise KeyError(
        f"no attention is registered for {type(config).__name__}; "
        f"known: {', '.join(list_attentions())}"
    )


def image_mixer_class(config: AttentionConfig) -> type[ImageMixer] | None:
    """The image mixer registered for a configuration, or None where it has only a kernel."""
    return _MIXERS.get(type(config))


def list_attentions() -> list[str]:
    """Names of all registered attentions, sorted."""
    return sorted(_CONFIGS)


def list_kernels() -> list[str]:
    """Names of the attentions that mix the q, k and v of a host, sorted."""
    return sorted(config.name for config in _KERNELS)


def attention_config(attention: str | AttentionConfig | dict[str, Any]) -> AttentionConfig:
    """A configuration from itself, from a registered name, or from ``config_to_dict``'s output.

    Raises:
        ValueError: the name or an option is unknown; the message lists the known ones.
        TypeError: anything else was passed.
    """
    if isinstance(attention, AttentionConfig):
        return attention
    if isinstance(attention, str):
        return config_from_dict({"name": attention})
    if isinstance(attention, dict):
        return config_from_dict(attention)
    raise TypeError(
        "an attention is a configuration such as castling.LinearAngular(), a name such as "
        f"'linear_angular' or a dictionary with 'name'; got {type(attention).__name__}"
    )


def config_to_dict(config: AttentionConfig) -> dict[str, Any]:
    """``config`` as plain values for YAML or JSON, ``name`` first."""
    return {"name": config.name, **dataclasses.asdict(config)}


def config_from_dict(values: dict[str, Any]) -> AttentionConfig:
    """The inverse of :func:`config_to_dict`; options left out take their defaults.

    Raises:
        ValueError: the name or an option is unknown, or an option has no meaning.
    """
    options = dict(values)
    name = options.pop("name", None)
    if name not in _CONFIGS:
        known = list_attentions()
        raise ValueError(
            f"unknown attention {name!r}{did_you_mean(str(name), known)}; known: {', '.join(known)}"
        )
    fields = [field.name for field in dataclasses.fields(_CONFIGS[name])]
    unknown = sorted(set(options) - set(fields))
    if unknown:
        raise ValueError(
            f"attention {name!r} has no option {', '.join(unknown)}"
            f"{did_you_mean(unknown[0], fields)}; options: {', '.join(fields)}"
        )
    return _CONFIGS[name](**options)
