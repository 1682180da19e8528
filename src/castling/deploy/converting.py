"""Conversion of models by their names or folders, on folders of images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from castling.attention import AttentionConfig, TokenMixer
from castling.conversion import Budget, ConversionConfig, ConversionReport, convert
from castling.conversion.budget import check_limits
from castling.data import SourceConfig
from castling.data.config import LoaderConfig
from castling.deploy.conversion_images import ConversionImages, conversion_data
from castling.deploy.opening import open_named
from castling.deploy.saved_data import model_folder
from castling.models.backbone import Backbone
from castling.models.card import CARD, ModelCard
from castling.models.saved import WEIGHTS, save_model
from castling.profiling.planning import plan as measure_plan
from castling.surgery import Where, attention_layers
from castling.surgery.plan import Plan, load_plan
from castling.surgery.self_description import attention_arguments
from castling.tasks import task_from_card
from castling.utils.files import refuse_existing, write_json

#: What the conversion measured, beside the converted model.
REPORT = "conversion.json"
#: Where an interrupted conversion stands; removed when the model is saved.
STATE = "conversion.ckpt"
#: The measured milliseconds that a budget was kept by.
PLAN = "conversion_plan.json"


def convert_saved(
    model: str,
    source: SourceConfig,
    attention: AttentionConfig,
    output: str | os.PathLike[str],
    *,
    where: Where | None = None,
    at_most_ms: float | None = None,
    at_least_agreement: float | None = None,
    plan: Plan | None = None,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    config: ConversionConfig | None = None,
    loader: LoaderConfig | None = None,
    device: str = "cpu",
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[ConversionReport, Path]:
    """Convert a pretrained model and save it so that every verb opens it.

    A classifier learns its teacher's classes. Of detectors and segmenters the backbone learns the
    feature maps that the head reads, and the head stays as it is. Training images are cut and
    mirrored at random; validation images, or a tenth of the others where there are none, are held
    out for the report. Labels are not looked at. An interrupted conversion goes on where it stood
    when it is called again with the same arguments.

    Args:
        model: folder of a run (its switched model is taken where there is one) or of a saved model,
            or a name of timm's, whose pretrained weights are downloaded unless ``checkpoint`` names
            a file.
        source: of the images.
        attention: the new attention.
        output: folder of the converted model.
        where: which layers, as for :func:`castling.linearize_`.
        at_most_ms: budget of a call in milliseconds; layers stay softmax as
            :class:`castling.conversion.Budget` says.
        at_least_agreement: or, of agreement with the teacher, a part of 1.
        plan: for a budget; None measures one here, for one image of the model's size.
        checkpoint: weights for a model of timm's.
        num_classes: of a model of timm's; None takes its own.
        classes: their names, in the order of the weights, instead.
        size: (height, width) in pixels of the images that it learns from; None takes the model's.
        config: of the stages.
        loader: batches and processes.
        device: where it computes.
        seed: of order and random parts.
        overwrite: replace the model that ``output`` holds.
        progress: called with a line now and then.

    Returns:
        What was measured, and the folder written: the saved model, ``conversion.json``, and with a
        budget ``conversion_plan.json``.

    Raises:
        FileNotFoundError: no images, no weights.
        FileExistsError: ``output`` holds a model, and ``overwrite`` is False.
        ValueError: a model of another task, or one that cannot be converted; what
            :func:`castling.convert` refuses.
    """
    folder = Path(output)
    budgeted = at_most_ms is not None or at_least_agreement is not None
    if budgeted:
        check_limits(at_most_ms, at_least_agreement, where)
    elif plan is not None:
        raise ValueError("a plan without a budget is given as where")
    refuse_existing((folder / name for name in (WEIGHTS, CARD, REPORT)), overwrite)
    config, loader = config or ConversionConfig(), loader or LoaderConfig(batch_size=32)
    teacher, card = _teacher(model, checkpoint, num_classes, classes)
    task = task_from_card(card, model)
    size = size or card.image_size
    images = conversion_data(card, source, loader, seed, size)
    held_out = min(config.held_out, images.sizes["val"])
    config = dataclasses.replace(config, held_out=held_out)
    progress(
        f"{model}: {images.sizes['train']:,} images to learn from, {held_out} held out for the "
        "report"
    )
    teacher = teacher.to(device)
    budget = None
    if budgeted:
        plan = plan or _plan(teacher, attention, size, folder, progress)
        budget = Budget(plan=plan, milliseconds=at_most_ms, agreement=at_least_agreement)
        budget.candidates()
        plan.save(folder / PLAN)
    torch.manual_seed(seed)
    student, report = convert(
        teacher,
        ConversionImages(images, card, held_out, device, size),
        attention,
        where,
        config,
        budget=budget,
        compared=None if card.head is None else feature_maps,
        state=folder / STATE,
        progress=_lines(progress),
    )
    # As the student is: layers of the teacher may have been converted before.
    layers = {n: m for n, m in attention_layers(student).items() if isinstance(m, TokenMixer)}
    described = attention_arguments(student, layers)
    described |= {"switched": report.switch is not None or described["switched"], "progress": 1.0}
    card = dataclasses.replace(card, metrics={}, **described)
    certificate = None if report.switch is None else report.switch.to_dict()
    save_model(
        student.cpu(),
        folder,
        card,
        certificate=certificate,
        pipeline_tag=task.pipeline_tag,
        percentages=task.percentages,
    )
    write_json(folder / REPORT, report.to_dict() | {"teacher": model, "config": config.to_dict()})
    (folder / STATE).unlink()
    return report, folder


def feature_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What the head of a dense model reads: every map of the backbone, (B, h·w, C)."""
    backbone = next(part for part in model.modules() if isinstance(part, Backbone))
    return [each.flatten(2).transpose(1, 2) for each in backbone(images)]


def _teacher(
    model: str,
    checkpoint: str | None,
    num_classes: int | None,
    classes: Sequence[str] | None,
) -> tuple[nn.Module, ModelCard]:
    """The softmax model, and the card without attention."""
    folder = str(model_folder(model)) if Path(model).is_dir() else model
    opened, card = open_named(folder, checkpoint, num_classes, classes)
    if card.task.get("name") not in ("classification", "detection", "segmentation"):
        raise ValueError(
            f"{model} is a model of {card.task.get('name')}: this converts classifiers, "
            "detectors and segmenters. In Python castling.convert(model, images, compared=…) "
            "takes any model"
        )
    if card.folded:
        raise ValueError(f"{model} is folded: convert the model as it was before that")
    return opened, card


def _plan(
    teacher: nn.Module,
    attention: AttentionConfig,
    size: tuple[int, int],
    folder: Path,
    progress: Callable[[str], None],
) -> Plan:
    """Measured here; that of an interrupted conversion, whose choices were made by it."""
    if (folder / STATE).is_file() and (folder / PLAN).is_file():
        return load_plan(folder / PLAN)
    found = measure_plan(
        teacher, attention, image_size=size, device=next(teacher.parameters()).device
    )
    progress(str(found))
    return found


def _lines(progress: Callable[[str], None]) -> Callable[[str, int, int, float], None]:
    """A line for each tenth of a stage."""
    last: dict[str, int] = {}

    def report(stage: str, seen: int, total: int, loss: float) -> None:
        tenth = 10 * seen // total
        if last.get(stage) != tenth:
            last[stage] = tenth
            progress(f"{stage}: {seen:,} of {total:,} views, loss {loss:.4f}")

    return report
