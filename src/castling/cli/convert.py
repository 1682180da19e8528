"""The verb that turns a pretrained model linear."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt

from castling.cli.parts import (
    add_device,
    add_overwrite,
    add_quiet,
    device_of,
    parser_for,
    progress_of,
    show,
    source_of,
)


def convert(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for(
        "convert",
        "turn a pretrained classifier linear: it learns from itself what the new attention lost. "
        "Images need no labels",
    )
    parser.add_argument("model", help="folder of a run or saved model, or a name of timm's")
    parser.add_argument(
        "--data", required=True, help="images: a folder or zip file, at any depth, or a source"
    )
    parser.add_argument(
        "--attention",
        default="relu_linear",
        help="NAME or NAME:option=value,… (castling attentions lists them) (default: relu_linear)",
    )
    parser.add_argument(
        "--where", nargs="+", help="layers, by names or patterns, or plan.json (default: all)"
    )
    parser.add_argument("--output", default="converted", help="folder (default: converted)")
    parser.add_argument("--checkpoint", help="a file of weights for a model of timm's")
    parser.add_argument("--num_classes", type=PositiveInt, help="of a model of timm's")
    for field, what in (
        ("closed_form_images", "images of the closed form"),
        ("layer_views", "images that the attentions learn from, repeated ones counted"),
        ("model_views", "images that the whole model learns from, repeated ones counted"),
        ("held_out", "validation images of the report"),
    ):
        default = _default(field)
        parser.add_argument(
            f"--{field}", type=NonNegativeInt, default=default, help=f"{what} (default: {default})"
        )
    for field, what in (
        ("layer_lr", "of attentions, layer by layer"),
        ("new_lr", "of what the new attention brings, layer by layer"),
        ("attention_lr", "of attentions, end to end"),
        ("rest_lr", "of everything else, end to end"),
    ):
        default = _default(field)
        parser.add_argument(
            f"--{field}",
            type=float,
            default=default,
            help=f"learning rate {what} (default: {default:g})",
        )
    parser.add_argument(
        "--batch_size", type=PositiveInt, default=32, help="images a step (default: 32)"
    )
    parser.add_argument(
        "--workers", type=NonNegativeInt, default=0, help="data-loading processes (default: 0)"
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="(default: 0)")
    add_device(parser)
    add_overwrite(parser, "the model that --output holds")
    add_quiet(parser)
    values = parser.parse_args(arguments)
    from castling.conversion import ConversionConfig
    from castling.data.config import LoaderConfig
    from castling.deploy.converting import convert_saved
    from castling.profiling.candidates import read_attention

    fields = {field.name for field in dataclasses.fields(ConversionConfig)}
    chosen = {name: value for name, value in vars(values).items() if name in fields}
    report, folder = convert_saved(
        values.model,
        _source(values.data),
        read_attention(values.attention),
        values.output,
        where=_where(values.where),
        checkpoint=values.checkpoint,
        num_classes=values.num_classes,
        config=ConversionConfig(**chosen),
        loader=LoaderConfig(batch_size=values.batch_size, workers=values.workers),
        device=device_of(values),
        seed=values.seed,
        overwrite=values.overwrite,
        progress=progress_of(values),
    )
    show(values, report.to_dict() | {"output": str(folder)}, f"{report}\nsaved in {folder}")
    return 0


def _default(field: str) -> Any:
    from castling.conversion.config import ConversionConfig

    return getattr(ConversionConfig, field)


def _source(text: str) -> Any:
    """All images below a folder or in a zip file; other sources as everywhere."""
    from castling.data.sources.unlabelled import UnlabelledConfig

    return UnlabelledConfig(path=text) if Path(text).exists() else source_of(text, "--data")


def _where(names: list[str] | None) -> Any:
    return names[0] if names and len(names) == 1 else names
