"""The images of a run that goes on: those it began with, unless the user says otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from castling.data import DataModule, FileSource, SplitRecord, read_split_record
from castling.data.legacy import RULES_OF_OLD_RUNS, with_old_rules
from castling.data.split_record import SPLIT_FILE, leaks
from castling.tasks.run_recipe import read_run_recipe
from castling.train.recipe import Recipe
from castling.train.recipe_file import recipe_from_dict
from castling.train.recipe_parser import normalised, read_recipe_values
from castling.utils.text import first_line

ChangedData = Literal["refuse", "allow"]

_ADVICE = (
    "Put them back, train a new run (another --run), or go on with them as they are "
    "now: --changed_data allow"
)


def load_run_recipe(run_dir: Path) -> Recipe:
    """The recipe in a run's folder, with the rules of its time for options that are younger.

    Raises:
        ValueError: it is missing or damaged; the file is named.
    """
    values = _run_values(run_dir)
    return recipe_from_dict({**values, "data": with_old_rules(values.get("data", {}))})


def in_rules_of_run(recipe: Recipe, run_dir: Path) -> Recipe:
    """``recipe`` with the rules of the run in the folder, where that went by those of old.

    So the command that began a run goes on with it, although the defaults have changed since. An
    option that is not at its default was asked for and stays.
    """
    if not (run_dir / "recipe.yaml").is_file():
        return recipe
    written = with_old_rules(_run_values(run_dir).get("data", {}))
    data = recipe.data
    for section, name, value in RULES_OF_OLD_RUNS:
        part = getattr(data, section)
        if written[section][name] == value and getattr(part, name) == getattr(type(part)(), name):
            part = dataclasses.replace(part, **{name: value})
            data = dataclasses.replace(data, **{section: part})
    return dataclasses.replace(recipe, data=data)


def recorded_split(
    run_dir: Path, checkpoint: Mapping[str, Any], changed_data: ChangedData
) -> SplitRecord | None:
    """The split that an interrupted run began with; None where its version wrote none down.

    Raises:
        ValueError: ``split.json`` is missing, damaged, or not that of the checkpoint.
    """
    record = read_split_record(run_dir)
    digest = checkpoint["castling"].get("split")  # None: of an earlier version
    same = digest is None or (record is not None and record.digest == digest)
    if changed_data == "refuse" and not same:
        state = "missing" if record is None else "not the one of its last checkpoint"
        raise ValueError(
            f"{run_dir / SPLIT_FILE}, which says what the run was trained on, is {state}; put it "
            "back, or go on with it as it is: --changed_data allow"
        )
    return record


def check_changes(data: DataModule, record: SplitRecord | None, changed_data: ChangedData) -> None:
    """Refuse to go on over other training images than before, unless that is allowed.

    Raises:
        ValueError: images trained on are gone or changed; the message lists the changes.
    """
    if record is not None and data.changes.training and changed_data == "refuse":
        lines = "\n  ".join(data.changes.lines())
        raise ValueError(
            f"the images or annotations of {record.source} are not those that this run began with:"
            f"\n  {lines}\n" + _ADVICE
        )


def write_split(
    data: DataModule,
    run_dir: Path,
    record: SplitRecord | None,
    resumed: bool,
    changed_data: ChangedData,
) -> str:
    """Write ``split.json``, and add what a person should know about the split to the data's notes.

    Args:
        data: the images; by content, every file is read.
        run_dir: the run's folder.
        record: what the run goes on with.
        resumed: whether a run goes on.
        changed_data: whether new images joined.

    Returns:
        The digest of the record, for checkpoints.
    """
    allowed = changed_data == "allow"
    now = record if record is not None and not allowed else data.record()
    notes = leaks(now)
    if record is not None:
        notes += data.changes.lines()
        if data.changes.added:
            notes.append(
                "the new images joined the splits"
                if allowed
                else "the run goes on without the new images; --changed_data allow takes them in"
            )
    elif resumed and isinstance(data.source, FileSource):
        notes.append(
            "this run is of a version that did not write its split down: its images are those at "
            "the same positions, others than before if files came or went since"
        )
    data.notes += tuple(notes)
    now.write(run_dir)
    return now.digest


def _run_values(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "recipe.yaml"
    try:
        read_run_recipe(path)
        return normalised(read_recipe_values(path))
    except ValueError as error:
        raise ValueError(
            f"{first_line(error)}, so it cannot be seen whether this is the same run: put the "
            f"recipe of the run there, as {path.name} of such a run has it, or choose another --run"
        ) from error
