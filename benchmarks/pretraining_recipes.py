"""Recipes of the studies that train a backbone on images without labels first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from castling.train import recipe_from_dict
from studies import RECIPES

#: Whose features are learned: small enough to run beside every step on a CPU.
TEACHER = "tf_efficientnet_lite0"
#: Castling ViT for backbones that saw a part of the tokens before.
CASTLING = {"name": "linear_angular", "kv_scale": "tokens", "auxiliary": {}}


def pretraining_recipe(
    backbone: str,
    attention: Mapping[str, Any] | None,
    images: str,
    *,
    epochs: int,
    size: tuple[int, int],
    seed: int,
    teacher: str = "",
) -> Any:
    """Features of ``teacher`` (a file of weights), or else MAE of a ViT, SimMIM of others."""
    if teacher:
        head, file = "distill_features", "distill-features.yaml"
    elif "deit" in backbone:
        head, file = "mae", "pretrain.yaml"
    else:
        head, file = "simmim", "pretrain-simmim.yaml"
    values = yaml.safe_load((RECIPES / file).read_text(encoding="utf-8"))
    values["model"] = {"name": f"{head}/{backbone}", "head": values["model"]["head"]}
    if teacher:
        values["model"]["head"] = {"teacher": TEACHER, "teacher_checkpoint": teacher}
    if attention:
        attention = dict(attention)
        if "auxiliary" in attention:  # it empties in the final task
            attention["auxiliary"] = attention["auxiliary"] | {"schedule": "constant"}
        values["model"]["attention"] = attention
    values["data"] = {
        "source": {"name": "unlabelled", "path": images},
        "transform": {"image_size": list(size), "scale": [0.2, 1.0]},
        "loader": {"batch_size": 64, "eval_batch_size": 64, "workers": 1},
    }
    values["optim"] |= {"lr": 6.0e-4, "lr_batch": 64}
    values["schedule"] |= {"warmup_epochs": max(1, epochs // 10)}
    values["save"] = {"validate_epochs": max(1, epochs // 4)}
    return recipe_from_dict(values | {"epochs": epochs, "seed": seed})
