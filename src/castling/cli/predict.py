"""The verb that runs a model on images."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from castling.cli.parts import (
    add_device,
    add_overwrite,
    add_quiet,
    add_task,
    device_of,
    parser_for,
    read_size,
    say,
    show,
    task_options,
)
from castling.utils.files import is_stream, refuse_existing, replacing, write_json
from castling.utils.text import printable

if TYPE_CHECKING:
    from castling.deploy import Predictor
    from castling.deploy.predictor import ImageLike
    from castling.tasks import Prediction

#: Least score of the objects that are shown.
_SCORE = 0.3


def predict(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for(
        "predict",
        "run a trained model or an exported file on images, folders and patterns. Scores are not "
        "calibrated: among images or objects with a score of 80 %, more or fewer than 80 % may be "
        "right",
    )
    parser.add_argument("model", help="folder of a run or of a saved model, or an exported file")
    parser.add_argument(
        "images", nargs="+", help="image files, folders, and patterns such as 'photos/**/*.jpg'"
    )
    parser.add_argument(
        "--top", type=PositiveInt, default=5, help="of a classifier: classes per image (default: 5)"
    )
    parser.add_argument(
        "--score",
        type=ClosedUnitInterval,
        default=_SCORE,
        help="of a detector: leave objects with a lower score out, but for the file of --coco "
        f"(default: {_SCORE})",
    )
    parser.add_argument(
        "--batch_size", type=PositiveInt, default=32, help="images computed together (default: 32)"
    )
    add_task(parser)
    add_device(parser, "where PyTorch models run")
    parser.add_argument(
        "--csv", help="write the predictions as a table to this file, a detector's one row per box"
    )
    parser.add_argument(
        "--coco",
        help="of a detector: write all objects to this file as COCO results, a JSON list of boxes "
        "with scores; images and classes are numbered from 1",
    )
    parser.add_argument(
        "--coco_ids",
        help="a COCO file of annotations, whose numbers of images and classes --coco takes",
    )
    parser.add_argument(
        "--output",
        help="write every image with its prediction drawn, predictions.csv and predictions.json "
        "into this folder; the images of a folder keep their sub-folders",
    )
    parser.add_argument(
        "--masks",
        help="of a segmenter: write the class of every pixel into this folder, an indexed PNG for "
        "each image, named as the drawn ones",
    )
    parser.add_argument(
        "--window",
        help="of a segmenter: compute large images by windows of SIDE or HEIGHTxWIDTH pixels, a "
        "third of them overlapping (default: as it was trained to)",
    )
    add_overwrite(
        parser,
        "the files of --csv and --coco; write into folders of --output and --masks that hold files",
    )
    add_quiet(parser)
    values = parser.parse_args(arguments)
    for option in ("output", "masks"):
        if path := getattr(values, option):
            check_output(Path(path), values.overwrite, f"--{option}")
    for option in ("csv", "coco"):
        if path := getattr(values, option):
            check_file(Path(path), values.overwrite, f"--{option}")
    if values.coco_ids and not values.coco:
        raise ValueError("--coco_ids is for the file of --coco: give that too")
    patterns, unmatched = expand(values.images)
    from castling.deploy import Predictor
    from castling.tasks.segmentation import SegmentationPrediction

    predictor = Predictor(
        values.model,
        batch_size=values.batch_size,
        device=device_of(values),
        window=read_size(values.window) if values.window else None,
        options=task_options(values),
    )
    if values.masks:
        predictor.require_masks()
    ids = predictor.coco_ids(values.coco_ids) if values.coco else None
    found: list[Prediction] = [
        predictor.task.prediction_class(name=pattern, error=f"no image matches {pattern}")
        for pattern in unmatched
    ]
    images: list[ImageLike] = []
    places: list[PurePath] = [PurePath(pattern) for pattern in unmatched]
    notes: list[str] = []
    for pattern in patterns:
        inside = predictor.listed(pattern)
        images += inside
        places += [_place(Path(str(image)), Path(pattern)) for image in inside]
        notes += predictor.notes
    for image in images if ids is not None else ():
        ids.image(str(image))  # type: ignore[union-attr]  # refused before the work
    printed = not values.json and not values.quiet
    everything: list[Prediction] = []
    names = list(drawn_names(places))
    for one, image, name in zip(
        predictor.stream(images), images, names[len(unmatched) :], strict=True
    ):
        if values.coco:
            everything.append(one)
        shown = one.shown(top=values.top, score=values.score)
        if values.output and not one.error:
            write_drawn(predictor, image, shown, Path(values.output, name))
        if values.masks and not one.error:
            assert isinstance(one, SegmentationPrediction)
            one.write_mask(Path(values.masks, name))
        found.append(shown.condensed())  # masks of all images may not fit in memory
        if printed and not one.error:
            print(f"{one.name}  {found[-1].summary()}", flush=True)
    if values.csv:
        predictor.to_csv(found, values.csv)
    if values.coco:
        predictor.to_coco(everything, values.coco, ids)
    if values.output:
        predictor.to_csv(found, Path(values.output, "predictions.csv"))
        content = [one.to_dict() for one in found]
        write_json(Path(values.output, "predictions.json"), content)
    for folder in filter(None, (values.output, values.masks)):
        if not values.quiet:
            say(f"written to {folder}")
    if values.json:
        show(values, [one.to_dict() for one in found], "")
    for note in notes + predictor.notes:
        print(f"castling predict: note: {note}", file=sys.stderr)
    failed = [one for one in found if one.error]
    for one in failed:
        print(f"castling predict: {one.error}", file=sys.stderr)
    return 1 if failed else 0


def expand(images: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images and folders that arguments name, and the patterns that match none.

    A pattern is expanded here where the shell did not: quoted, or on a system whose shell does not
    expand. ``**`` stands for any folders. An existing file of that very name is no pattern. What
    lies in a folder that is named as well is left out: the folder stands for it.

    Raises:
        ValueError: an argument is empty, as a shell's unset variable is.
    """
    from castling.data import is_image

    found: list[str] = []
    unmatched: list[str] = []
    for text in images:
        if not text:
            raise ValueError("the name of an image is empty; . stands for the current folder")
        if not glob.has_magic(text) or Path(text).exists():
            found.append(text)
            continue
        matches = [
            match
            for match in sorted(glob.glob(text, recursive=True))
            if Path(match).is_dir() or is_image(match)
        ]
        # A folder stands for the images in it: named with them they would come twice.
        files = [match for match in matches if not Path(match).is_dir()]
        found += (files or matches) if "**" in text else matches
        if not matches:
            unmatched.append(text)
    return _without_parts(list(dict.fromkeys(found))), unmatched


def _without_parts(names: Sequence[str]) -> list[str]:
    """Those that none of the folders among them stands for, a folder of two names once."""
    from castling.data.files import is_listed

    folders: dict[str, Path] = {}  # by real path: the first name
    for name in names:
        if os.path.isdir(name):
            folders.setdefault(os.path.realpath(name), Path(name))
    first = set(folders.values())
    return [
        name
        for name in names
        if (not os.path.isdir(name) or Path(name) in first)
        and not any(is_listed(Path(name), folder) for folder in first)
    ]


def _place(image: Path, argument: Path) -> PurePath:
    """Where the drawn image goes: below a folder that was named as it lies there, else on top."""
    return image.relative_to(argument) if image != argument else PurePath(image.name)


def check_file(path: Path, overwrite: bool, option: str) -> None:
    """Refuse a file that is there, before any work; it may be one of the images.

    Raises:
        FileExistsError: it is, and ``overwrite`` is False.
        IsADirectoryError: it is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; {option} names a file")
    if not is_stream(path):
        refuse_existing([path], overwrite)


def check_output(folder: Path, overwrite: bool, option: str) -> None:
    """Refuse a folder that holds files, before any work.

    Raises:
        FileExistsError: it does, and ``overwrite`` is False.
        NotADirectoryError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; {option} names a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} holds files: choose another folder, or give --overwrite")


def write_drawn(predictor: Predictor, image: ImageLike, one: Prediction, path: Path) -> None:
    """An image with its prediction drawn, as a PNG file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        predictor.draw(image, one).save(temporary, format="PNG")


def drawn_names(places: Iterable[PurePath]) -> Iterator[str]:
    """A PNG file's relative path for each image's, numbered where two would be the same."""
    taken: set[str] = set()
    for place in places:
        stem = printable((place.parent / place.stem).as_posix())
        name, number = f"{stem}.png", 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}.png"
        taken.add(name.lower())
        yield name
