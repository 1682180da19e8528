"""The verb that trains."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from castling.cli.parts import add_json, add_quiet, parser_options, show

if TYPE_CHECKING:
    from castling.train import BatchSizeFound, LearningRateFound


def train(arguments: list[str]) -> int:
    """See VERBS."""
    from castling.train import (
        dry_run,
        find_batch_size,
        find_learning_rate,
        parse_flags,
        recipe_changes,
    )
    from castling.train import train as train_model

    def extend(parser: ArgumentParser) -> None:
        parser.add_argument("--run", default="", help="the run's folder (default: runs/MODEL-DATA)")
        parser.add_argument(
            "--resume",
            choices=["auto", "must", "never"],
            default="auto",
            help="go on with an interrupted run of the same recipe (default: auto)",
        )
        parser.add_argument(
            "--dry_run",
            action="store_true",
            help="check everything, and try a step on generated images; writes nothing",
        )
        parser.add_argument(
            "--find_lr",
            action="store_true",
            help="only suggest a learning rate, from some steps with a rising one",
        )
        parser.add_argument(
            "--find_batch_size",
            action="store_true",
            help="only find the largest batch that the memory holds; on a CPU up to 256 images",
        )
        parser.add_argument(
            "--changed_data",
            choices=["refuse", "allow"],
            default="refuse",
            help="whether to go on with a run whose training images were removed or changed since; "
            "allow also takes in new images (default: refuse)",
        )
        add_json(parser)
        add_quiet(parser)

    recipe, values = parse_flags(arguments, extend=extend, **parser_options("train"))
    source = Path(str(recipe.data.source).split(":")[-1]).stem
    folder = values.run or f"runs/{recipe.model.name.replace('/', '-')}-{source}"
    if values.dry_run:
        dry_run(recipe, run_dir=folder, resume=values.resume, changed_data=values.changed_data)
        show(values, {"dry_run": "passed"}, "dry run passed: the recipe starts and steps")
        return 0
    found: list[BatchSizeFound | LearningRateFound] = []
    if values.find_batch_size:
        found.append(find_batch_size(recipe))
    if values.find_lr:
        found.append(find_learning_rate(recipe, folder, progress=not values.quiet))
    if found:
        both = {key: value for one in found for key, value in asdict(one).items()}
        show(values, both, "\n".join(map(str, found)))
        return 0
    result = train_model(
        recipe,
        folder,
        resume=values.resume,
        progress=not values.quiet,
        changed_data=values.changed_data,
    )
    if not result.metrics:  # one of several processes; the first one reports
        return 0
    from castling.profiling.run_report import write_run_report

    page = write_run_report(folder, recipe_changes(recipe))
    text = f"{result}\nreport: {page}"
    if result.already_finished:
        text = (
            f"already finished; nothing done (delete {folder} or choose another --run). "
            f"Its results:\n{text}"
        )
    show(values, {**result.to_dict(), "report": str(page)}, text)
    return 0
