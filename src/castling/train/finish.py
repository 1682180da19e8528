"""After training: save, evaluate and switch the models of the last checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from castling.attention import auxiliaries, set_progress
from castling.models.card import CARD, ModelCard
from castling.models.saved import CERTIFICATE, save_model
from castling.surgery import SwitchRefusedError, switch_
from castling.tasks import evaluate_loader
from castling.tasks.records import write_records
from castling.tasks.result import RESULT, TrainResult
from castling.train.callbacks import (
    BestWeights,
    EarlyStopping,
    History,
    WeightAverage,
    reestimate_batchnorm,
)
from castling.train.callbacks.batchnorm import training_images
from castling.train.callbacks.best import weights_path
from castling.train.module import TrainingModule
from castling.train.run_folder import checkpoint_path, read_checkpoint
from castling.utils.files import write_json
from castling.utils.text import first_line

_log = logging.getLogger(__name__)
State = dict[str, Tensor]


def finish(
    module: TrainingModule, card: ModelCard, run_dir: Path, trainer: pl.Trainer
) -> TrainResult:
    """Save, evaluate and switch the run's model, and the other one of last and best.

    Both are those of the last checkpoint, so what is interrupted here can be done again.
    """
    checkpoint = read_checkpoint(checkpoint_path(run_dir))
    trained_on = trainer.strategy.root_device
    device = trained_on if trained_on.type == "cuda" else torch.device("cpu")
    module.to(device)
    module.task.to(device)
    weights: dict[str, State] = {"last": _last_weights(checkpoint)}
    best = _callback(checkpoint, BestWeights) if module.recipe.save.best else {}
    if best and best["step"] != checkpoint["global_step"]:
        weights |= _best_weights(weights_path(checkpoint_path(run_dir).parent, best["step"]))
    use = module.recipe.save.use if len(weights) > 1 else "last"
    # The other one first: the module is left with the run's model.
    other_dir = ""
    for name in weights:
        if name != use:
            other_dir = str(run_dir / name)
            _save(copy.deepcopy(module.model), weights[name], module, card, run_dir / name)
    for name in ("last", "best"):  # of a run that ended otherwise before
        if str(run_dir / name) != other_dir and (run_dir / name / CARD).is_file():
            shutil.rmtree(run_dir / name)
    saved = _save(module.model, weights[use], module, card, run_dir)
    write_records(module.task, module.model, module.data, run_dir)
    early = _callback(checkpoint, EarlyStopping)
    result = TrainResult(
        run_dir=str(run_dir),
        headline=module.task.headline,
        percentages=tuple(sorted(module.task.percentages)),
        steps=checkpoint["global_step"],
        seconds=_callback(checkpoint, History).get("seconds", 0.0),
        model_dir=str(run_dir),
        classes=len(module.task.info.classes),
        images=module.data.sizes,
        use=use,
        best=best,
        other_dir=other_dir,
        stopped_early=_stopped_early(module, early, checkpoint),
        split=module.split_digest,
        **saved,
    )
    write_json(run_dir / RESULT, result.to_dict())
    return result


def _callback(checkpoint: dict[str, Any], kind: type) -> dict[str, Any]:
    """The state of a callback in a checkpoint; empty where there is none."""
    for name, values in checkpoint["callbacks"].items():
        if name.startswith(kind.__qualname__):
            return dict(values)
    return {}


def _last_weights(checkpoint: dict[str, Any]) -> State:
    """The moving average where there is one."""
    average: State = _callback(checkpoint, WeightAverage).get("average", {})
    prefix = "model."
    return average or {
        name.removeprefix(prefix): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }


def _best_weights(path: Path) -> dict[str, State]:
    try:
        return {"best": safetensors.torch.load_file(path)}
    except (FileNotFoundError, safetensors.SafetensorError) as error:
        _log.warning(
            "%s is missing or damaged (%s): there are no best weights", path, first_line(error)
        )
        return {}


def _stopped_early(
    module: TrainingModule, early: dict[str, Any], checkpoint: dict[str, Any]
) -> str:
    patience = module.recipe.early_stopping.patience
    if not early or not patience or early["waited"] < patience:
        return ""
    return (
        f"stopped early, after step {checkpoint['global_step']}: {module.task.headline} on the "
        f"validation images was not better in {patience} evaluations in a row"
    )


def _save(
    model: nn.Module, state: State, module: TrainingModule, card: ModelCard, folder: Path
) -> dict[str, Any]:
    """Save and evaluate a model with these weights; switch it and evaluate again.

    Returns:
        The fields of the result that say how that went.
    """
    model.load_state_dict(state)
    set_progress(model, 1.0)
    if module.recipe.regularize.batchnorm_images:
        reestimate_batchnorm(
            model, training_images(module, module.recipe.regularize.batchnorm_images)
        )
    model.eval()
    metrics, speed = _metrics(model, module)
    save_model(model, folder, dataclasses.replace(card, metrics=metrics), **_page(module))
    saved: dict[str, Any] = {
        "metrics": metrics,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "images_per_second": speed,
    }
    if auxiliaries(model) and module.recipe.switch.enabled and module.task.switches:
        saved |= _switch(model, module, card, folder)
    return saved


def _switch(
    model: nn.Module, module: TrainingModule, card: ModelCard, folder: Path
) -> dict[str, Any]:
    config = module.recipe.switch
    try:
        report = switch_(
            model,
            _calibration(module, config.images),
            tolerance=config.tolerance,
            force=config.force,
            task=module.task,
        )
    except SwitchRefusedError as error:
        return {"switch_refused": str(error), "switch": error.report.to_dict()}
    metrics, speed = _metrics(model, module)
    folder = folder / "switched"
    card = dataclasses.replace(card, switched=True, metrics=metrics)
    save_model(model, folder, card, certificate=report.to_dict(), **_page(module))
    write_json(folder / CERTIFICATE, report.to_dict())
    return {
        "switched_metrics": metrics,
        "switched_images_per_second": speed,
        "switch": report.to_dict(),
        "switched_dir": str(folder),
    }


def _page(module: TrainingModule) -> dict[str, Any]:
    """What the model's page needs to know of the task."""
    task = module.task
    return {"pipeline_tag": task.pipeline_tag, "percentages": task.percentages}


def _metrics(model: nn.Module, module: TrainingModule) -> tuple[dict[str, float], float]:
    """Metrics of every split, ``val_…`` and ``test_…``; the same where the splits are one.

    With the number of images per second of the last evaluation.
    """
    metrics: dict[str, float] = {}
    speed = 0.0
    for split in ("val", "test"):
        if split not in module.data.sizes:
            continue
        result = evaluate_loader(module.task, model, module.data.loader(split), split)
        metrics |= {f"{split}_{name}": value for name, value in result.metrics.items()}
        speed = result.images_per_second
    if "test" not in module.data.sizes:
        metrics |= {
            name.replace("val_", "test_", 1): value
            for name, value in metrics.items()
            if name.startswith("val_")
        }
    return metrics, speed


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
