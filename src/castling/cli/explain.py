"""The verb that shows what a model attends to."""

from __future__ import annotations

from jsonargparse.typing import PositiveInt

from castling.cli.parts import (
    add_device,
    add_overwrite,
    add_quiet,
    device_of,
    parser_for,
    progress_of,
    show,
)
from castling.cli.predict import expand


def explain(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for(
        "explain",
        "what a model attends to on images of yours: attention maps, their entropy, rank and "
        "distance over depth, receptive fields and class activation, as one page",
    )
    parser.add_argument(
        "model", help="folder of a run or saved model, or a name of timm's (with --checkpoint)"
    )
    parser.add_argument(
        "images", nargs="+", help="image files, folders, and patterns such as 'photos/**/*.jpg'"
    )
    parser.add_argument("--teacher", help="a model to show beside it, named likewise")
    parser.add_argument("--layers", nargs="+", help="names or patterns (default: all attentions)")
    parser.add_argument("--output", default="explained", help="folder (default: explained)")
    parser.add_argument(
        "--limit", type=PositiveInt, default=8, help="of more images, evenly spread ones are taken"
    )
    parser.add_argument(
        "--unswitched", action="store_true", help="models as trained, with auxiliary branches"
    )
    parser.add_argument("--checkpoint", help="a file of weights for a model of timm's")
    parser.add_argument("--teacher_checkpoint", help="a file of weights for a teacher of timm's")
    parser.add_argument("--num_classes", type=PositiveInt, help="of models of timm's")
    parser.add_argument(
        "--max_tokens",
        type=PositiveInt,
        default=1600,
        help="no attention map above so many tokens: its size grows with their square",
    )
    add_device(parser)
    add_overwrite(parser, "the explanation that --output holds")
    add_quiet(parser)
    values = parser.parse_args(arguments)
    images, unmatched = expand(values.images)
    if unmatched:
        raise ValueError(f"no image matches {', '.join(unmatched)}")
    from castling.deploy.explaining import explain_saved

    explanation, page = explain_saved(
        values.model,
        images,
        values.output,
        teacher=values.teacher,
        layers=values.layers,
        limit=values.limit,
        unswitched=values.unswitched,
        checkpoint=values.checkpoint,
        teacher_checkpoint=values.teacher_checkpoint,
        num_classes=values.num_classes,
        max_tokens=values.max_tokens,
        device=device_of(values),
        overwrite=values.overwrite,
        progress=progress_of(values),
    )
    show(values, explanation.to_dict() | {"page": str(page)}, f"{explanation}\npage: {page}")
    return 0
