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

NAME = "high_resolution"
RUNTIMES = {"eager": "eager PyTorch", "openvino": "OpenVINO"}


def high_resolution_page(results: Path) -> str:
    """Introduction, picture, table, what it says."""
    result = ModelsResult.from_dict(read(results / f"{NAME}.json"))
    machine = result.machine
    lines = [
        "# High resolution\n",
        (results / f"{NAME}_remarks.md").read_text(encoding="utf-8"),
        "## Figures\n",
        "![Time and memory of whole detectors by image side](images/high_resolution.png)\n",
        "Milliseconds and, in brackets, megabytes that the process grows by in its first call, "
        "weights not counted. *Does not run*: more than "
        f"{machine['limit_gigabytes']:g} GB. *Not timed*: runs alone, but not within that limit in "
        "the process that times all models in turn. *Without attention* is the same model with "
        "its attention core deleted: no attention can be faster.\n",
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
        f"`{result.command}` → [{NAME}.json](../benchmarks/results/{NAME}.json), "
        f"[CSV](../benchmarks/results/{NAME}.csv). One image; medians of interleaved runs, "
        "processor time, as other work ran beside; device "
        f"{machine['device']}, {machine['threads']} thread, PyTorch {machine['torch']}.",
    ]
    return "\n".join(lines) + "\n"


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


def write_plot(results: Path, folder: Path) -> None:
    """Time above, memory below; a column per runtime, a colour per model."""
    result = ModelsResult.from_dict(read(results / f"{NAME}.json"))
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
    plot = Plot(*panels, width=8.6, height=7.2, legend=legend)
    write_bytes(folder / f"{NAME}.png", plot.png())


def _columns(points: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    pairs = list(points)
    return [x for x, _ in pairs], [y for _, y in pairs]
