"""Time and memory of whole dense models from small to large images, softmax against castled.

For every model its softmax hosts and its attention-free bound, in eager PyTorch and OpenVINO; for a
detector, decoding and suppression included. Memory is what a new process grows by in its first
call (with OpenVINO, when the exported file is opened and run); a process may take ``--limit``
gigabytes, and what needs more is recorded as not running. Then the times of those that run are
taken together, interleaved, after their outputs were checked. Each size is written as soon as it is
done, and not measured again by the same command. Run it on an idle machine, or with
``--clock cpu``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from castling.export.outputs import NamedOutputs
from castling.export.target import ExportJob, target_named
from castling.profiling.bench_models import bench_models
from castling.profiling.candidates import Candidate, choose_candidates
from castling.profiling.memory import resident_megabytes
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.profiling.whole import whole
from castling.utils.files import write_json

HERE = Path(__file__).parent
RUNTIMES = ("eager", "openvino")
#: What castled models are made for, (height, width) in pixels.
SMALL = (224, 224)


class FailedError(RuntimeError):
    """A process came to an end without a result; the message is its last line."""


def in_child(options: argparse.Namespace, side: int, **work: Any) -> dict[str, Any]:
    """What ``work`` gives in a process of its own."""
    command = [sys.executable, __file__, *options.models, "--sides", str(side)]
    command += ["--limit", str(options.limit), "--rounds", str(options.rounds)]
    command += ["--seconds", str(options.seconds), "--clock", options.clock]
    command += ["--child", json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    last = (done.stderr.strip().splitlines() or [""])[-1]
    raise FailedError(last[:200] or f"the process ended with status {done.returncode}")


def child(options: argparse.Namespace, work: dict[str, Any]) -> None:
    """Do what the parent asked for and print it as one line."""
    limit = int(options.limit * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print("\n" + json.dumps(JOBS[work.pop("job")](options, **work)), flush=True)


def candidates(models: Sequence[str]) -> dict[str, Candidate]:
    """The models with their hosts and bounds.

    A castled model is made for small images and sees larger ones. Softmax hosts are made for the
    size: LeViT's tables of biases, which have the square of the number of tokens, would otherwise
    be resized in every call.
    """
    chosen = choose_candidates(models)
    hosts = {host for each in chosen for host in each.hosts}

    def for_any_size(candidate: Candidate) -> Candidate:
        return replace(candidate, build=lambda size: candidate.build(SMALL))

    return {each.name: each if each.name in hosts else for_any_size(each) for each in chosen}


def built(options: argparse.Namespace, name: str) -> tuple[nn.Module, Tensor]:
    """A candidate and one image."""
    size = (options.sides[0], options.sides[0])
    torch.manual_seed(0)
    return whole(candidates(options.models)[name].build(size).eval()), torch.randn(1, 3, *size)


def eager_memory(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Megabytes of the first call."""
    model, images = built(options, name)
    return {"megabytes": resident_megabytes(lambda: model(images))}


def written(options: argparse.Namespace, name: str, path: str) -> dict[str, Any]:
    """The model as an ONNX file."""
    model, images = built(options, name)
    names = tuple(model(images))
    metadata = {"outputs": json.dumps(names)}
    job = ExportJob(NamedOutputs(model), images, names, "none", metadata)
    target_named("onnx").write(job, Path(path))
    return {}


def openvino_memory(options: argparse.Namespace, path: str) -> dict[str, Any]:
    """Megabytes of opening the file and of the first call."""
    images = torch.randn(1, 3, options.sides[0], options.sides[0])
    target = target_named("openvino")
    return {
        "megabytes": resident_megabytes(lambda: target.open(Path(path), threads=1).runner(images)())
    }


def times(options: argparse.Namespace, names: list[str], runtime: str) -> dict[str, Any]:
    """The result of ``castling bench models`` of some candidates."""
    chosen = [each for name, each in candidates(options.models).items() if name in names]
    size = (options.sides[0], options.sides[0])
    found = bench_models(
        chosen,
        [size],
        variants=[runtime],
        rounds=options.rounds,
        seconds=options.seconds,
        threads=1,
        clock=options.clock,
    )
    return found.to_dict()


JOBS = {
    "eager": eager_memory,
    "write": written,
    "openvino": openvino_memory,
    "times": times,
}


def memory(options: argparse.Namespace, side: int, name: str, runtime: str) -> ModelMeasurement:
    """One candidate alone; ``error`` where it does not run."""
    row = ModelMeasurement(name, runtime, side, side, 1)
    try:
        if runtime == "eager":
            found = in_child(options, side, job="eager", name=name)
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = f"{folder}/model.onnx"
                in_child(options, side, job="write", name=name, path=path)
                found = in_child(options, side, job="openvino", path=path)
    except FailedError as error:
        return replace(row, error=str(error))
    return replace(row, resident_megabytes=found["megabytes"])


def memories(options: argparse.Namespace, side: int) -> list[ModelMeasurement]:
    """All candidates at one size, each alone; without times."""
    rows = []
    for runtime in RUNTIMES:
        for name in candidates(options.models):
            row = memory(options, side, name, runtime)
            print(f"{side} px, {row.label}: {row.resident_megabytes} MB {row.error}", flush=True)
            rows.append(row)
    return rows


def timed(
    options: argparse.Namespace, rows: list[ModelMeasurement], side: int
) -> tuple[list[ModelMeasurement], dict[str, Any]]:
    """The rows of a size with their times, and facts of the machine."""
    found: dict[tuple[str, str], ModelMeasurement] = {(r.model, r.variant): r for r in rows}
    facts: dict[str, Any] = {}
    for runtime in RUNTIMES:
        names = [row.model for row in rows if row.variant == runtime and not row.error]
        values = in_child(options, side, job="times", names=names, runtime=runtime)
        result = ModelsResult.from_dict(values)
        facts |= result.machine
        for row in result.measurements:
            key = row.model, runtime
            megabytes = found[key].resident_megabytes
            found[key] = replace(row, resident_megabytes=megabytes)
            print(f"{side} px, {row.label}: {row.milliseconds} ms {row.error}", flush=True)
    return list(found.values()), facts


def main() -> None:
    """Measure what is not in the output yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="timm names, ours included, and HEAD/BACKBONE")
    parser.add_argument("--sides", type=int, nargs="+", default=[320, 640, 1024, 1536, 2048])
    parser.add_argument("--limit", type=float, default=20.0, help="gigabytes of one process")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing, a size and runtime")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: when busy")
    parser.add_argument("--untimed", action="store_true", help="memory alone, on a busy machine")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "high_resolution.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options, json.loads(options.child))
        return
    rows: list[ModelMeasurement] = []
    facts: dict[str, Any] = {"limit_gigabytes": options.limit}
    if options.output.exists():
        before = ModelsResult.from_dict(json.loads(options.output.read_text()))
        rows, facts = list(before.measurements), before.machine
    command = f"python benchmarks/high_resolution.py {' '.join(options.models)}"
    command += f" --sides {' '.join(map(str, options.sides))}"
    command += f" --limit {options.limit:g} --rounds {options.rounds} --seconds {options.seconds:g}"
    command += f" --clock {options.clock}"
    hosts = {name: each.hosts for name, each in candidates(options.models).items()}

    def write() -> None:
        result = ModelsResult(tuple(rows), facts, hosts, command=command)
        write_json(options.output, result.to_dict())

    for side in options.sides:
        if not any(row.height == side for row in rows):
            rows += memories(options, side)
            write()
    for side in () if options.untimed else options.sides:
        mine = [row for row in rows if row.height == side]
        if all(row.milliseconds or row.error for row in mine):
            continue
        mine, found = timed(options, mine, side)
        rows = [row for row in rows if row.height != side] + mine
        facts |= found
        write()


if __name__ == "__main__":
    main()
