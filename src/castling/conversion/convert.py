"""``convert``: a pretrained softmax ViT becomes a linear one that computes nearly the same."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from castling.attention import auxiliaries, set_progress
from castling.conversion.config import ConversionConfig
from castling.conversion.images import Images, Views
from castling.conversion.layers import (
    layer_errors,
    relative_error,
    solve_projections,
    teacher_calls,
)
from castling.conversion.learning import Progress, learn
from castling.conversion.outputs import (
    Compared,
    compare_outputs,
    has_classes,
    model_output,
    output_loss,
)
from castling.conversion.report import ConversionReport, StageFigures
from castling.surgery.linearize import linearize_
from castling.surgery.selection import Attention, Where
from castling.surgery.switch import switch_

_logger = logging.getLogger(__name__)


@torch.inference_mode(False)
@torch.enable_grad()
def convert(
    model: nn.Module,
    images: Images,
    attention: Attention = "relu_linear",
    where: Where | None = None,
    config: ConversionConfig | None = None,
    *,
    compared: Compared | None = None,
    tolerance: float = 1e-3,
    progress: Progress | None = None,
) -> tuple[nn.Module, ConversionReport]:
    """Convert a pretrained model, and let it learn from itself what the new attention lost.

    Images need no labels. Three stages follow the replacement: the output projections in closed
    form, every attention on its teacher's inputs, the whole model on its teacher's outputs. Then
    auxiliary branches are switched away, with a certificate.

    Args:
        model: the teacher: a model whose attentions :func:`castling.linearize_` can replace. It is
            not changed; the student is a copy, on the same device.
        images: batches (B, 3, H, W), normalised and augmented as the model will see them, or one
            tensor. The first ``config.held_out`` of them are only looked at for the report.
        attention: the new attention: ReLU and exact Taylor attention keep most of what a softmax
            model knows, the published angular attention least (docs/tasks/conversion.md).
        where: which layers, as for :func:`castling.linearize_`.
        config: lengths and learning rates.
        compared: calls a model on images and returns the tensor that stage 2 and the report
            compare; None takes the model's output.
        tolerance: of the switch.
        progress: called with stage, views seen, views in all, and loss.

    Returns:
        The student in eval mode, and what was measured. Parameters that the model keeps fixed stay
        as they are, unless all are fixed.

    Raises:
        ValueError: nothing can be replaced; no images, or too few, or some that are not finite; a
            model in half precision, or that answers at random; a loss that is not finite.
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
    views = Views(images, parameter.device, config.held_out, parameter.dtype)
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    student = copy.deepcopy(model).eval()
    if not any(p.requires_grad for p in student.parameters()):
        student.requires_grad_(True)
    replaced = linearize_(student, attention, where)
    if not replaced:
        raise ValueError("where leaves every layer as it is: there is nothing to convert")
    set_progress(student, 0.0)
    layers = {name: student.get_submodule(name) for name in replaced}
    for layer in layers.values():
        layer.requires_grad_(True)
        _silence_residual(layer)
    with torch.no_grad():
        first, second = (compared(teacher, views.held_out[0]) for _ in range(2))
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"{type(model).__name__} answers the same images differently each time, as a model "
            "that hides patches at random does: convert the model that is used without that"
        )
    logits = {"logits": True, "features": False}.get(config.outputs, has_classes(model, first))
    report = ConversionReport(replaced, sum(map(len, views.held_out)))

    def measured(stage: str, seen: int, seconds: float) -> None:
        error, agreement, cosine = compare_outputs(
            student, teacher, views.held_out, compared, logits
        )
        errors = layer_errors(teacher, layers, views.held_out, compared)
        figures = StageFigures(stage, seen, seconds, errors, error, agreement, cosine)
        report.stages.append(figures)
        _logger.info("%s: mean layer error %.3f", stage, figures.mean_layer_error)

    measured("replaced", 0, 0.0)
    if config.closed_form_images:
        start = time.perf_counter()
        few = list(_some(iter(views), config.closed_form_images))
        report.not_fitted = solve_projections(teacher, layers, few, config.ridges, compared)
        measured("closed form", sum(map(len, few)), time.perf_counter() - start)
    if config.layer_views:
        start = time.perf_counter()
        groups = _layer_groups(layers, config)

        def layer_loss(batch: Tensor, done: float) -> Tensor:
            taps = teacher_calls(teacher, batch, layers, compared)
            errors = [
                relative_error(call, layer) for name, layer in layers.items() for call in taps[name]
            ]
            return torch.stack(errors).sum()

        seen = learn(
            "layer by layer", groups, views, config.layer_views, layer_loss, config, progress
        )
        measured("layer by layer", seen, time.perf_counter() - start)
    if config.model_views:
        start = time.perf_counter()
        groups = _model_groups(student, layers, config)

        def model_loss(batch: Tensor, done: float) -> Tensor:
            set_progress(student, done)
            with torch.no_grad():
                target = compared(teacher, batch)
            return output_loss(compared(student, batch), target, logits, config)

        seen = learn("end to end", groups, views, config.model_views, model_loss, config, progress)
        set_progress(student, 1.0)
        measured("end to end", seen, time.perf_counter() - start)
    if auxiliaries(student):
        set_progress(student, 1.0)
        report.switch = switch_(student, views.held_out, tolerance)
    return student.eval(), report


def _silence_residual(layer: nn.Module) -> None:
    """Start without a new local residual: at random it would add noise to what the model knows."""
    dconv = getattr(layer, "dconv", None)
    if dconv is not None:
        for parameter in dconv.parameters():
            nn.init.zeros_(parameter)


def _some(batches: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """Batches of ``count`` images in all."""
    while count > 0:
        batch = next(batches)[:count]
        count -= len(batch)
        yield batch


def _layer_groups(
    layers: dict[str, nn.Module], config: ConversionConfig
) -> list[dict[str, object]]:
    """Parameters of the attentions: pretrained ones, and those that the conversion brought."""
    new: dict[int, nn.Parameter] = {}
    old: dict[int, nn.Parameter] = {}
    for layer in layers.values():
        added = getattr(layer, "added_names", ())
        for name, parameter in layer.named_parameters():
            kind = new if name.startswith(tuple(added)) else old
            kind[id(parameter)] = parameter
    return [
        {"params": list(old.values()), "lr": config.layer_lr, "weight_decay": 0.0},
        {"params": list(new.values()), "lr": config.new_lr, "weight_decay": 0.0},
    ]


def _model_groups(
    student: nn.Module, layers: dict[str, nn.Module], config: ConversionConfig
) -> list[dict[str, object]]:
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    return [
        {
            "params": [
                p
                for p in student.parameters()
                if p.requires_grad and (id(p) in inside) is attention
            ],
            "lr": lr,
            "weight_decay": config.weight_decay,
        }
        for attention, lr in ((True, config.attention_lr), (False, config.rest_lr))
    ]
