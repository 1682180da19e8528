"""``convert``: a pretrained softmax ViT becomes a linear one that computes nearly the same."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor, nn

from castling.attention import (
    TokenMixer,
    attention_config,
    auxiliaries,
    config_to_dict,
    set_progress,
)
from castling.conversion.budget import Budget, check_limits, choose
from castling.conversion.config import ConversionConfig
from castling.conversion.images import Images, Views
from castling.conversion.learning import Progress
from castling.conversion.outputs import OutputOf, has_classes, model_output, tensors_of
from castling.conversion.report import ConversionReport
from castling.conversion.stages import Stages
from castling.conversion.state import StateFile, fingerprint
from castling.surgery.compared import ModelOutputs, named_tensors
from castling.surgery.linearize import linearize_
from castling.surgery.linearize_report import LinearizeReport
from castling.surgery.selection import Attention, Where, convertible, owner_of
from castling.surgery.switch import switch_


@torch.inference_mode(False)
@torch.enable_grad()
def convert(
    model: nn.Module,
    images: Images,
    attention: Attention = "relu_linear",
    where: Where | None = None,
    config: ConversionConfig | None = None,
    *,
    budget: Budget | None = None,
    compared: OutputOf | None = None,
    tolerance: float = 1e-3,
    state: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, ConversionReport]:
    """Convert a pretrained model, and let it learn from itself what the new attention lost.

    Images need no labels. Three stages follow the replacement: the output projections in closed
    form, every attention on its teacher's inputs, the whole model on its teacher's outputs. An
    auxiliary branch closes meanwhile, and is switched away at the end, with a certificate.

    Args:
        model: the teacher: a model whose attentions :func:`castling.linearize_` can replace. It is
            not changed; the student is a copy, on the same device.
        images: batches (B, 3, H, W), normalised and augmented as the model will see them, or one
            tensor. The first ``config.held_out`` of them are only looked at for the report.
        attention: the new attention; docs/results.md shows what was tried.
        where: which layers, as for :func:`castling.linearize_`.
        config: lengths and learning rates.
        budget: keeps some layers softmax instead of ``where``: all layers that gain from it learn
            their teacher's outputs, then the best choice within the budget goes on.
        compared: calls a model on images and returns what stage 2 and the report compare: a
            tensor (B, …, C), or several, such as the features that a head reads. None takes the
            model's output.
        tolerance: of the switch.
        state: a file, written after every stage and every minute. Where it is there, the conversion
            goes on from it: with the same arguments and the same images in the same order, to the
            same result. It stays, so that nothing is lost before the student is saved: delete it
            then.
        progress: called with stage, views seen, views in all, and loss.

    Returns:
        The student in eval mode, and what was measured. Parameters that the model keeps fixed stay
        as they are, unless all are fixed, or they belong to a converted attention.

    Raises:
        ValueError: nothing can be replaced; no images, or too few, or some that are not finite; a
            model in half precision, or that answers at random; a loss that is not finite; a budget
            that cannot be kept; a state of other arguments.
        TypeError: batches that are no images; an output that is no tensor.
        SwitchRefusedError: the auxiliary branches still matter.

    Example:
        >>> student, report = castling.convert(model, loader)
        >>> print(report)
    """
    config = config or ConversionConfig()
    compared = compared or model_output
    parameter = next(model.parameters())
    if parameter.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"small steps vanish in {parameter.dtype}: convert model.float(), and give the student "
            "its precision afterwards"
        )
    kept: dict[str, str] = {}
    if budget is not None:
        check_limits(budget.milliseconds, budget.agreement, where)
        budget.plan.require_fits(convertible(model), attention_config(attention))
        where, kept = budget.candidates()
    student, replaced = _student(model, attention, where)
    views = Views(images, parameter.device, config.held_out, parameter.dtype)
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        first, second = (compared(teacher, views.held_out[0]) for _ in range(2))
    pairs = zip(tensors_of(first), tensors_of(second), strict=True)
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs):
        raise ValueError(
            f"{type(model).__name__} answers the same images differently each time, as a model "
            "that hides patches at random does: convert the model that is used without that"
        )
    report = ConversionReport(replaced, sum(map(len, views.held_out)), kept=kept)
    layers = _layers(student, replaced)
    file = StateFile(
        state,
        _arguments(model, layers, config, budget) | dict(getattr(images, "arguments", {})),
        [] if budget is None else [budget.milliseconds, budget.agreement],
        {
            "images": [batch.mean((1, 2, 3)) for batch in views.held_out],
            "compared": tensors_of(first),
        },
    )
    standing = file.read(report)
    stages = Stages(
        teacher,
        student,
        layers,
        views,
        config,
        compared,
        {"logits": True, "features": False}.get(config.outputs, has_classes(model, first)),
        progress,
        report,
        file,
        standing,
    )
    if report.chosen is not None:
        _reduce(stages, model, attention, report.chosen.linear)
    stages.resume()
    stages.replaced()
    stages.closed_form()
    stages.layer_by_layer()
    if budget is not None and report.chosen is None:
        report.chosen, report.curve = choose(
            budget,
            report.stages[-1].layer_errors,
            lambda names: stages.agreement(_mixed(stages, model, attention, names)),
        )
        _reduce(stages, model, attention, report.chosen.linear)
        stages.save()
    stages.end_to_end()
    student = stages.student
    if auxiliaries(student):
        set_progress(student, 1.0)
        task = _ComparedOutputs(compared)
        report.switch = switch_(student, views.held_out, tolerance, task=task)
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    all_fixed = len(fixed) == len(list(model.parameters()))
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(all_fixed or name not in fixed)
    return student.eval(), report


def _student(
    model: nn.Module, attention: Attention, where: Where | None
) -> tuple[nn.Module, LinearizeReport]:
    """A copy with new attentions, ready to learn."""
    student = copy.deepcopy(model).eval()
    if not any(p.requires_grad for p in student.parameters()):
        student.requires_grad_(True)
    replaced = linearize_(student, attention, where)
    if not replaced:
        raise ValueError("where leaves every layer as it is: there is nothing to convert")
    for layer in _layers(student, replaced).values():
        layer.requires_grad_(True)
        _silence_residual(layer)
    return student, replaced


def _layers(student: nn.Module, names: list[str] | tuple[str, ...]) -> dict[str, nn.Module]:
    owner = owner_of(student)
    return {name: owner.get_submodule(name) for name in names}


def _mixed(stages: Stages, model: nn.Module, attention: Attention, names: Any) -> nn.Module:
    """The model with these layers as the student has learned them, and softmax elsewhere."""
    if not names:
        return stages.teacher
    mixed, _ = _student(model, attention, tuple(names))
    for name, layer in _layers(mixed, names).items():
        layer.load_state_dict(stages.layers[name].state_dict())
    set_progress(mixed, 1.0)
    return mixed


def _reduce(stages: Stages, model: nn.Module, attention: Attention, names: Any) -> None:
    """Go on with a mixed model."""
    stages.student = _mixed(stages, model, attention, names)
    stages.layers = _layers(stages.student, names)
    before = stages.report.replaced
    stages.report.replaced = LinearizeReport(
        {name: was for name, was in before.replaced.items() if name in names},
        dict.fromkeys((name for name in before if name not in names), "the budget left it")
        | before.left,
    )


def _arguments(
    model: nn.Module,
    layers: dict[str, nn.Module],
    config: ConversionConfig,
    budget: Budget | None,
) -> dict[str, Any]:
    """What a state must have been written with, as plain values."""
    return {
        "model": fingerprint(model),
        "attention": {
            name: config_to_dict(layer.config)
            for name, layer in layers.items()
            if isinstance(layer, TokenMixer)
        },
        "config": config.to_dict(),
        "plan": None if budget is None else budget.plan.to_dict(),
    }


def _silence_residual(layer: nn.Module) -> None:
    """Start without a new local residual: at random it would add noise to what the model knows."""
    dconv = getattr(layer, "dconv", None)
    if dconv is not None:
        for parameter in dconv.parameters():
            nn.init.zeros_(parameter)


class _ComparedOutputs(ModelOutputs):
    """What the switch compares: the same as the stages."""

    def __init__(self, compared: OutputOf) -> None:
        self.compared = compared

    def raw_outputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """See :class:`ModelOutputs`."""
        return named_tensors(self.compared(model, images))
