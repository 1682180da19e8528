"""The stages of a conversion: each changes the student and says how near it came."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from castling.attention import set_progress
from castling.conversion.config import ConversionConfig
from castling.conversion.images import Views
from castling.conversion.layers import (
    layer_errors,
    relative_error,
    solve_projections,
    teacher_calls,
)
from castling.conversion.learning import Progress, learn
from castling.conversion.low_rank import low_rank
from castling.conversion.outputs import OutputOf, compare_outputs, output_loss
from castling.conversion.report import ConversionReport, StageFigures
from castling.conversion.state import Standing, StateFile


@dataclasses.dataclass
class Stages:
    """Teacher, student and images. Stages that ``report`` has already are left out.

    An auxiliary branch helps at first and closes evenly over all views of both stages that learn by
    gradients. All figures, and the closed form, are of the kernel alone: what will be left.

    Attributes:
        teacher: in eval mode, without gradients.
        student: in eval mode.
        layers: the converted attentions of the student, by name.
        views: images to learn from, and those held out.
        config: lengths and learning rates.
        compared: the output of either.
        logits: whether that is scores of classes.
        progress: see :func:`castling.convert`.
        report: where figures go.
        state: written as it goes.
        standing: of an interrupted conversion.
    """

    teacher: nn.Module
    student: nn.Module
    layers: Mapping[str, nn.Module]
    views: Views
    config: ConversionConfig
    compared: OutputOf
    logits: bool
    progress: Progress | None
    report: ConversionReport
    state: StateFile
    standing: Standing | None = None

    def replaced(self) -> None:
        """Nothing is learned."""
        if not self._done("replaced"):
            self._measured("replaced", 0, 0.0)

    def closed_form(self) -> None:
        """The output projections."""
        if self._done("closed form") or not self.config.closed_form_images:
            return
        start = time.perf_counter()
        set_progress(self.student, 1.0)
        few = list(_some(iter(self.views), self.config.closed_form_images))
        self.report.not_fitted = solve_projections(
            self.teacher, self.layers, few, self.config.ridges, self.compared
        )
        seconds = time.perf_counter() - start
        self._measured("closed form", sum(map(len, few)), seconds)

    def layer_by_layer(self) -> None:
        """Every attention on its teacher's inputs, all at once."""
        whole = self.config.layer_views + self.config.model_views

        def loss(batch: Tensor, done: float) -> Tensor:
            set_progress(self.student, done * self.config.layer_views / whole)
            taps = teacher_calls(self.teacher, batch, self.layers, self.compared)
            calls = [(call, self.layers[name]) for name in self.layers for call in taps[name]]
            return torch.stack([relative_error(*each) for each in calls]).sum()

        if self._done("layer by layer") or not self.config.layer_views:
            return
        groups = _layer_groups(self.layers, self.config)
        seconds = self._learn("layer by layer", groups, self.config.layer_views, loss)
        self._measured("layer by layer", self.config.layer_views, seconds)

    def end_to_end(self) -> None:
        """The whole model on its teacher's outputs."""
        before = self.config.layer_views
        whole = before + self.config.model_views

        def loss(batch: Tensor, done: float) -> Tensor:
            set_progress(self.student, (before + done * self.config.model_views) / whole)
            with torch.no_grad():
                target = self.compared(self.teacher, batch)
            output = self.compared(self.student, batch)
            return output_loss(output, target, self.logits, self.config)

        if self._done("end to end") or not self.config.model_views:
            return
        with low_rank(self.student, self.config.rank) if self.config.rank else nullcontext():
            if self._interrupted("end to end"):
                self._load()
            groups = _model_groups(self.student, self.layers, self.config)
            seconds = self._learn("end to end", groups, self.config.model_views, loss)
        self._measured("end to end", self.config.model_views, seconds)

    def agreement(self, model: nn.Module) -> float:
        """Of a model with the teacher on the held-out images; the cosine without classes."""
        _, agreement, cosine = compare_outputs(
            model, self.teacher, self.views.held_out, self.compared, self.logits
        )
        return cosine if agreement is None else agreement

    def _done(self, stage: str) -> bool:
        return any(found.stage == stage for found in self.report.stages)

    def _interrupted(self, stage: str) -> bool:
        return self.standing is not None and self.standing.stage == stage

    def resume(self) -> None:
        """Take up the values of the interrupted conversion."""
        if self.standing is not None:
            self.views.skip(self.standing.batches)
            if not self._interrupted("end to end"):  # that has corrections of its own to load
                self._load()

    def _load(self) -> None:
        assert self.standing is not None
        self.student.load_state_dict(self.standing.student)

    def _learn(
        self,
        stage: str,
        groups: list[dict[str, object]],
        count: int,
        loss: Callable[[Tensor, float], Tensor],
    ) -> float:
        """Learn to the end of a stage; returns the seconds that it took in all."""
        before = self.standing if self._interrupted(stage) else None
        earlier = before.seconds if before else 0.0
        start = time.perf_counter()

        def after_step(seen: int, optimizer: Callable[[], dict[str, object]]) -> None:
            if self.state.due and seen < count:
                self._write(stage, seen, earlier + time.perf_counter() - start, optimizer())

        learn(
            stage,
            groups,
            self.views,
            count,
            loss,
            self.config,
            self.progress,
            seen=before.views if before else 0,
            state=before.optimizer if before else None,
            after_step=after_step,
        )
        return earlier + time.perf_counter() - start

    def _measured(self, stage: str, seen: int, seconds: float) -> None:
        """Student beside teacher on the images held out."""
        set_progress(self.student, 1.0)
        held_out = self.views.held_out
        outputs = compare_outputs(self.student, self.teacher, held_out, self.compared, self.logits)
        errors = layer_errors(self.teacher, self.layers, held_out, self.compared)
        self.report.stages.append(StageFigures(stage, seen, seconds, errors, *outputs))
        self.save()

    def save(self) -> None:
        """Write the state between two stages."""
        self._write("", 0, 0.0, None)

    def _write(
        self, stage: str, seen: int, seconds: float, optimizer: dict[str, object] | None
    ) -> None:
        values = self.student.state_dict()
        self.state.write(
            Standing(stage, seen, seconds, self.views.taken, values, optimizer), self.report
        )


def _some(batches: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """Batches of ``count`` images in all."""
    while count > 0:
        batch = next(batches)[:count]
        count -= len(batch)
        yield batch


def _layer_groups(
    layers: Mapping[str, nn.Module], config: ConversionConfig
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
    student: nn.Module, layers: Mapping[str, nn.Module], config: ConversionConfig
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
