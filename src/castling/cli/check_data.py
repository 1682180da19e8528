"""The verb that reports every fault of a data set."""

from __future__ import annotations

from castling.cli.parts import parser_for, show, source_of
from castling_launcher import DONE, SOME_FAILED

#: Sources of a folder or zip file alone.
FORMATS = (
    *("coco", "voc", "yolo", "masks", "ade20k", "cityscapes", "panoptic", "voc_masks"),
    *("folder", "unlabelled"),
)


def check_data(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for("check-data")
    parser.add_argument(
        "data",
        help="a folder, a zip, a COCO JSON file, data.yaml, digit_scenes, torchvision:NAME, or the "
        "source of a recipe: '{name: masks, path: FOLDER, ignore: [0]}'",
    )
    parser.add_argument(
        "--format",
        choices=["auto", *FORMATS],
        default="auto",
        help="how the images are annotated; auto looks at the files (default: auto)",
    )
    parser.add_argument(
        "--depth",
        choices=["headers", "full", "none"],
        default="headers",
        help="open every image file and read every mask, decode images too (full), or read the "
        "annotations alone (none) (default: headers)",
    )
    values = parser.parse_args(arguments)
    from castling.data import check_source, source_from

    if values.format == "auto":
        source = source_of(values.data, "DATA")
    else:
        source = source_from({"name": values.format, "path": values.data})
    report = check_source(source, values.depth)
    show(values, report.to_dict(), str(report))
    return SOME_FAILED if report.errors else DONE
