"""The models of the demo, and how they are trained."""

from __future__ import annotations

from typing import Any

from castling.data import DataConfig, DigitsConfig, LoaderConfig
from castling.data.transforms import ClassificationTransformConfig
from castling.train import ClipConfig, ModelConfig, OptimConfig, Recipe, SaveConfig, ScheduleConfig

#: The digits are 8×8 dots drawn at 32×32: a patch of 8 pixels holds 2×2 dots. Averaging the patches
#: instead of a class token lets a ViT learn from a thousand images within seconds.
_VIT: dict[str, Any] = {"patch_size": 8, "class_token": False, "global_pool": "avg"}
#: The model that differs from Castling-ViT in its attention alone.
TWIN = "softmax ViT + convolution"
#: folder → (name in the report, model)
MODELS = {
    "softmax": ("softmax ViT", ModelConfig(name="deit_pico", kwargs=_VIT)),
    "softmax_conv": (
        TWIN,
        ModelConfig(
            name="deit_pico", kwargs=_VIT, attention={"name": "softmax", "local": "grid2d"}
        ),
    ),
    "castling": (
        "Castling-ViT",
        ModelConfig(name="castling_deit_pico", kwargs=_VIT),
    ),
    "qt_vit": ("QT-ViT", ModelConfig(name="qt_vit_pico")),
    "cas_vit": ("CAS-ViT", ModelConfig(name="cas_vit_pico")),
}
Models = dict[str, tuple[str, ModelConfig]]
#: The digits fill their frame: shifting them by more than two pixels cuts them.
_TRANSFORM = ClassificationTransformConfig(image_size=32, crop="pad", padding=2)


def demo_recipe(model: ModelConfig, epochs: int) -> Recipe:
    """How the demo trains a model on the bundled digits."""
    return Recipe(
        model=model,
        data=DataConfig(
            source=DigitsConfig(),
            transform=_TRANSFORM,
            loader=LoaderConfig(batch_size=32, eval_batch_size=256),
        ),
        epochs=epochs,
        optim=OptimConfig(lr=2e-3, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_epochs=2),
        clip=ClipConfig(mode="norm", value=1.0),
        save=SaveConfig(every_epochs=epochs, log_steps=20),
    )
