"""The command line: one verb, one short function; the work is done by the packages below.

Every verb prints results to standard output (plain text, or JSON with ``--json``) and progress to
standard error.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from argparse import Action
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from castling_launcher import VERBS

if TYPE_CHECKING:
    from castling.data import DataConfig

Verb = Callable[[list[str]], int]


def run(verb: str, arguments: list[str]) -> int:
    """Run a verb.

    Returns:
        the exit code: 0; 1 where some inputs of many failed; 130 after Ctrl-C; 2 for whatever else
        went wrong, with one line on standard error. ``CASTLING_DEBUG=1`` shows the traceback.
    """
    try:
        return _FUNCTIONS[verb](arguments)
    except KeyboardInterrupt:
        print(f"castling {verb}: interrupted", file=sys.stderr)
        return 130
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
            text = _argument_text(text)
        print(f"castling {verb}: {text}", file=sys.stderr)
        if not expected:
            print("CASTLING_DEBUG=1 shows where it happened", file=sys.stderr)
        return getattr(error, "exit_code", 2)


def demo(arguments: list[str]) -> int:
    """See VERBS."""
    parser = _parser("demo")
    parser.add_argument("--folder", default="runs/demo", help="where runs and report go")
    parser.add_argument("--epochs", type=int, default=10, help="per model (default: 10)")
    values = parser.parse_args(arguments)
    from castling.demo import run_demo

    result = run_demo(values.folder, _say, epochs=values.epochs)
    _print(values, result.to_dict(), f"\nreport: {result.report}  ({result.seconds:.0f} s in all)")
    return 0


def train(arguments: list[str]) -> int:
    """See VERBS."""
    from castling.train import dry_run, recipe_from_namespace, recipe_parser
    from castling.train import train as train_model

    parser = recipe_parser(**_parser_options("train"))
    parser.add_argument("--run", default="", help="the run's folder (default: runs/MODEL-DATA)")
    parser.add_argument(
        "--resume",
        choices=["auto", "must", "never"],
        default="auto",
        help="go on with an interrupted run of the same recipe (default: auto)",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="only try a step, on generated images"
    )
    _add_json(parser)
    values = parser.parse_args(arguments)
    recipe = recipe_from_namespace(parser, values)
    if values.dry_run:
        dry_run(recipe)
        _print(values, {"dry_run": "passed"}, "dry run passed: the recipe starts and steps")
        return 0
    folder = (
        values.run or f"runs/{recipe.model.name}-{Path(recipe.data.source.split(':')[-1]).stem}"
    )
    result = train_model(recipe, folder, resume=values.resume)
    from castling.lens.report import write_run_report

    page = write_run_report(folder)
    text = f"{result}\nreport: {page}"
    if result.already_finished:
        text = (
            f"already finished; nothing done (delete {folder} or choose another --run). "
            f"Its results:\n{text}"
        )
    _print(values, {**result.to_dict(), "report": str(page)}, text)
    return 0


def evaluate(arguments: list[str]) -> int:
    """See VERBS."""
    parser = _parser("evaluate")
    parser.add_argument("model", help="folder of a run or of a saved model")
    _add_data(parser, "images to evaluate on")
    parser.add_argument("--split", choices=["test", "val", "train"], default="test")
    parser.add_argument(
        "--unswitched", action="store_true", help="the model as trained, with its auxiliary branch"
    )
    parser.add_argument("--device", default="cpu")
    values = parser.parse_args(arguments)
    from castling.deploy import model_folder
    from castling.train import evaluate as evaluate_model

    folder = Path(values.model) if values.unswitched else model_folder(values.model)
    result = evaluate_model(folder, _data(values.data), split=values.split, device=values.device)
    top5 = f"top-5 {result.top5:.2f} %  " if len(result.class_accuracy) > 5 else ""
    lines = [
        f"{folder}, {result.images} {result.split} images",
        f"top-1 {result.top1:.2f} %  {top5}loss {result.loss:.4f}",
        f"{result.images_per_second:.0f} images/s with loading",
    ]
    _print(values, {"model": str(folder), **result.to_dict()}, "\n".join(lines))
    return 0


def switch(arguments: list[str]) -> int:
    """See VERBS."""
    parser = _parser("switch")
    parser.add_argument("model", help="folder of a run or of a saved model")
    parser.add_argument("--output", help="folder of the switched model (default: MODEL/switched)")
    _add_data(parser, "calibration images")
    parser.add_argument("--images", type=int, default=256, help="how many of them (default: 256)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest relative gap (default: 0.001)"
    )
    parser.add_argument("--force", action="store_true", help="switch above the tolerance too")
    values = parser.parse_args(arguments)
    from castling.deploy import switch_saved
    from castling.surgery import SwitchRefusedError

    try:
        report, folder = switch_saved(
            values.model,
            values.output,
            data=_data(values.data),
            images=values.images,
            tolerance=values.tolerance,
            force=values.force,
        )
    except SwitchRefusedError as error:  # its advice is for Python
        raise RuntimeError(
            f"the outputs would change by up to {error.report.max_gap:.2e} of their size, above "
            f"the tolerance {error.report.tolerance:g}: train to the end of the branch's schedule "
            "(schedule: ramp ends with an empty mask), or give --force to switch all the same"
        ) from error
    _print(values, {**report.to_dict(), "folder": str(folder)}, f"{report}\nwritten to {folder}")
    return 0


def predict(arguments: list[str]) -> int:
    """See VERBS."""
    parser = _parser("predict")
    parser.add_argument("model", help="folder of a run or of a saved model, or an ONNX file")
    parser.add_argument("images", nargs="+", help="image files and folders")
    parser.add_argument("--top", type=int, default=5, help="classes per image (default: 5)")
    parser.add_argument("--batch_size", type=int, default=32, help="(default: 32)")
    values = parser.parse_args(arguments)
    from castling.deploy import open_classifier
    from castling.deploy import predict as predict_files

    model, card = open_classifier(values.model)
    found = predict_files(model, card, values.images, values.top, values.batch_size)
    failed = [one for one in found if one.error]
    lines = []
    for one in found:
        ranked = zip(one.classes, one.probabilities, strict=True)
        if not one.error:
            lines.append(f"{one.path}  " + "  ".join(f"{name} {p:.1%}" for name, p in ranked))
    _print(values, [one.to_dict() for one in found], "\n".join(lines))
    for one in failed:
        print(f"castling predict: {one.error}", file=sys.stderr)
    return 1 if failed else 0


def export(arguments: list[str]) -> int:
    """See VERBS."""
    parser = _parser("export")
    parser.add_argument("model", help="folder of a run or of a saved model")
    parser.add_argument("output", nargs="?", help="the file (default: MODEL/model.onnx)")
    parser.add_argument("--size", help="HEIGHTxWIDTH or a side (default: that of training)")
    parser.add_argument("--verify", nargs="+", default=[], help="further sizes to verify at")
    parser.add_argument(
        "--dynamic",
        choices=["auto", "all", "batch"],
        default="auto",
        help="what may change later: batch, height and width (all), or the batch alone; auto: all, "
        "or batch where the model runs at one size only (default: auto)",
    )
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: the exporter's)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest difference (default: 0.0001)"
    )
    values = parser.parse_args(arguments)
    from castling.deploy import export as export_model
    from castling.deploy import model_folder
    from castling.models.saved import open_model

    model, card = open_model(model_folder(values.model))
    report = export_model(
        model,
        values.output or Path(values.model) / "model.onnx",
        _size(values.size) if values.size else card.image_size,
        verify_sizes=[_size(text) for text in values.verify] or None,
        dynamic=values.dynamic,
        opset=values.opset,
        tolerance=values.tolerance,
        card=card,
    )
    _print(values, report.to_dict(), str(report))
    return 0


def models(arguments: list[str]) -> int:
    """See VERBS."""
    parser = _parser("models")
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'castling_*'")
    parser.add_argument("--macs", action="store_true", help="build each and count")
    values = parser.parse_args(arguments)
    from castling.lens.catalogue import list_models

    found = list_models(values.pattern, count=values.macs)
    lines = [str(entry) for entry in found]
    _print(values, [entry.to_dict() for entry in found], "\n".join(lines))
    return 0


def attentions(arguments: list[str]) -> int:
    """See VERBS."""
    parser = _parser("attentions")
    values = parser.parse_args(arguments)
    from castling.lens.catalogue import list_attentions

    found = list_attentions()
    _print(values, [entry.to_dict() for entry in found], "\n".join(str(entry) for entry in found))
    return 0


def bench(arguments: list[str]) -> int:
    """See VERBS."""
    parser = _parser("bench")
    parser.add_argument("--models", nargs="+", default=[], help="timm names, ours included")
    parser.add_argument(
        "--attentions",
        nargs="+",
        default=[],
        help="alone, or put into each of --models; the first is the baseline (default: softmax "
        "linear_angular quadratic_taylor relu_linear)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=[],
        help="HEIGHTxWIDTH or sides: pixels for models (224 448), tokens for attentions (14 28 56)",
    )
    parser.add_argument("--batch", type=int, default=1, help="(default: 1)")
    parser.add_argument(
        "--dim", type=int, default=192, help="channels of attentions (default: 192)"
    )
    parser.add_argument("--heads", type=int, default=3, help="heads of attentions (default: 3)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds at most (default: 15)")
    parser.add_argument(
        "--seconds", type=float, default=10, help="time limit per size (default: 10)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", help="folder for bench.json, bench.csv and bench.png")
    values = parser.parse_args(arguments)
    from castling.lens.bench import bench as run_bench
    from castling.lens.subjects import choose_subjects

    sizes = values.sizes or (["224", "448"] if values.models else ["14", "28", "56"])
    result = run_bench(
        choose_subjects(values.models, values.attentions, dim=values.dim, num_heads=values.heads),
        [_size(text) for text in sizes],
        batch=values.batch,
        rounds=values.rounds,
        seconds=values.seconds,
        device=values.device,
        threads=values.threads,
        report=lambda m: _say(f"{m.name} {m.height}×{m.width} {'failed' if m.error else 'done'}"),
    )
    text = result.table()
    if values.output:
        text += "\n" + "\n".join(str(path) for path in result.write(values.output))
    _print(values, result.to_dict(), text)
    return 1 if any(m.error for m in result.measurements) else 0


_FUNCTIONS: dict[str, Verb] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "switch": switch,
    "predict": predict,
    "export": export,
    "models": models,
    "attentions": attentions,
    "bench": bench,
}


class _HelpFormatter(DefaultHelpFormatter):
    """Says a default once, and no default where it says nothing."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if "(default: " in text:
            return text
        said: str = super()._get_help_string(action)
        if action.nargs == 0 or action.default in (None, "", []):
            # Within the brackets there may be a type as well.
            said = re.sub(r"(, | \()default: %\(default\)s", r"\1", said)
            said = said.replace(", )", ")").replace(" ()", "")
        return said


def _parser_options(verb: str) -> dict[str, Any]:
    text = VERBS[verb]
    return {
        "prog": f"castling {verb}",
        "description": text[0].upper() + text[1:] + ".",
        "exit_on_error": False,
        "formatter_class": _HelpFormatter,
        "allow_abbrev": False,  # --epoch must not pass for --epochs
    }


def _parser(verb: str) -> ArgumentParser:
    parser = ArgumentParser(**_parser_options(verb))
    _add_json(parser)
    return parser


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_data(parser: ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--data",
        help=f"{what}: digits, a folder, a zip or torchvision:NAME (default: those of the run)",
    )


def _data(source: str | None) -> DataConfig | None:
    from castling.data import DataConfig

    return None if source is None else DataConfig(source=source)


def _argument_text(text: str) -> str:
    """What jsonargparse says about a wrong argument, in one line, the flag by its name."""
    text = re.sub(r"Parser key \"(.+?)\":", r"--\1:", text)
    text = re.sub(r"Expected an? <class '(\w+)'>", r"expected \1", text)
    return " ".join(text.split())


def _size(text: str) -> tuple[int, int]:
    parts: Sequence[str] = text.lower().replace("×", "x").split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"{text!r} is not a size: give a side (224) or HEIGHTxWIDTH (224x320)")
    return int(parts[0]), int(parts[-1])


def _print(values: Any, value: Any, text: str) -> None:
    if values.json or text:
        print(json.dumps(value, indent=2, ensure_ascii=False) if values.json else text, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
