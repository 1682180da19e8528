"""The sections of the page of measured speeds: one for each file, or kind of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from performance_tables import (
    Row,
    facts,
    made_by,
    milliseconds,
    number,
    plain,
    shape_of,
    table,
    timed,
)

from castling.profiling.results import crossover_remark, percent, ratio, short


def ops_section(name: str, title: str, result: Mapping[str, Any]) -> list[str]:
    """Kernels alone: times, ratios and shares of the limit, a table for each shape."""
    rows = timed(result)
    lines = [f"## {title}\n", made_by(name, result)]
    if (Path(__file__).parent / "images" / f"{name}.png").exists():
        lines.append(f"![times faster than softmax against tokens](images/{name}.png)\n")
    for shape in dict.fromkeys(map(shape_of, rows)):
        batch, heads, dim, dtype = shape
        mine = [row for row in rows if shape_of(row) == shape]
        tokens = sorted({row["tokens"] for row in mine})
        lines.append(f"Batch {batch}, {heads} heads of {dim} channels, {dtype}:\n")
        softmax = {row["tokens"]: row for row in mine if row["path"] == "sdpa"}
        lines += _pivot("milliseconds", mine, tokens, milliseconds)
        for what, field in (
            ("times faster than softmax", "against_sdpa"),
            ("times faster than the authors' block", "against_reference"),
        ):
            others = [row for row in mine if row["path"] != "sdpa" and row[field] is not None]
            others = [r for r in others if field == "against_sdpa" or r["path"] != "reference"]
            if others and softmax:
                lines += _pivot(what, others, tokens, lambda row, f=field: ratio(row[f]))
        limited = [row for row in mine if row["roofline_share"] is not None]
        lines += _pivot(
            "share of the machine's limit", limited, tokens, lambda r: percent(r["roofline_share"])
        )
    wrong = [row for row in result["measurements"] if row["error"]]
    lines += [
        f"- `{row['kernel']}` ({row['path']}), {row['tokens']} tokens, d={row['dim']}: "
        f"no time, {row['error']}"
        for row in wrong
    ]
    return [*lines, ""]


def _pivot(what: str, rows: list[Row], tokens: list[int], cell: Any) -> list[str]:
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        cells.setdefault((row["kernel"], row["path"]), {})[row["tokens"]] = cell(row)
    return table(
        [f"{what}; tokens:", "path", *map(str, tokens)],
        (
            [f"`{kernel}`", path, *(by_size.get(n, "–") for n in tokens)]
            for (kernel, path), by_size in cells.items()
        ),
    )


def models_section(name: str, title: str, result: Mapping[str, Any]) -> list[str]:
    """Whole models: one table, crossovers, and what failed."""
    lines = [f"## {title}\n", made_by(name, result)]
    if (Path(__file__).parent / "images" / f"{name}.png").exists():
        lines.append(f"![times faster than the softmax host](images/{name}.png)\n")
    rows = timed(result)
    # Files written before there was this ratio, and those of one runtime, show no empty column.
    compared = any(row.get("against_eager") is not None for row in rows)
    head = ["model", "runtime", "pixels", "batch", "tokens", "ms (quartiles)", "× host"]
    head += ["× eager"] if compared else []
    lines += table(
        [*head, "of cap", "peak tensors MB", "process MB"],
        (
            [
                row["model"],
                row["variant"],
                f"{row['height']}×{row['width']}",
                str(row["batch"]),
                "–" if row["tokens"] is None else str(row["tokens"]),
                milliseconds(row),
                ratio(row["against_host"]),
                *([ratio(row.get("against_eager"))] if compared else []),
                percent(row["bound_share"]),
                number(row["peak_megabytes"]),
                number(row["resident_megabytes"]),
            ]
            for row in rows
        ),
    )
    lines += [
        f"- {crossover_remark(label, 'its softmax host', tokens)}"
        for label, tokens in result["crossovers"].items()
    ]
    lines += [
        f"- {row['model']} ({row['variant']}), {row['height']}×{row['width']}: no time, "
        f"{row['error']}"
        for row in result["measurements"]
        if row["error"]
    ]
    return [*lines, ""]


def plans_section(plans: Mapping[str, Any]) -> list[str]:
    """Every plan in a line; nothing where there is none."""
    if not plans:
        return []
    lines = [
        "## Plans\n",
        "`castling plan MODEL --image_size SIZE --threads 1 --output FILE` measures every "
        "attention layer with softmax and linear inside the running model, keeps softmax where it "
        "is faster, and checks its prediction of the whole model's time.\n",
    ]
    head = ["plan", "attention", "pixels", "batch", "linear layers", "all softmax ms"]
    rows = []
    for name, plan in plans.items():
        predicted, verified = plan["predicted"], plan["verified"] or {}
        linear = [layer for layer in plan["layers"] if layer["choice"] == "linear"]
        off = verified and predicted["planned"] / verified["planned"] - 1
        rows.append(
            [
                f"[{plan['model']}](../benchmarks/results/{name}.json)",
                plan["attention"]["name"],
                "×".join(map(str, plan["image_size"])),
                str(plan["batch"]),
                f"{len(linear)} of {len(plan['layers'])}",
                short(verified.get("softmax")),
                short(verified.get("linear")),
                short(verified.get("planned")),
                short(predicted["planned"]),
                f"{100 * off:+.1f} %" if verified else "–",
            ]
        )
    lines += table([*head, "all linear ms", "planned ms", "predicted ms", "off by"], rows)
    first = next(iter(plans.values()))
    machine = {key: first[key] for key in ("device", "threads", "torch")}
    return [*lines, facts(machine | {"path": first["paths"][0]}), ""]


def gpu_section(found: Mapping[str, Any]) -> list[str]:
    """The lists in files of GPU measurements as tables; nothing where there is none."""
    if not found:
        return []
    lines = ["## On a GPU\n"]
    for name, result in found.items():
        made = dict(result) | {"machine": result.get("machine", {})}
        lines.append(made_by(name, made))
        for title, rows in result.items():
            if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
                continue
            keys = [key for key, value in rows[0].items() if not isinstance(value, list | dict)]
            lines += [f"{title.replace('_', ' ')}:\n"]
            lines += table(keys, ([plain(row.get(key)) for key in keys] for row in rows))
    return lines


def compiled_section(result: Mapping[str, Any] | None) -> list[str]:
    """What the Triton kernels take, where no GPU was needed to find out."""
    if result is None:
        return []
    rows = result["rows"]
    spilling = [row for row in rows if row["spilled_bytes"]]
    main = [row for row in rows if row["main"]]
    lines = [
        "## The GPU kernels, compiled\n",
        "`python benchmarks/compile_kernels.py` → [compile_kernels.json]"
        "(../benchmarks/results/compile_kernels.json): compiled ahead of time for compute "
        f"capability {result['capability'] / 10:.1f}, which needs no GPU and says nothing of their "
        f"speed. {len(rows)} kernels, {result['bad']} failed; of {len(main)} in main "
        f"configurations {sum(row in main for row in spilling)} spill registers, of the other "
        f"{len(rows) - len(main)} {sum(row not in main for row in spilling)}.\n",
    ]
    worst: dict[str, Any] = {}
    for row in main:
        kept = worst.get(row["kernel"])
        if kept is None or row["registers"] > kept["registers"]:
            worst[row["kernel"]] = row
    head = ["kernel", "most registers", "shared memory", "in"]
    cells = (
        [
            f"`{name}`",
            str(row["registers"]),
            f"{row['shared_bytes'] / 1024:.1f} KB",
            row["configuration"],
        ]
        for name, row in sorted(worst.items())
    )
    return [*lines, *table(head, cells)]
