"""After training: save, evaluate and switch the model of the last checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from castling.attention import auxiliaries, set_progress
from castling.models.card import ModelCard
from castling.models.saved import save_model
from castling.surgery import SwitchRefusedError, switch_
from castling.tasks import evaluate_loader
from castling.tasks.records import write_records
from castling.tasks.result import RESULT, TrainResult
from castling.train.callbacks import History, WeightAverage, reestimate_batchnorm
from castling.train.callbacks.batchnorm import training_images
from castling.train.module import TrainingModule
from castling.train.run_folder import checkpoint_path, read_checkpoint
from castling.utils.files import write_json


def finish(
    module: TrainingModule, card: ModelCard, run_dir: Path, trainer: pl.Trainer
) -> TrainResult:
    """Save and evaluate the last checkpoint's model; switch it and evaluate again."""
    checkpoint = read_checkpoint(checkpoint_path(run_dir))
    prefix = "model."
    state = {
        name.removeprefix(prefix): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    seconds = 0.0
    for name, values in checkpoint["callbacks"].items():
        if name.startswith(WeightAverage.__qualname__):
            state = values["average"]
        if name.startswith(History.__qualname__):
            seconds = values["seconds"]
    model = module.model
    model.load_state_dict(state)
    device = torch.device("cuda") if trainer.strategy.root_device.type == "cuda" else "cpu"
    model.to(device)
    module.task.to(device)
    set_progress(model, 1.0)
    if module.recipe.regularize.batchnorm_images:
        module.to(device)
        reestimate_batchnorm(
            model, training_images(module, module.recipe.regularize.batchnorm_images)
        )
    model.eval()
    metrics = _metrics(model, module)
    save_model(model, run_dir, dataclasses.replace(card, metrics=metrics), **_page(module))
    result = TrainResult(
        run_dir=str(run_dir),
        metrics=metrics,
        headline=module.task.headline,
        percentages=tuple(sorted(module.task.percentages)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=checkpoint["global_step"],
        seconds=seconds,
        model_dir=str(run_dir),
        classes=len(module.data.classes),
        images=module.data.sizes,
    )
    if auxiliaries(model) and module.recipe.switch.enabled:
        result = _switch(model, module, card, run_dir, result)
    write_records(module.task, model, module.data, run_dir)
    write_json(run_dir / RESULT, result.to_dict())
    return result


def _switch(
    model: nn.Module, module: TrainingModule, card: ModelCard, run_dir: Path, result: TrainResult
) -> TrainResult:
    config = module.recipe.switch
    try:
        report = switch_(
            model,
            _calibration(module, config.images),
            tolerance=config.tolerance,
            force=config.force,
        )
    except SwitchRefusedError as error:
        return dataclasses.replace(result, switch_refused=str(error), switch=error.report.to_dict())
    metrics = _metrics(model, module)
    folder = run_dir / "switched"
    card = dataclasses.replace(card, switched=True, metrics=metrics)
    save_model(model, folder, card, certificate=report.to_dict(), **_page(module))
    write_json(folder / "certificate.json", report.to_dict())
    return dataclasses.replace(
        result,
        switched_metrics=metrics,
        switch=report.to_dict(),
        switched_dir=str(folder),
    )


def _page(module: TrainingModule) -> dict[str, Any]:
    """What the model's page needs to know of the task."""
    task = module.task
    return {"pipeline_tag": task.pipeline_tag, "percentages": task.percentages}


def _metrics(model: nn.Module, module: TrainingModule) -> dict[str, float]:
    """Metrics of every split, ``val_…`` and ``test_…``; the same where the splits are one."""
    metrics: dict[str, float] = {}
    for split in ("val", "test"):
        if split not in module.data.sizes:
            continue
        result = evaluate_loader(module.task, model, module.data.loader(split), split)
        metrics |= {f"{split}_{name}": value for name, value in result.metrics.items()}
    if "test" not in module.data.sizes:
        metrics |= {
            name.replace("val_", "test_", 1): value
            for name, value in metrics.items()
            if name.startswith("val_")
        }
    return metrics


def _calibration(module: TrainingModule, images: int) -> Iterator[torch.Tensor]:
    """At least one and at most ``images`` validation images, normalised, in batches."""
    left = images
    device = next(module.model.parameters()).device
    for batch in module.data.loader("val"):
        pixels = batch.images[: max(1, left)].to(device)
        yield module.task.preprocess(pixels)
        left -= len(batch)
        if left <= 0:
            return
