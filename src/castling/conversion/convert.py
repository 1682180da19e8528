"""``convert``: a pretrained softmax ViT becomes a linear one that computes nearly the same."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator

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
    OutputOf,
    compare_outputs,
    has_classes,
    model_output,
    output_loss,
)
from castling.conversion.report import ConversionReport, StageFigures
from castling.surgery.compared import ModelOutputs
from castling.surgery.linearize import linearize_
from castling.surgery.selection import Attention, Where
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
    compared: OutputOf | None = None,
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
        attention: the new attention; docs/results.md shows what was tried.
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
    stages = _Stages(teacher, student, layers, views, config, compared, logits, progress)
    report = ConversionReport(replaced, sum(map(len, views.held_out)))
    report.stages.append(stages.measured("replaced", 0, 0.0))
    if config.closed_form_images:
        figures, report.not_fitted = stages.closed_form()
        report.stages.append(figures)
    if config.layer_views:
        report.stages.append(stages.layer_by_layer())
    if config.model_views:
        report.stages.append(stages.end_to_end())
    if auxiliaries(student):
        set_progress(student, 1.0)
        task = _ComparedOutputs(compared)
        report.switch = switch_(student, views.held_out, tolerance, task=task)
    return student.eval(), report


class _ComparedOutputs(ModelOutputs):
    """What the switch compares: the same tensor as the stages."""

    def __init__(self, compared: OutputOf) -> None:
        self.compared = compared

    def raw_outputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """See :class:`ModelOutputs`."""
        return {"": self.compared(model, images)}


@dataclasses.dataclass
class _Stages:
    """Teacher, student and images; each stage changes the student and says how near it came.

    Attributes:
        teacher: in eval mode, without gradients.
        student: in eval mode.
        layers: the converted attentions of the student, by name.
        views: images to learn from, and those held out.
        config: lengths and learning rates.
        compared: the output of either.
        logits: whether that is scores of classes.
        progress: see :func:`convert`.
    """

    teacher: nn.Module
    student: nn.Module
    layers: dict[str, nn.Module]
    views: Views
    config: ConversionConfig
    compared: OutputOf
    logits: bool
    progress: Progress | None

    def measured(self, stage: str, seen: int, seconds: float) -> StageFigures:
        """Student beside teacher on the images held out."""
        held_out = self.views.held_out
        outputs = compare_outputs(self.student, self.teacher, held_out, self.compared, self.logits)
        errors = layer_errors(self.teacher, self.layers, held_out, self.compared)
        return StageFigures(stage, seen, seconds, errors, *outputs)

    def closed_form(self) -> tuple[StageFigures, dict[str, str]]:
        """The output projections; also the layers that were left, and why."""
        start = time.perf_counter()
        few = list(_some(iter(self.views), self.config.closed_form_images))
        left = solve_projections(self.teacher, self.layers, few, self.config.ridges, self.compared)
        seconds = time.perf_counter() - start
        return self.measured("closed form", sum(map(len, few)), seconds), left

    def layer_by_layer(self) -> StageFigures:
        """Every attention on its teacher's inputs, all at once."""
        groups = _layer_groups(self.layers, self.config)

        def loss(batch: Tensor, done: float) -> Tensor:
            taps = teacher_calls(self.teacher, batch, self.layers, self.compared)
            calls = [(call, self.layers[name]) for name in self.layers for call in taps[name]]
            return torch.stack([relative_error(*each) for each in calls]).sum()

        return self._learned("layer by layer", groups, self.config.layer_views, loss)

    def end_to_end(self) -> StageFigures:
        """The whole model on its teacher's outputs, while auxiliary branches close."""
        groups = _model_groups(self.student, self.layers, self.config)

        def loss(batch: Tensor, done: float) -> Tensor:
            set_progress(self.student, done)
            with torch.no_grad():
                target = self.compared(self.teacher, batch)
            output = self.compared(self.student, batch)
            return output_loss(output, target, self.logits, self.config)

        return self._learned("end to end", groups, self.config.model_views, loss, finish=True)

    def _learned(
        self,
        stage: str,
        groups: list[dict[str, object]],
        count: int,
        loss: Callable[[Tensor, float], Tensor],
        *,
        finish: bool = False,
    ) -> StageFigures:
        start = time.perf_counter()
        seen = learn(stage, groups, self.views, count, loss, self.config, self.progress)
        seconds = time.perf_counter() - start
        if finish:
            set_progress(self.student, 1.0)
        return self.measured(stage, seen, seconds)


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
