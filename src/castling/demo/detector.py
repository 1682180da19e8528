"""The demo's detector: handwritten digits found in scenes of several."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from castling.data import BatchKey, DataConfig, LoaderConfig
from castling.data.sources import DigitScenesConfig
from castling.data.transforms import DetectionTransformConfig
from castling.deploy import Predictor
from castling.tasks.detection import DetectionConfig, DetectionPrediction
from castling.tasks.result import TrainResult
from castling.train import (
    ClipConfig,
    EmaConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    SaveConfig,
    ScheduleConfig,
    open_data,
    train,
)

NAME = "PicoDet on a Castling backbone"
_CANVAS = 96
_PICTURES = 8
#: Boxes with a lower score are not drawn, nor those that a better one overlaps by more.
_SCORE, _OVERLAP = 0.3, 0.5


def detector_recipe(epochs: int) -> Recipe:
    """How the demo trains its detector."""
    return Recipe(
        task=DetectionConfig(),
        model=ModelConfig(name="picodet_pico/castling_levit_s8_pico", head={"width": 96}),
        data=DataConfig(
            source=DigitScenesConfig(canvas=_CANVAS, images=400, digits=(1, 4)),
            transform=DetectionTransformConfig(
                image_size=_CANVAS, multiple=32, crop=0.0, photometric=0.0
            ),
            loader=LoaderConfig(batch_size=8, cache="memory"),
        ),
        epochs=epochs,
        optim=OptimConfig(lr=1e-2, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_epochs=0.5),
        ema=EmaConfig(decay=0.98, warmup=20),
        clip=ClipConfig(mode="norm", value=10.0),
        save=SaveConfig(every_epochs=epochs, validate_epochs=epochs, log_steps=20, best=False),
    )


def train_detector(folder: Path, epochs: int, progress: bool) -> TrainResult:
    """Train it, or take the one that was trained in ``folder`` before."""
    return train(detector_recipe(epochs), folder, progress=progress)


def drawn_scenes(folder: Path, epochs: int) -> list[tuple[Image.Image, str, str]]:
    """(test scene with the boxes found, how many boxes, how many digits there are).

    Args:
        folder: of the trained detector; its switched model is used.
        epochs: it was trained for.
    """
    data, _ = open_data(detector_recipe(epochs))
    test = data.dataset("test")
    predictor = Predictor(folder)
    pictures = []
    for index in range(_PICTURES):
        batch = test[BatchKey((index,))]
        scene = Image.fromarray(batch.images[0].permute(1, 2, 0).contiguous().numpy())
        (found,) = predictor(scene)
        assert isinstance(found, DetectionPrediction)
        shown = found.above(_SCORE).without_overlaps(_OVERLAP)
        there = len(batch.targets["labels"][0])
        pictures.append(
            (
                predictor.draw(scene, shown),
                _count(len(shown), "box", "boxes"),
                _count(there, "digit", "digits"),
            )
        )
    return pictures


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
