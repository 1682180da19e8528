"""The verb that turns a pretrained model linear."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from castling.cli.parts import (
    add_device,
    add_overwrite,
    add_quiet,
    device_of,
    parser_for,
    progress_of,
    read_size,
    show,
    source_of,
)

#: Options of the stages: name, type, what it is.
_FIELDS: tuple[tuple[str, Any, str], ...] = (
    ("closed_form_images", NonNegativeInt, "images of the closed form"),
    ("layer_views", NonNegativeInt, "images that the attentions learn from, repeated ones counted"),
    ("model_views", NonNegativeInt, "images that the model learns from, repeated ones counted"),
    ("rank", NonNegativeInt, "rank of what linear layers learn end to end; 0 learns whole weights"),
    ("held_out", NonNegativeInt, "validation images of the report"),
    ("layer_lr", float, "learning rate of attentions, layer by layer"),
    ("new_lr", float, "learning rate of what the attention brings, layer by layer"),
    ("attention_lr", float, "learning rate of attentions, end to end"),
    ("rest_lr", float, "learning rate of everything else, end to end"),
)


def convert(arguments: list[str]) -> int:
    """See VERBS."""
    from castling.conversion import ConversionConfig

    parser = parser_for(
        "convert",
        "turn a pretrained classifier, detector or segmenter linear: it learns from itself what "
        "the new attention lost. Images need no labels. The same command goes on with a "
        "conversion that was interrupted",
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
    parser.add_argument(
        "--at_most_ms",
        type=PositiveFloat,
        help="keep layers softmax so that a call takes no longer, with as little error as possible",
    )
    parser.add_argument(
        "--at_least_agreement",
        type=PositiveFloat,
        help="or keep as few layers softmax as leave this agreement with the teacher (0.98: 98 %%)",
    )
    parser.add_argument(
        "--plan",
        help="of such a budget: plan.json of castling plan (default: measured here, for one image)",
    )
    parser.add_argument("--output", default="converted", help="folder (default: converted)")
    parser.add_argument("--checkpoint", help="a file of weights for a model of timm's")
    parser.add_argument("--num_classes", type=PositiveInt, help="of a model of timm's")
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="their names instead, in the order of the weights (default: ImageNet's, or numbers)",
    )
    parser.add_argument(
        "--size", help="HEIGHTxWIDTH or a side of the images to learn from (default: the model's)"
    )
    here, gpu = ConversionConfig(), ConversionConfig.for_device("cuda")
    for field, kind, what in _FIELDS:
        default = f"{getattr(here, field)}"
        if getattr(gpu, field) != getattr(here, field):
            default += f"; {getattr(gpu, field)} on a GPU"
        parser.add_argument(f"--{field}", type=kind, help=f"{what} (default: {default})")
    parser.add_argument(
        "--batch_size", type=PositiveInt, help="images a step (default: 32; 256 on a GPU)"
    )
    parser.add_argument(
        "--workers", type=NonNegativeInt, default=0, help="data-loading processes (default: 0)"
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="(default: 0)")
    add_device(parser)
    add_overwrite(parser, "the model that --output holds")
    add_quiet(parser)
    values = parser.parse_args(arguments)
    from castling.data.config import LoaderConfig
    from castling.deploy.converting import convert_saved
    from castling.profiling.candidates import read_attention
    from castling.surgery.plan import load_plan

    device = device_of(values)
    given = {field: getattr(values, field) for field, _, _ in _FIELDS}
    chosen = {field: value for field, value in given.items() if value is not None}
    batch_size = values.batch_size or (32 if device == "cpu" else 256)
    report, folder = convert_saved(
        values.model,
        _source(values.data),
        read_attention(values.attention),
        values.output,
        where=_where(values.where),
        at_most_ms=values.at_most_ms,
        at_least_agreement=values.at_least_agreement,
        plan=None if values.plan is None else load_plan(values.plan),
        checkpoint=values.checkpoint,
        num_classes=values.num_classes,
        classes=values.classes,
        size=None if values.size is None else read_size(values.size),
        config=dataclasses.replace(ConversionConfig.for_device(device), **chosen),
        loader=LoaderConfig(batch_size=batch_size, workers=values.workers),
        device=device,
        seed=values.seed,
        overwrite=values.overwrite,
        progress=progress_of(values),
    )
    show(values, report.to_dict() | {"output": str(folder)}, f"{report}\nsaved in {folder}")
    return 0


def _source(text: str) -> Any:
    """All images below a folder or in a zip file; other sources as everywhere."""
    from castling.data.sources.unlabelled import UnlabelledConfig

    holds_files = Path(text).is_dir() or Path(text).suffix.lower() == ".zip"
    return UnlabelledConfig(path=text) if holds_files else source_of(text, "--data")


def _where(names: list[str] | None) -> Any:
    return names[0] if names and len(names) == 1 else names
