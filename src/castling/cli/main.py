"""The command line: one verb, one short function; the work is done by the packages below.

Every verb prints results to standard output (plain text, or JSON with ``--json``) and progress to
standard error.
"""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentError
from jsonargparse.typing import PositiveInt

from castling.cli.check_data import check_data
from castling.cli.compare import compare
from castling.cli.convert import convert
from castling.cli.explain import explain
from castling.cli.export import export
from castling.cli.lists import attentions, models
from castling.cli.measure import bench, plan
from castling.cli.parts import (
    add_data,
    add_device,
    add_overwrite,
    add_quiet,
    add_task,
    argument_text,
    class_table,
    data_of,
    device_of,
    parser_for,
    progress_of,
    show,
    task_options,
)
from castling.cli.predict import predict
from castling.cli.train import train
from castling_launcher import INTERRUPTED, REFUSED

Verb = Callable[[list[str]], int]
#: Up to so many classes ``evaluate`` prints their table unasked.
_FEW_CLASSES = 20


def run(verb: str, arguments: list[str]) -> int:
    """Run a verb.

    Returns:
        the exit code; see ``castling_launcher.EXIT_CODES``. ``CASTLING_DEBUG=1`` shows the
        traceback of an error.
    """
    try:
        return FUNCTIONS[verb](arguments)
    except KeyboardInterrupt:
        print(f"castling {verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("CASTLING_DEBUG") == "1":
            traceback.print_exc()
        name = type(error).__name__
        expected = isinstance(
            error, ArgumentError | ValueError | TypeError | OSError | RuntimeError | ImportError
        )
        text = str(error) if expected and str(error) else f"unexpected {name}: {error}"
        if isinstance(error, ArgumentError):
            text = argument_text(text)
        print(f"castling {verb}: {text}", file=sys.stderr)
        if not expected:
            print("CASTLING_DEBUG=1 shows where it happened", file=sys.stderr)
        return getattr(error, "exit_code", REFUSED)


def demo(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for("demo")
    parser.add_argument("--folder", default="runs/demo", help="where runs and report go")
    parser.add_argument("--epochs", type=PositiveInt, default=10, help="per model (default: 10)")
    add_quiet(parser)
    values = parser.parse_args(arguments)
    from castling.demo import run_demo

    result = run_demo(
        values.folder, progress_of(values), epochs=values.epochs, progress=not values.quiet
    )
    show(values, result.to_dict(), f"\nreport: {result.report}  ({result.seconds:.0f} s in all)")
    return 0


def evaluate(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for("evaluate")
    parser.add_argument("model", help="folder of a run or of a saved model")
    add_data(parser, "images to evaluate on")
    parser.add_argument(
        "--split",
        choices=["test", "val", "train"],
        default="test",
        help="images of which split; test is val where none were held out (default: test)",
    )
    parser.add_argument(
        "--unswitched", action="store_true", help="the model as trained, with its auxiliary branch"
    )
    parser.add_argument(
        "--per_class",
        action="store_true",
        help=f"print the table of classes (default: with at most {_FEW_CLASSES} classes)",
    )
    add_task(parser)
    add_device(parser)
    values = parser.parse_args(arguments)
    from castling.deploy import evaluate as evaluate_model
    from castling.deploy import model_folder
    from castling.models.card import read_card
    from castling.tasks import task_from_card
    from castling.tasks.result import describe_metrics

    device = device_of(values)
    folder = Path(values.model) if values.unswitched else model_folder(values.model)
    result = evaluate_model(
        folder,
        data_of(values.data),
        split=values.split,
        device=device,
        options=task_options(values),
    )
    percentages = task_from_card(read_card(folder / "model.json")).percentages
    lines = [
        f"{folder} on {result.describe()}",
        describe_metrics(result.metrics, percentages),
        f"{result.images_per_second:.0f} images/s with loading",
        *(f"note: {note}" for note in result.notes),
    ]
    if values.per_class or len(result.class_figures) <= _FEW_CLASSES:
        lines += class_table(result.class_figures)
    show(values, {"model": str(folder), **result.to_dict()}, "\n".join(lines))
    return 0


def switch(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for("switch")
    parser.add_argument("model", help="folder of a run or of a saved model")
    parser.add_argument("--output", help="folder of the switched model (default: MODEL/switched)")
    add_data(parser, "calibration images")
    parser.add_argument("--images", type=int, default=256, help="how many of them (default: 256)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest relative gap (default: 0.001)"
    )
    parser.add_argument("--force", action="store_true", help="switch above the tolerance too")
    add_overwrite(parser)
    values = parser.parse_args(arguments)
    from castling.deploy import switch_saved
    from castling.surgery import SwitchRefusedError

    try:
        report, folder = switch_saved(
            values.model,
            values.output,
            data=data_of(values.data),
            images=values.images,
            tolerance=values.tolerance,
            force=values.force,
            overwrite=values.overwrite,
        )
    except SwitchRefusedError as error:
        if math.isnan(error.report.max_gap):
            raise
        # Its advice is for Python.
        raise RuntimeError(
            f"the outputs would change by up to {error.report.max_gap:.2e} of their size, above "
            f"the tolerance {error.report.tolerance:g}: train to the end of the branch's schedule "
            "(schedule: ramp ends with an empty mask), or give --force to switch all the same"
        ) from error
    show(values, {**report.to_dict(), "folder": str(folder)}, f"{report}\nwritten to {folder}")
    return 0


FUNCTIONS: dict[str, Verb] = {
    "demo": demo,
    "train": train,
    "convert": convert,
    "evaluate": evaluate,
    "switch": switch,
    "predict": predict,
    "explain": explain,
    "export": export,
    "models": models,
    "attentions": attentions,
    "check-data": check_data,
    "compare": compare,
    "bench": bench,
    "plan": plan,
}
