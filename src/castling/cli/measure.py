"""The verbs that measure: ``bench ops``, ``bench models`` and ``plan``."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from castling.cli.parts import (
    add_device,
    add_quiet,
    check_files,
    device_of,
    parser_for,
    progress_of,
    read_size,
    show,
)
from castling.utils.text import did_you_mean

if TYPE_CHECKING:
    from castling.profiling.results import BenchResult

#: Kernels that ``bench ops`` measures by default.
KERNELS = (
    "linear_angular:local=none",
    "linear_angular:local=token1d",
    "linear_angular:local=grid2d",
    "relu_linear",
    "quadratic_taylor",
    "quadratic_taylor:form=exact",
)
_ATTENTION = "NAME or NAME:option=value,… (castling attentions lists them)"


def bench(arguments: list[str]) -> int:
    """See VERBS; the first argument says what to measure."""
    parts = {"ops": bench_ops, "models": bench_models}
    if arguments and arguments[0] in parts:
        return parts[arguments[0]](arguments[1:])
    parser = parser_for("bench")
    parser.add_argument("what", choices=list(parts), help="see castling bench WHAT --help")
    values = parser.parse_args(arguments)
    raise ValueError(f"say what first: castling bench {values.what} …")


def bench_ops(arguments: list[str]) -> int:
    """Measure attention kernels."""
    parser = parser_for(
        "bench ops",
        "attention kernels on every backend, against PyTorch's fused softmax, the authors' code "
        "and the roofline of this machine",
    )
    parser.add_argument(
        "--kernels",
        nargs="+",
        default=list(KERNELS),
        help=f"{_ATTENTION} (default: {' '.join(KERNELS)})",
    )
    parser.add_argument(
        "--backends",
        "--paths",  # its name in earlier versions
        dest="backends",
        nargs="+",
        default=[],
        help="naive, compiled, native, triton (default: all that work on the device)",
    )
    parser.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        default=[49, 196, 1024, 4096],
        help="(default: 49 196 1024 4096)",
    )
    parser.add_argument(
        "--dims", nargs="+", type=int, default=[64], help="channels per head (default: 64)"
    )
    parser.add_argument("--heads", nargs="+", type=int, default=[6], help="(default: 6)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1], help="(default: 1)")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=["float32"],
        help="float32, bfloat16, float16 (default: float32)",
    )
    parser.add_argument("--backward", action="store_true", help="time the gradients as well")
    _add_timing_and_files(parser, rounds=15, seconds=5)
    values = parser.parse_args(arguments)
    check_files(values, "output", "csv", "plot")
    from castling.ops.backends import BACKENDS
    from castling.profiling import bench_ops as ops
    from castling.profiling.candidates import read_attention
    from castling.profiling.checks import LIMITS
    from castling.profiling.op_candidates import SOFTMAX

    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in LIMITS}
    _check("--dtypes", values.dtypes, dtypes)
    _check("--backends", values.backends, BACKENDS)
    settings = ops.settings_of(
        values.tokens,
        batches=values.batches,
        heads=values.heads,
        dims=values.dims,
        dtypes=[dtypes[name] for name in values.dtypes],
    )
    result = ops.bench_ops(
        {text: read_attention(text) for text in values.kernels if text != SOFTMAX},
        settings,
        backends=values.backends or None,
        backward=values.backward,
        report=_progress(values),
        **_timing(values),
    )
    return _finish(values, result, "ops", arguments)


def bench_models(arguments: list[str]) -> int:
    """Measure whole models."""
    parser = parser_for(
        "bench models",
        "whole models in several runtimes, against timm's softmax host and against the "
        "attention-free bound: the same model with its attention deleted",
    )
    parser.add_argument("models", nargs="+", help="timm names, ours included, and HEAD/BACKBONE")
    parser.add_argument(
        "--attentions",
        nargs="+",
        default=[],
        help=f"convert each model to: {_ATTENTION} (default: the models' own)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["224", "448"],
        help="HEIGHTxWIDTH or sides, in pixels (default: 224 448)",
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1], help="(default: 1)")
    parser.add_argument(
        "--runtimes",
        nargs="+",
        default=["eager"],
        help="eager; folded, by castling.fold_; compiled, onnxruntime, openvino (default: eager)",
    )
    _add_timing_and_files(parser, rounds=15, seconds=10)
    values = parser.parse_args(arguments)
    check_files(values, "output", "csv", "plot")
    from castling.profiling import bench_models as models
    from castling.profiling.candidates import choose_candidates

    result = models.bench_models(
        choose_candidates(values.models, values.attentions),
        [read_size(text) for text in values.sizes],
        batches=values.batches,
        variants=values.runtimes,
        report=_progress(values),
        **_timing(values),
    )
    return _finish(values, result, "models", arguments)


def plan(arguments: list[str]) -> int:
    """See VERBS."""
    parser = parser_for("plan")
    parser.add_argument(
        "model", help="timm name, or HEAD/BACKBONE, of a model that linearize_ can convert"
    )
    parser.add_argument(
        "--attention",
        default="linear_angular",
        help=f"attention of the linear layers: {_ATTENTION} (default: linear_angular)",
    )
    parser.add_argument("--image_size", default="224", help="HEIGHTxWIDTH or side (default: 224)")
    parser.add_argument("--batch", type=int, default=1, help="images per call (default: 1)")
    parser.add_argument(
        "--checkpoint", help="weights to plan with: the folder of a run or saved model, or a file"
    )
    parser.add_argument("--output", default="plan.json", help="(default: plan.json)")
    parser.add_argument(
        "--strict", action="store_true", help="fail if the prediction is off by more than a tenth"
    )
    _add_timing(parser, rounds=25, seconds=20)
    add_quiet(parser)
    values = parser.parse_args(arguments)
    check_files(values, "output")
    from castling.profiling.candidates import read_attention
    from castling.profiling.planning import WITHIN
    from castling.profiling.planning import plan as make_plan

    size, timing = read_size(values.image_size), _timing(values)
    found = make_plan(
        _model(values.model, values.checkpoint, size, progress_of(values)),
        read_attention(values.attention),
        image_size=size,
        batch=values.batch,
        name=values.model,
        **timing,
    )
    found.save(values.output)
    assert found.error is not None
    off = abs(found.error) > WITHIN
    lines = [str(found)]
    if off:
        lines.append(
            f"that is more than {100 * WITHIN:.0f} %: the machine was busy, or the layers affect "
            "each other's speed; measure again with more --seconds before using the plan"
        )
    lines.append(f"written to {values.output}")
    show(values, found.to_dict(), "\n".join(lines))
    return 1 if off and values.strict else 0


def _model(
    name: str,
    checkpoint: str | None,
    size: tuple[int, int],
    progress: Callable[[str], None],
) -> Any:
    from castling.models.builder import build_model
    from castling.models.starting_weights import card_beside, start_from

    if checkpoint is None:
        return build_model(name, {}, None, image_size=size)
    card = card_beside(checkpoint)
    if card is None:
        model = build_model(name, {}, None, image_size=size)
    elif card.name == name:
        kwargs = {key: value for key, value in card.kwargs.items() if key != "img_size"}
        model = build_model(
            name, kwargs, card.attention, card.where, head=card.head, image_size=size
        )
    else:
        raise ValueError(f"--checkpoint {checkpoint} holds a {card.name}, not a {name}")
    progress(str(start_from(model, checkpoint)))
    return model


def _add_timing(parser: ArgumentParser, rounds: int, seconds: float) -> None:
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"maximum timed runs of each (default: {rounds})"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help=f"time limit per comparison (default: {seconds})",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument(
        "--clock",
        default="wall",
        help="wall, or cpu on a busy machine, with --threads 1 (default: wall)",
    )
    add_device(parser)


def _timing(values: Any) -> dict[str, Any]:
    """The arguments of ``_add_timing``, as all measuring functions take them."""
    names = ("rounds", "seconds", "threads", "clock")
    return {name: getattr(values, name) for name in names} | {"device": device_of(values)}


def _add_timing_and_files(parser: ArgumentParser, rounds: int, seconds: float) -> None:
    _add_timing(parser, rounds, seconds)
    parser.add_argument("--output", help="JSON file to write the result to")
    parser.add_argument("--csv", help="CSV file to write the measurements to")
    parser.add_argument("--plot", help="PNG file to write the plot to")
    add_quiet(parser)


def _check(option: str, given: list[str], known: Any) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(
            f"{option}: no {unknown[0]!r}; there are: {', '.join(known)}"
            f"{did_you_mean(unknown[0], known)}"
        )


def _progress(values: Any) -> Callable[[Any], None]:
    write = progress_of(values)
    return lambda row: write(f"{row.label}, {row.point}: {'failed' if row.error else 'done'}")


def _finish(values: Any, result: BenchResult[Any], part: str, arguments: list[str]) -> int:
    result = replace(result, command=shlex.join(["castling", "bench", part, *arguments]))
    lines = [result.table()]
    for path, write in (
        (values.output, result.write_json),
        (values.csv, result.write_csv),
        (values.plot, result.write_plot),
    ):
        if path:
            write(path)
            lines.append(f"written to {path}")
    show(values, result.to_dict(), "\n".join(lines))
    return 1 if any(row.error for row in result.measurements) else 0
