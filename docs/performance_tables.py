"""Files and tables behind the page of measured speeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.profiling.op_candidates import REFERENCE, SDPA
from castling.profiling.op_results import OpMeasurement, OpsResult
from castling.utils.files import write_csv

#: Results with a plot on the page.
PLOTTED = ("bench_ops", "bench_ops_backward", "bench_models")
_LINK = "../benchmarks/results"


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_ops(results: Path) -> dict[str, OpsResult]:
    """File name without suffix → result of ``castling bench ops``."""
    return {
        path.stem: OpsResult.from_dict(read(path))
        for path in sorted(results.glob("bench_ops*.json"))
    }


def read_models(results: Path) -> dict[str, ModelsResult]:
    """File name without suffix → result of ``castling bench models``."""
    return {
        path.stem: ModelsResult.from_dict(read(path))
        for path in sorted(results.glob("bench_models*.json"))
    }


def row_lists(results: Path) -> dict[str, list[dict[str, Any]]]:
    """CSV name without suffix → rows of the GPU files and of the compiled kernels."""
    found: dict[str, list[dict[str, Any]]] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(name if key in ("rows", "measurements") else f"{name}_{key}", inner)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found[name] = value

    for path in sorted((*results.glob("gpu*.json"), *results.glob("compile_kernels.json"))):
        collect(path.stem, read(path))
    return found


def write_tables(results: Path, folder: Path) -> None:
    """Write every measurement of the JSON files in ``results`` as CSV into ``folder``."""
    dense = {
        path.stem: ModelsResult.from_dict(read(path))
        for path in sorted(results.glob("high_resolution*.json"))
    }
    for name, result in (read_ops(results) | read_models(results) | dense).items():
        result.write_csv(folder / f"{name}.csv")
    for name, rows in row_lists(results).items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        write_csv(folder / f"{name}.csv", columns, rows)


def write_plots(results: Path, folder: Path) -> None:
    """Draw the pictures of the page into ``folder``."""
    for name, result in (read_ops(results) | read_models(results)).items():
        if name in PLOTTED:
            result.write_plot(folder / f"{name}.png")


def facts(machine: Mapping[str, Any]) -> str:
    """The machine of a measurement as one sentence."""
    return "Measured on " + ", ".join(f"{key} {value}" for key, value in machine.items()) + "."


def captions(results: Mapping[str, OpsResult | ModelsResult]) -> list[str]:
    """Device, threads and clock, then the command and the files of every result."""
    lines: dict[str, list[str]] = {}
    for name, result in results.items():
        facts = result.machine
        machine = f"{facts['device']}, {threads_of(facts)}"
        machine += f", {facts['clock']} clock" if "clock" in facts else ""
        machine += f", PyTorch {facts['torch']}" if "torch" in facts else ""
        rooflines = [f"roofline {value}" for key, value in facts.items() if "roofline" in key]
        said = [f"`{result.command or 'Python'}`", *rooflines, _links(name)]
        lines.setdefault(machine, []).append(f"- {', '.join(said)}")
    return [line for machine, mine in lines.items() for line in (f"{machine}:\n", *mine, "")]


def threads_of(facts: Mapping[str, Any]) -> str:
    """``1 thread``."""
    return f"{facts['threads']} thread" + ("" if facts["threads"] == 1 else "s")


def _links(name: str) -> str:
    return f"[JSON]({_LINK}/{name}.json), [CSV]({_LINK}/{name}.csv)"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, followed by an empty one."""
    return [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def default_backend(result: OpsResult) -> list[OpMeasurement]:
    """Of each kernel and setting, the backend that castling chooses: the first one measured."""
    first: dict[tuple[Any, ...], OpMeasurement] = {}
    for row in result.measurements:
        if row.backend not in (SDPA, REFERENCE) and row.milliseconds is not None:
            first.setdefault((row.kernel, row.shape, row.tokens), row)
    return list(first.values())


def compared(result: ModelsResult) -> list[ModelMeasurement]:
    """The models that have a time and a softmax host."""
    return [row for row in result.measurements if row.against_host is not None]


def host_megabytes(result: ModelsResult, row: ModelMeasurement) -> float | None:
    """Peak memory of the softmax host of ``row`` that needs least, in the same runtime."""
    key = (row.variant, row.height, row.width, row.batch)
    peaks = [
        host.peak_megabytes
        for host in result.measurements
        if host.model in result.hosts[row.model]
        and (host.variant, host.height, host.width, host.batch) == key
    ]
    return min((peak for peak in peaks if peak is not None), default=None)
