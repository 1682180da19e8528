"""The page of whole dense models on large images, from what high_resolution.py wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from performance_tables import read, table

from castling.profiling.formatting import short
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.profiling.plots import PALETTE, Plot
from castling.utils.files import write_bytes

#: Files of results, and what they are of.
STUDIES = {
    "high_resolution": "Detectors",
    "high_resolution_segmenters": "Segmenters",
    "high_resolution_4096": "Segmenters at 4,096 pixels",
}
RUNTIMES = {"eager": "eager PyTorch", "openvino": "OpenVINO"}


def high_resolution_page(results: Path) -> str:
    """Introduction, then picture, table and what it says of every study."""
    lines = ["# High resolution\n", _remarks(results, "high_resolution")]
    for name, what in STUDIES.items():
        if (results / f"{name}.json").exists():
            lines += [f"## {what}\n", *_section(results, name, what)]
    return "\n".join(lines) + "\n"


def _remarks(results: Path, name: str) -> str:
    return (results / f"{name}_remarks.md").read_text(encoding="utf-8")


def _section(results: Path, name: str, what: str) -> list[str]:
    result = ModelsResult.from_dict(read(results / f"{name}.json"))
    machine = result.machine
    return [
        _remarks(results, f"{name}_figures"),
        *_picture(result, name, what),
        *table(
            ["model", "runtime", *(f"{side} px" for side in sides(result))],
            (
                [
                    f"`{model}`",
                    RUNTIMES[runtime],
                    *(_cell(rows.get(side)) for side in sides(result)),
                ]
                for (model, runtime), rows in by_candidate(result).items()
            ),
        ),
        f"`{result.command}` → [{name}.json](../benchmarks/results/{name}.json), "
        f"[CSV](../benchmarks/results/{name}.csv). One image; medians of interleaved runs, "
        "processor time, as other work ran beside; *does not run*: more than "
        f"{machine['limit_gigabytes']:g} GB; device {machine['device']}, {machine['threads']} "
        f"thread, PyTorch {machine['torch']}.\n",
    ]


def _picture(result: ModelsResult, name: str, what: str) -> list[str]:
    if len(sides(result)) == 1:
        return []
    return [f"![{what}: time and memory by image side](images/{name}.png)\n"]


def sides(result: ModelsResult) -> list[int]:
    """Image sides, the smallest first."""
    return sorted({row.height for row in result.measurements})


def by_candidate(result: ModelsResult) -> dict[tuple[str, str], dict[int, ModelMeasurement]]:
    """(model, runtime) → image side → measurement."""
    found: dict[tuple[str, str], dict[int, ModelMeasurement]] = {}
    for row in result.measurements:
        found.setdefault((row.model, row.variant), {})[row.height] = row
    return found


def _cell(row: ModelMeasurement | None) -> str:
    if row is None:
        return "–"
    if row.resident_megabytes is None:
        return "does not run"
    time = "not timed" if row.milliseconds is None else short(row.milliseconds)
    return f"{time} ({row.resident_megabytes:,.0f})"


def write_high_resolution_plots(results: Path, folder: Path) -> None:
    """One picture of every study."""
    for name in STUDIES:
        if (results / f"{name}.json").exists():
            result = ModelsResult.from_dict(read(results / f"{name}.json"))
            if len(sides(result)) == 1:
                continue
            write_bytes(folder / f"{name}.png", _plot(result).png())


def _plot(result: ModelsResult) -> Plot:
    """Time above, memory below; a column per runtime, a colour per model."""
    models = list(dict.fromkeys(row.model for row in result.measurements))
    shown = [name for name in models if not name.endswith(" without attention")]
    castled = {name for name in shown if set(result.hosts.get(name, ())) - {name}}

    def panel(runtime: str, what: str, title: str) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            for place, name in enumerate(shown):
                rows = by_candidate(result).get((name, runtime), {})
                points = sorted(
                    (side, getattr(row, what)) for side, row in rows.items() if getattr(row, what)
                )
                axes.plot(
                    *_columns(points),
                    color=PALETTE[place % len(PALETTE)],
                    linestyle="-" if name in castled else "--",
                    marker="o",
                    markersize=4,
                    linewidth=1.8,
                )
            axes.set(xscale="log", yscale="log", xlabel="image side, pixels")
            axes.set_xticks(sides(result), [str(side) for side in sides(result)])
            axes.minorticks_off()
            axes.set_ylabel("milliseconds" if what == "milliseconds" else "megabytes")
            axes.set_title(title, fontsize=10)

        return draw

    panels = [
        panel(runtime, what, f"{label}, {RUNTIMES[runtime]}")
        for what, label in (("milliseconds", "time"), ("resident_megabytes", "memory"))
        for runtime in RUNTIMES
    ]
    legend = [
        (name, PALETTE[place % len(PALETTE)], "-" if name in castled else "--")
        for place, name in enumerate(shown)
    ]
    return Plot(*panels, width=8.6, height=7.2, legend=legend)


def _columns(points: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    pairs = list(points)
    return [x for x, _ in pairs], [y for _, y in pairs]
