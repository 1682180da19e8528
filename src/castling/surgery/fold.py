"""Exact inference rewrites: BatchNorm into the layers beside it, two classifiers into one.

Notable:
- a class of modules is folded by its handler (``register_fold``); handlers of our own models stand
  with the models;
- a run of the model is observed (``fold_observe``): a pair is folded only if nothing but the second
  module reads the output of the first, whether a handler knows the pair or not;
- the outputs of the model and of the rewritten modules are compared before and after
  (``fold_verify``); if they differ, the model is restored.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from timm.layers import ConvNormAct as TimmConvNormAct
from timm.models import efficientvit_mit, levit
from torch import Tensor, nn

from castling.surgery.compared import Compared, ModelOutputs
from castling.surgery.fold_layers import (
    absorb_following,
    absorb_preceding,
    can_follow,
    can_precede,
)
from castling.surgery.fold_model import Snapshot, check_foldable, count_parts, example_for
from castling.surgery.fold_observe import Observation, observe
from castling.surgery.fold_verify import verified

#: Rewrites one module in place; returns what it did, as "part into part", names relative to it.
Handler = Callable[[Any], list[str]]
HandlerT = TypeVar("HandlerT", bound=Handler)
_HANDLERS: dict[type[nn.Module], Handler] = {}
#: What the current ``fold_`` observed, for the handlers.
_OBSERVED: ContextVar[Observation | None] = ContextVar("observed", default=None)


@dataclasses.dataclass(frozen=True)
class FoldReport:
    """What :func:`fold_` did.

    Attributes:
        parameters_before: number of parameters.
        parameters_after: number of parameters.
        batch_norms_before: number of BatchNorm modules.
        batch_norms_after: those left: no linear layer next to them, or no running statistics.
        max_difference: largest absolute difference of the outputs; None without verification.
        agreement: share of what the task concludes that stayed the same; None without verification
            or such a notion.
        folded: "part into part" for every rewrite, with full module names.
    """

    parameters_before: int
    parameters_after: int
    batch_norms_before: int
    batch_norms_after: int
    max_difference: float | None
    agreement: float | None
    folded: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {**dataclasses.asdict(self), "folded": list(self.folded)}


def register_fold(*module_classes: type[nn.Module]) -> Callable[[HandlerT], HandlerT]:
    """Decorator: the handler that folds modules of these classes.

    It also applies to subclasses that do not override ``forward``. A handler replaces parameters
    and modules and never writes into the old ones, so that the model can be restored. Children are
    folded before their parents.
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
    task: Compared | None = None,
) -> FoldReport:
    """Fold every BatchNorm that can be folded exactly, in place, for inference only.

    The model's outputs stay the same. Intermediate results may change: CAS-ViT's final norm moves
    into its classifier, so ``forward_features`` returns the map before that norm. Not folded: norms
    whose input something else reads too; layers that are shared, hooked, pruned or parametrised
    (make that permanent first: ``prune.remove``, ``remove_parametrizations``); and modules that do
    not run on ``example``.

    Without gradients (``torch.no_grad``, ``torch.inference_mode``) each folded block of CAS-ViT
    then runs as one operator on channels-last maps, whatever the memory format of the images; on a
    CPU it keeps a second, packed copy of its weights.

    Args:
        model: in evaluation mode, in float32 or float64.
        example: (B, C, H, W) to run the model on; None draws two random images of the model's
            own input size.
        tolerance: allowed difference of any output tensor, in units of its largest value or 1; 100
            times that for the outputs of rewritten modules inside.
        verify: compare the outputs before and after.
        task: says what the raw outputs are that are compared, and how far both models agree on
            classes or boxes; see :func:`castling.switch_`.

    Returns:
        counts and the largest difference seen.

    Raises:
        ValueError: the model is in training mode or in half precision, or does not run on
            ``example``.
        FoldError: the outputs differ by more than ``tolerance``.
    """
    check_foldable(model)
    images = example_for(model) if example is None else example
    before = Snapshot(model)
    counts = count_parts(model)
    task = task or ModelOutputs()
    seen = observe(model, images, lambda module: _handler(module) is not None, task)
    token = _OBSERVED.set(seen)
    try:
        inside, folded = _fold_known(model, seen)
        observed = _fold_observed(model, seen)
        inside, folded = _untouched(inside, observed), folded + observed
        checked = verified(model, images, seen, inside, tolerance, task) if verify else None
    except BaseException:
        before.restore()
        raise
    finally:
        _OBSERVED.reset(token)
    after = count_parts(model)
    return FoldReport(
        parameters_before=counts[0],
        parameters_after=after[0],
        batch_norms_before=counts[1],
        batch_norms_after=after[1],
        max_difference=None if checked is None else checked.difference,
        agreement=None if checked is None else checked.agreement,
        folded=tuple(folded),
    )


def absorb(module: nn.Module, linear: str, norm: str) -> list[str]:
    """Fold ``module.norm``, if fed by ``module.linear`` alone, into it; for handlers."""
    layer, following = getattr(module, linear), getattr(module, norm)
    if not can_follow(layer, following) or not _serves_only(layer, following):
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
    if not can_precede(module.bn, module.linear) or not _serves_only(module.bn, module.linear):
        return []
    module.bn = absorb_preceding(module.bn, module.linear)
    return ["bn into linear"]


def _handler(module: nn.Module) -> Handler | None:
    for ancestor in type(module).__mro__:
        if ancestor in _HANDLERS:
            unchanged = type(module).forward is ancestor.forward
            return _HANDLERS[ancestor] if unchanged else None
    return None


def _serves_only(first: nn.Module, second: nn.Module) -> bool:
    seen = _OBSERVED.get()
    return seen is None or seen.serves_only(first, second)


def _fold_known(model: nn.Module, seen: Observation) -> tuple[dict[str, nn.Module], list[str]]:
    """Run the handlers of all modules that ran, children first.

    Returns:
        the rewritten modules by name, without those whose outputs a later rewrite may have changed;
        and what was done.
    """
    done: list[str] = []
    rewritten: dict[str, nn.Module] = {}
    for name, module in reversed(list(model.named_modules())):
        handler = _handler(module)
        if handler is None or not seen.called(module):
            continue
        lines = [_full_name(name, line) for line in handler(module)]
        rewritten = _untouched(rewritten, lines)
        if lines and name:
            rewritten[name] = module
        done = lines + done
    return rewritten, done


def _untouched(modules: dict[str, nn.Module], lines: list[str]) -> dict[str, nn.Module]:
    """Those of ``modules`` that none of the rewrites, given as "part into part", touched."""
    parts = [part + "." for line in lines for part in line.split(" into ")]
    return {
        name: module
        for name, module in modules.items()
        if not any(p.startswith(f"{name}.") or f"{name}.".startswith(p) for p in parts)
    }


def _full_name(prefix: str, line: str) -> str:
    if not prefix:
        return line
    return " into ".join(f"{prefix}.{part}" for part in line.split(" into "))


def _fold_observed(model: nn.Module, seen: Observation) -> list[str]:
    """Fold the norms without a handler whose input is the very output tensor of one layer."""
    names = {module: name for name, module in model.named_modules()}
    receivers = seen.receivers()
    done = []
    for layer, outputs in seen.outputs.items():
        for norm in receivers.get(id(outputs[0]), []):
            if (
                norm in names
                and can_follow(layer, norm)
                and seen.serves_only(layer, norm)
                and seen.direct(layer, norm)
            ):
                parent, _, child = names[norm].rpartition(".")
                setattr(model.get_submodule(parent), child, absorb_following(layer, norm))
                done.append(f"{names[norm]} into {names[layer]}")
    return done
