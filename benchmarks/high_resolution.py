"""Time and memory of whole dense models from small to large images, softmax against castled.

For every model its softmax hosts and its attention-free bound, in eager PyTorch and OpenVINO; for a
detector, decoding and suppression included. Memory is measured in a process of its own for every
model, runtime and size, so that nothing an earlier call left behind is counted; a process may take
``--limit`` gigabytes, and what needs more is recorded as not running. Then the times of those that
run are taken together, interleaved. Each size is written as soon as it is done, and not measured
again by the same command. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from castling.profiling.bench_models import bench_models
from castling.profiling.candidates import Candidate, choose_candidates
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.utils.files import write_json

HERE = Path(__file__).parent
RUNTIMES = ("eager", "openvino")


def in_child(options: argparse.Namespace, side: int, work: dict[str, Any]) -> ModelsResult | str:
    """The result of ``work`` in a process of its own, or why there is none."""
    command = [sys.executable, __file__, *options.models, "--sides", str(side)]
    command += ["--limit", str(options.limit), "--child", json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return ModelsResult.from_dict(json.loads(line))
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return f"the process ended with status {done.returncode}: {last[:200]}"


def child(options: argparse.Namespace, work: dict[str, Any]) -> None:
    """Measure what the parent asked for and print it as one line."""
    limit = int(options.limit * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    chosen = [each for each in candidates(options.models) if each.name in work["names"]]
    result = bench_models(
        chosen,
        [(options.sides[0], options.sides[0])],
        variants=work["runtimes"],
        rounds=work["rounds"],
        seconds=work["seconds"],
        threads=1,
    )
    print("\n" + json.dumps(result.to_dict()), flush=True)


def candidates(models: list[str]) -> list[Candidate]:
    """The models, their hosts and bounds."""
    return choose_candidates(models)


def measure(options: argparse.Namespace, side: int) -> ModelsResult:
    """All models at one size."""
    names = [each.name for each in candidates(options.models)]
    hosts = {each.name: each.hosts for each in candidates(options.models)}
    alone: dict[tuple[str, str], ModelMeasurement] = {}
    facts: dict[str, Any] = {}
    for name in names:
        for runtime in RUNTIMES:
            work = {"names": [name], "runtimes": [runtime], "rounds": 1, "seconds": 0.1}
            found = in_child(options, side, work)
            row = ModelMeasurement(name, runtime, side, side, 1)
            if isinstance(found, str):
                row = replace(row, error=found)
            else:
                facts, row = found.machine, found.measurements[0]
            alone[name, runtime] = row
            print(f"{side} px, {row.label}: {row.resident_megabytes} MB {row.error}", flush=True)
    rows = dict(alone)
    for runtime in RUNTIMES:
        running = [name for name in names if not alone[name, runtime].error]
        work = {
            "names": running,
            "runtimes": [runtime],
            "rounds": options.rounds,
            "seconds": options.seconds,
        }
        found = in_child(options, side, work)
        if isinstance(found, str):
            raise SystemExit(f"{side} px in {runtime}: {found}")
        for row in found.measurements:
            memory = alone[row.model, runtime].resident_megabytes
            rows[row.model, runtime] = replace(row, resident_megabytes=memory)
            print(f"{side} px, {row.label}: {row.milliseconds} ms", flush=True)
        facts = found.machine
    for (name, runtime), row in alone.items():
        if row.error:
            rows[name, runtime] = row
    return ModelsResult(tuple(rows.values()), facts | {"limit_gigabytes": options.limit}, hosts)


def main() -> None:
    """Measure the sizes that are not in the output yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="timm names, ours included, and HEAD/BACKBONE")
    parser.add_argument("--sides", type=int, nargs="+", default=[320, 640, 1024, 1536, 2048])
    parser.add_argument("--limit", type=float, default=20.0, help="gigabytes of one process")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing, a size and runtime")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "high_resolution.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options, json.loads(options.child))
        return
    done: list[ModelMeasurement] = []
    if options.output.exists():
        done += ModelsResult.from_dict(json.loads(options.output.read_text())).measurements
    for side in options.sides:
        if any(row.height == side for row in done):
            continue
        result = measure(options, side)
        done += result.measurements
        command = f"python benchmarks/high_resolution.py {' '.join(options.models)} --sides "
        command += " ".join(map(str, options.sides))
        result = replace(result, measurements=tuple(done), command=command)
        write_json(options.output, result.to_dict())


if __name__ == "__main__":
    main()
