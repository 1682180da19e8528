"""Exact inference rewrites: BatchNorm into the layers beside it, two classifiers into one.

Notable:
- a class of modules is folded by its handler (``register_fold``); handlers of our own models stand
  with the models;
- pairs that no handler knows are found by running the model and watching which tensors meet;
- the outputs are compared before and after; on a difference the model is put back as it was.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from timm.layers import ConvNormAct as TimmConvNormAct
from timm.models import efficientvit_mit, levit
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from castling.surgery.fold_layers import (
    absorb_following,
    absorb_preceding,
    can_follow,
    can_precede,
)

#: Rewrites one module in place; returns what it did, as "part into part", names relative to it.
Handler = Callable[[Any], list[str]]
HandlerT = TypeVar("HandlerT", bound=Handler)
_HANDLERS: dict[type[nn.Module], Handler] = {}


class FoldError(RuntimeError):
    """Folding changed what a model computes; the model was put back as it was."""


@dataclasses.dataclass(frozen=True)
class FoldReport:
    """What :func:`fold_` did.

    Attributes:
        parameters_before: number of parameters.
        parameters_after: number of parameters.
        batch_norms_before: number of BatchNorm modules.
        batch_norms_after: those that nothing linear stands beside, or without running statistics.
        max_difference: largest absolute difference of the outputs; None without verification.
        folded: "part into part" for every rewrite, with full module names.
    """

    parameters_before: int
    parameters_after: int
    batch_norms_before: int
    batch_norms_after: int
    max_difference: float | None
    folded: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {**dataclasses.asdict(self), "folded": list(self.folded)}


def register_fold(*module_classes: type[nn.Module]) -> Callable[[HandlerT], HandlerT]:
    """Decorator: the handler that folds modules of these classes.

    It also serves subclasses that do not bring a ``forward`` of their own. A handler must put new
    parameters and modules in place of old ones, never write into them: that is how a model is
    restored. Children are folded before their parents.
    """

    def register(handler: HandlerT) -> HandlerT:
        for module_class in module_classes:
            _HANDLERS[module_class] = handler
        return handler

    return register


@torch.no_grad()
def fold_(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    tolerance: float = 1e-5,
    verify: bool = True,
) -> FoldReport:
    """Fold every BatchNorm that can be folded exactly, in place, for inference only.

    What the model returns is kept. What it computes on the way may move: CAS-ViT's final norm lies
    in its classifier afterwards, so ``forward_features`` gives the map in front of that norm.

    Args:
        model: in evaluation mode, in float32 or float64.
        example: (B, C, H, W) to run the model on; None draws two random images of the model's
            own input size.
        tolerance: allowed difference of any output, in units of the largest output or 1.
        verify: compare the outputs before and after.

    Returns:
        counts and the largest difference seen.

    Raises:
        ValueError: the model is in training mode or in half precision, or does not run on
            ``example``.
        FoldError: the outputs differ by more than ``tolerance``.
    """
    _check(model)
    images = _example(model) if example is None else example
    before = _Snapshot(model)
    counts = _count(model)
    try:
        reference = _outputs(model, images)
        folded = _fold_known(model)
        folded += _fold_observed(model, images)
        difference = None
        if verify:
            difference = _largest_difference(reference, _outputs(model, images))
            scale = max([1.0, *(float(output.abs().max()) for output in reference)])
            if not difference <= tolerance * scale:
                raise FoldError(
                    f"folding changed the outputs by {difference:.2e} (outputs up to {scale:.2e}, "
                    f"allowed {tolerance * scale:.2e}); the model is unchanged. Either a BatchNorm "
                    "meets its convolution in a way that its module does not show, or the network "
                    "magnifies rounding: see whether model.double() folds"
                )
    except BaseException:
        before.restore()
        raise
    after = _count(model)
    return FoldReport(
        parameters_before=counts[0],
        parameters_after=after[0],
        batch_norms_before=counts[1],
        batch_norms_after=after[1],
        max_difference=difference,
        folded=tuple(folded),
    )


def absorb(module: nn.Module, linear: str, norm: str) -> list[str]:
    """Fold ``module.norm``, fed by ``module.linear`` alone, into it; for handlers."""
    layer, following = getattr(module, linear), getattr(module, norm)
    if not can_follow(layer, following):
        return []
    setattr(module, norm, absorb_following(layer, following))
    return [f"{norm} into {linear}"]


@register_fold(nn.Sequential)
def _fold_sequential(sequence: nn.Sequential) -> list[str]:
    names = list(sequence._modules)
    done = []
    for first, second in itertools.pairwise(names):
        done += absorb(sequence, first, second)
    return done


@register_fold(efficientvit_mit.ConvNormAct)
def _fold_conv_norm_act(module: nn.Module) -> list[str]:
    return absorb(module, "conv", "norm")


@register_fold(TimmConvNormAct)
def _fold_timm_conv_norm_act(module: nn.Module) -> list[str]:
    return absorb(module, "conv", "bn")


@register_fold(levit.ConvNorm, levit.LinearNorm)
def _fold_levit(module: nn.Module) -> list[str]:
    return absorb(module, "linear", "bn")


@register_fold(levit.NormLinear)
def _fold_levit_head(module: levit.NormLinear) -> list[str]:
    if not can_precede(module.bn, module.linear):
        return []
    module.bn = absorb_preceding(module.bn, module.linear)
    return ["bn into linear"]


def _handler(module: nn.Module) -> Handler | None:
    for ancestor in type(module).__mro__:
        if ancestor in _HANDLERS:
            unchanged = type(module).forward is ancestor.forward
            return _HANDLERS[ancestor] if unchanged else None
    return None


def _fold_known(model: nn.Module) -> list[str]:
    """Run every module's handler, children first."""
    done: list[str] = []
    for name, module in reversed(list(model.named_modules())):
        handler = _handler(module)
        if handler is not None:
            done = [_full_name(name, line) for line in handler(module)] + done
    return done


def _full_name(prefix: str, line: str) -> str:
    if not prefix:
        return line
    return " into ".join(f"{prefix}.{part}" for part in line.split(" into "))


def _fold_observed(model: nn.Module, images: Tensor) -> list[str]:
    """Fold norms whose input is, as an object, what one convolution returned in its only call."""
    names = {module: name for name, module in model.named_modules()}
    makers: dict[int, list[nn.Module]] = {}
    takers: dict[int, list[nn.Module]] = {}
    calls: dict[nn.Module, int] = {}
    held: list[Tensor] = []  # a tensor that is let go gives its id to another one

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        for tensor, table in ((inputs[0] if inputs else None, takers), (output, makers)):
            if isinstance(tensor, Tensor):
                held.append(tensor)
                table.setdefault(id(tensor), []).append(module)

    leaves = [m for m in names if not m._modules or isinstance(m, _BatchNorm)]
    if not any(isinstance(module, _BatchNorm) for module in leaves):
        return []
    handles = [module.register_forward_hook(watch) for module in leaves]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    done = []
    for key, layers in makers.items():
        norms = takers.get(key, [])
        if len(layers) != 1 or len(norms) != 1:
            continue
        layer, norm = layers[0], norms[0]
        if calls[layer] == calls[norm] == 1 and can_follow(layer, norm):
            parent, _, child = names[norm].rpartition(".")
            setattr(model.get_submodule(parent), child, absorb_following(layer, norm))
            done.append(f"{names[norm]} into {names[layer]}")
    return done


class _Snapshot:
    """A model's modules, parameters and attributes, to go back to; nothing is copied but tables."""

    def __init__(self, model: nn.Module) -> None:
        self.states = [(module, self._tables(module)) for module in model.modules()]

    @staticmethod
    def _tables(module: nn.Module) -> dict[str, Any]:
        tables = ("_parameters", "_buffers", "_modules")
        return {
            name: value.copy() if name in tables else value
            for name, value in module.__dict__.items()
        }

    def restore(self) -> None:
        """Put everything back."""
        for module, tables in self.states:
            module.__dict__.clear()
            module.__dict__.update(tables)


def _check(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        raise ValueError(
            "folding is for inference and needs fixed BatchNorm statistics: call model.eval() first"
        )
    half = {p.dtype for p in model.parameters() if p.is_floating_point() and p.itemsize < 4}
    if half:
        raise ValueError(
            f"folding in {', '.join(map(str, half))} would round twice: fold the float32 model, "
            "then convert it"
        )


def _example(model: nn.Module) -> Tensor:
    """Two random images of the model's own size."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = size or (height, width)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = channels if first is None else first.in_channels
    like = next(model.parameters())
    images = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    return images.to(like.device, like.dtype)


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    try:
        outputs = list(_tensors(model(images)))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(
            f"the model does not run on images {tuple(images.shape)}: {error}; pass example=, a "
            "batch that it takes"
        ) from error
    if not all(torch.isfinite(output).all() for output in outputs):
        raise ValueError("the model's outputs are not finite: there is nothing to compare with")
    return outputs


def _tensors(output: Any) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


def _largest_difference(before: list[Tensor], after: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))


def _count(model: nn.Module) -> tuple[int, int]:
    """Parameters and BatchNorms."""
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    return sum(parameter.numel() for parameter in model.parameters()), norms
